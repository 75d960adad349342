"""Prompts: files written here, good and bad, against what the stage makes of them and says about them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from pipeline.demo import task
from pipeline.errors import PromptError
from pipeline.prompts.collect import choose_bucket, collect_prompts, group_by_bucket
from pipeline.prompts.sources import Row, read_source
from pipeline.settings.prompts import Fields, Prompts, Source
from pipeline.storage import hashing
from pipeline.storage.manifest import verify_folder
from pipeline.storage.prompts import read_prompts
from pipeline.storage.shards import list_shards, read_about
from pipeline.storage.store import Store
from stages import prompts as stage

GSM8K = Path("../shared/data/gsm8k_train_500.jsonl")
QUESTION = {"prompt": "question", "answer": "answer"}


def rows(name: str, count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{name} {number}", "answer": number} for number in range(count)]


def write(path: Path, values: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def settings(*sources: dict[str, Any], **others: Any) -> Prompts:
    told = {"sources": sources, "buckets": 4, **others}
    return Prompts.model_validate_json(json.dumps(told))


def three(folder: Path, **named: Sequence[Any]) -> Prompts:
    """One JSONL source for each split; `sft=[…]` says which rows, else there are 40 of its own."""
    found = {split: named.get(split, rows(split, 40)) for split in ("sft", "opd", "evaluation")}
    return settings(
        *(
            {"split": split, "path": write(folder / f"{split}.jsonl", values), "fields": {"answer": "answer"}}
            for split, values in found.items()
        )
    )


def read(path: Path | str, **options: Any) -> tuple[list[Row], list[str]]:
    source = Source.model_validate_json(json.dumps({"split": "sft", "path": str(path), **options}))
    return read_source(source, "prompts.sources.0")


def mistake(folder: Path, row: Any, **options: Any) -> str:
    """What is said of a file whose second row is this one."""
    found, mistakes = read(write(folder / "bad.jsonl", [{"prompt": "good", "answer": 1}, row]), **options)
    assert [row.place for row in found] == [f"{folder / 'bad.jsonl'}, line 1"]
    (told,) = mistakes
    assert told.startswith(f"{folder / 'bad.jsonl'}, line 2: ")
    return told.partition(": ")[2]


def test_a_prompt_of_text_becomes_one_user_message_after_the_sources_system_message(tmp_path: Path) -> None:
    (row,), _ = read(write(tmp_path / "a.jsonl", [{"prompt": "Hi"}]), system="Be brief.", domain="talk")
    assert row.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})
    assert (row.answer, row.hint, row.domain) == (None, None, "talk")


def test_parquet_messages_keep_roles_and_null_fields(tmp_path: Path) -> None:
    talk = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "?"},
    ]
    table = pa.table({"chat": [talk, talk[:1]], "gold": [2.5, None], "hint": [None, "think"], "unused": [1, 2]})
    pq.write_table(table, tmp_path / "a.parquet")
    (first, second), mistakes = read(
        tmp_path / "a.parquet", fields={"prompt": "chat", "answer": "gold", "hint": "hint"}
    )
    assert not mistakes
    assert first.messages == tuple(talk)
    assert (first.answer, first.hint, second.answer, second.hint) == ("2.5", None, None, "think")
    assert second.place == f"{tmp_path / 'a.parquet'}, row 2"


def test_a_key_that_parquet_adds_to_every_message_is_no_mistake_where_it_is_null(tmp_path: Path) -> None:
    plain, named = {"role": "user", "content": "Hi"}, {"role": "user", "content": "Hi", "name": "Bo"}
    pq.write_table(pa.table({"prompt": [[plain], [named]]}), tmp_path / "a.parquet")
    (row,), (told,) = read(tmp_path / "a.parquet")
    assert row.messages == (plain,)
    assert told == f"{tmp_path / 'a.parquet'}, row 2: `prompt[0]` also has name, which no chat template would be given"


def test_a_folder_is_read_by_datasets_as_its_file_is_read_directly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    path = write(tmp_path / "set" / "train.jsonl", rows("sft", 5))
    source = Source(split="sft", dataset=str(tmp_path / "set"), fields=Fields(answer="answer"))
    found, _ = read_source(source, "prompts.sources.0")
    assert [(row.messages, row.answer) for row in found] == [
        (row.messages, row.answer) for row in read(path, fields={"answer": "answer"})[0]
    ]
    assert found[4].place == f"{path}, line 5"
    lacking = {"fields": {"answer": "solution"}}
    assert read_source(source.model_copy(update={"fields": Fields(answer="solution")}), "s") == read(path, **lacking)
    with pytest.raises(PromptError, match=r"sources\.0\.dataset: .* cannot be read"):
        read_source(source.model_copy(update={"dataset_split": "none"}), "prompts.sources.0")


def test_a_hub_data_set_needs_a_revision() -> None:
    with pytest.raises(PromptError, match=r"prompts\.sources\.0\.dataset: .*`openai/gsm8k@main`"):
        read_source(Source(split="sft", dataset="openai/gsm8k"), "prompts.sources.0")


@pytest.mark.parametrize(
    "settings",
    [
        {"path": ""},
        {"dataset": ""},
        {"path": "a.jsonl", "answer_after": ""},
        {"path": "a.jsonl", "system": ""},
        {"path": "a.jsonl", "limit": 10**30},
        {"path": "a.jsonl", "fields": {"prompt": ""}},
    ],
)
def test_a_setting_that_no_file_could_bear_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Source.model_validate_json(json.dumps({"split": "sft", **settings}))


@pytest.mark.parametrize("name", ["a" * 300 + ".jsonl", "a\0b.jsonl", "loop.jsonl"])
@pytest.mark.parametrize("origin", ["path", "dataset"])
def test_a_name_that_no_file_can_have_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, origin: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop.jsonl").symlink_to("loop.jsonl")
    with pytest.raises(PromptError, match=rf"prompts\.sources\.0\.{origin}: "):
        read_source(Source.model_validate_json(json.dumps({"split": "sft", origin: name})), "prompts.sources.0")


def test_the_demos_sums_bring_answers_hints_and_domains() -> None:
    found, mistakes = read_source(Source(split="opd", sums=3, limit=7), "prompts.sources.0")
    assert not mistakes
    expected = list(task.draw_sums(3, 7))
    assert [row.messages[0]["content"] for row in found] == [row["question"] for row in expected]
    assert [(row.answer, row.hint, row.domain) for row in found] == [
        (str(row["answer"]), row["hint"], row["domain"]) for row in expected
    ]
    assert found[6].place == "sums 3, number 7"


def test_the_demos_sums_can_show_their_hint_and_be_of_a_domain() -> None:
    plain = list(task.draw_sums(3, 7))
    source = Source(split="opd", sums=3, limit=7, hinted=True, domain="told")
    found, _ = read_source(source, "prompts.sources.0")
    assert found[0].messages[0]["content"] == f"{plain[0]['question']}\n\nHint: {plain[0]['hint']}"
    assert [(row.answer, row.hint) for row in found] == [(row["answer"], row["hint"]) for row in plain]
    assert {row.domain for row in found} == {"told"}


def test_limit_takes_the_first_rows_and_looks_at_no_other(tmp_path: Path) -> None:
    found, mistakes = read(write(tmp_path / "a.jsonl", [*rows("a", 3), "bad"]), limit=3)
    assert (len(found), mistakes) == (3, [])


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"answer": 1}, "lacks `prompt`; it has answer"),
        ({"prompt": None}, "`prompt` is null, where text is expected"),
        ({"prompt": 7}, "`prompt` is a number, where text is expected"),
        ({"prompt": " \n"}, "`prompt` is empty"),
        ({"prompt": "\ud800"}, "`prompt` has half a surrogate pair"),
        ({"prompt": []}, "`prompt` is an empty list"),
        ({"prompt": ["Hi"]}, "`prompt[0]` is text, where {role, content} is expected"),
        ({"prompt": [{"role": "user"}]}, "`prompt[0]` is an object, where {role, content} is expected"),
        ({"prompt": [{"role": "tool", "content": "x"}]}, "`prompt[0].role` is 'tool', where one of system, user"),
        ({"prompt": [{"role": "user", "content": ""}]}, "`prompt[0].content` is empty"),
        ({"prompt": [{"role": "user", "content": "x", "name": "Bo"}]}, "`prompt[0]` also has name"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "`prompt` ends with a message of role assistant"),
        (
            {"prompt": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]},
            "`prompt` has a system message that is not the first",
        ),
        (["prompt"], "is a list, where an object is expected"),
    ],
)
def test_a_bad_prompt_is_named_by_line_with_what_was_expected(tmp_path: Path, row: Any, told: str) -> None:
    assert mistake(tmp_path, row).startswith(told)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (True, "`answer` is true or false, where text, a number or null is expected"),
        ({"x": 1}, "`answer` is an object, where"),
        ("", "`answer` is empty"),
        (1e999, "has Infinity, which is not JSON"),
    ],
)
def test_a_bad_answer_is_named(tmp_path: Path, answer: Any, told: str) -> None:
    assert mistake(tmp_path, {"prompt": "x", "answer": answer}, fields={"answer": "answer"}).startswith(told)


@pytest.mark.parametrize(
    ("answer", "told"),
    [("so 72", "`answer` has no `####`"), ("so 72 #### ", "`answer, after `####`,` is empty"), (72, "`answer` is a")],
)
def test_an_answer_without_its_marker_is_named(tmp_path: Path, answer: Any, told: str) -> None:
    row = {"question": "x", "answer": answer}
    path = write(tmp_path / "bad.jsonl", [{"question": "good", "answer": "a #### 1\n#### 2"}, row])
    (good,), (said,) = read(path, fields=QUESTION, answer_after="####")
    assert good.answer == "2"
    assert said.startswith(f"{path}, line 2: {told}")


def test_a_missing_answer_is_an_error_and_a_null_one_is_not(tmp_path: Path) -> None:
    assert mistake(tmp_path, {"prompt": "x"}, fields={"answer": "answer"}).startswith("lacks `answer`; it has prompt")
    (row,), _ = read(write(tmp_path / "a.jsonl", [{"prompt": "x", "answer": None}]), fields={"answer": "answer"})
    assert row.answer is None


def test_lines_that_are_no_json_are_all_named_the_cut_off_last_one_too(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n\n{"prompt": "\xff"}\n{"prompt": NaN}\n{prompt: 1}\r\n{"prompt": "cut o')
    found, mistakes = read(path)
    assert [row.place for row in found] == [f"{path}, line 1"]
    told = [text.removeprefix(f"{path}, ") for text in mistakes]
    assert told[0] == "line 2: is blank"
    assert told[1].startswith("line 3: is not UTF-8 (invalid start byte at byte 13")
    assert told[2] == "line 4: has NaN, which is not JSON"
    assert told[3].startswith("line 5: is not JSON (")
    assert told[4].startswith("line 6: is not JSON (")
    assert told[4].endswith("is the file cut off?")
    assert not told[3].endswith("is the file cut off?")


def test_line_separators_inside_a_text_end_no_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a\u2028b\u0085c"}\n{"prompt": "d"}\n')
    assert [row.messages[0]["content"] for row in read(tmp_path / "a.jsonl")[0]] == ["a\u2028b\u0085c", "d"]


def test_files_that_cannot_be_read_name_their_setting(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt\nx\n")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "a.jsonl").write_text("")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "b.parquet")
    for name, told in [
        ("none.jsonl", r"prompts\.sources\.0\.path: .*none\.jsonl is missing"),
        ("a.csv", r"prompts\.sources\.0\.path: a \.jsonl or \.parquet file is expected, found .*a\.csv"),
        ("a.parquet", r"prompts\.sources\.0\.path: .*a\.parquet cannot be read as Parquet"),
        ("a.jsonl", r"prompts\.sources\.0 \(.*a\.jsonl\) has no rows"),
        ("b.parquet", r"prompts\.sources\.0\.fields: .*b\.parquet has no column prompt; it has text"),
    ]:
        with pytest.raises(PromptError, match=told):
            read(tmp_path / name)


def test_all_bad_rows_of_all_sources_come_in_one_error_that_lists_twenty(tmp_path: Path) -> None:
    bad = {"answer": 1}
    with pytest.raises(PromptError) as caught:
        collect_prompts(three(tmp_path, sft=[bad] * 15 + rows("sft", 3), opd=[*rows("opd", 9), *[bad] * 8]))
    lines = str(caught.value).splitlines()
    assert lines[0] == "prompts.sources has 23 rows that cannot be used:"
    assert lines[1].startswith(f"  {tmp_path / 'sft.jsonl'}, line 1: lacks `prompt`")
    assert lines[16].startswith(f"  {tmp_path / 'opd.jsonl'}, line 10: ")
    assert lines[21] == "  and 3 more"
    assert len(lines) == 23


def test_duplicates_are_left_out_and_contradictions_name_both_places(tmp_path: Path) -> None:
    found = collect_prompts(three(tmp_path, sft=[*rows("sft", 10), *rows("sft", 5)]))
    assert len(found["sft"]) == 10
    with pytest.raises(PromptError) as caught:
        collect_prompts(three(tmp_path, sft=[*rows("sft", 10), {"prompt": "sft 3", "answer": "4"}]))
    path = tmp_path / "sft.jsonl"
    assert f"{path}, line 11: the prompt of {path}, line 4, but with answer '4' not '3'" in str(caught.value)


def test_one_prompt_may_be_in_sft_and_in_opd(tmp_path: Path) -> None:
    found = collect_prompts(three(tmp_path, sft=rows("same", 40), opd=rows("same", 40)))
    assert [prompt.prompt_id for prompt in found["sft"]] == [prompt.prompt_id for prompt in found["opd"]]


def test_evaluation_prompts_are_removed_whatever_their_case_and_spacing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copies = [{"prompt": "EVALUATION  3\n", "answer": 3}, {"prompt": "evaluation 4", "answer": 4}]
    with caplog.at_level("INFO"):
        found = collect_prompts(three(tmp_path, sft=[*rows("sft", 9), *copies], opd=[*rows("opd", 40), *copies[:1]]))
    assert {split: len(inside) for split, inside in found.items()} == {"sft": 9, "opd": 40, "evaluation": 40}
    assert "sft: 9 prompts (11 rows, 0 duplicates and 2 evaluation prompts left out)" in caplog.messages
    assert "opd: 40 prompts (41 rows, 0 duplicates and 1 evaluation prompts left out)" in caplog.messages


def test_a_system_message_does_not_hide_an_evaluation_prompt(tmp_path: Path) -> None:
    told = three(tmp_path, sft=[*rows("sft", 3), *rows("evaluation", 3)])
    others = [told.sources[0].model_copy(update={"system": "Think."}), *told.sources[1:]]
    assert len(collect_prompts(told.model_copy(update={"sources": tuple(others)}))["sft"]) == 3


@pytest.mark.parametrize("split", ["sft", "opd"])
def test_a_split_of_evaluation_prompts_alone_is_refused(tmp_path: Path, split: str) -> None:
    with pytest.raises(
        PromptError, match=rf"prompts\.sources: no prompts for `split: {split}` \(40 rows, 0 dup.*40 ev"
    ):
        collect_prompts(three(tmp_path, **{split: rows("evaluation", 40)}))


@pytest.mark.parametrize("split", ["opd", "evaluation"])
def test_a_split_without_a_source_is_refused(tmp_path: Path, split: str) -> None:
    told = three(tmp_path)
    others = tuple(source for source in told.sources if source.split != split)
    with pytest.raises(PromptError, match=rf"prompts\.sources: no prompts for `split: {split}` \(0 rows"):
        collect_prompts(told.model_copy(update={"sources": others}))


def test_held_out_and_other_buckets_of_opd_both_need_prompts(tmp_path: Path) -> None:
    told = three(tmp_path, opd=rows("opd", 1))
    bucket = choose_bucket(hashing.digest(hashing.canonical([{"role": "user", "content": "opd 0"}])), 4)
    for held_out in (bucket, (bucket + 1) % 4):
        with pytest.raises(
            PromptError, match=rf"prompts\.held_out is bucket {held_out} of 4, and [01] of 1 opd prompts"
        ):
            collect_prompts(told.model_copy(update={"held_out": held_out}))


def test_ids_and_buckets_stay_what_they_were(tmp_path: Path) -> None:
    """Recorded when the format was made: every rollout and score of a prompt hangs on both."""
    (prompt,) = collect_prompts(three(tmp_path, sft=[{"prompt": "1+1?", "answer": 2}]))["sft"]
    assert prompt.prompt_id == "733cdafbdd37c874e67643a91fe55f3e"
    assert prompt.bucket == 0xE % 4
    assert choose_bucket("0" * 29 + "1ff", 256) == 255


def test_the_stage_writes_what_was_collected_and_load_reads_it_back(tmp_path: Path) -> None:
    told = three(tmp_path)
    made = stage.run(told, Store(tmp_path / "store"), out=tmp_path / "out")
    collected = collect_prompts(told)
    for split, expected in collected.items():
        folder = tmp_path / "out" / split
        assert verify_folder(folder) == []
        shard_names = [path.name for path in list_shards(folder, "prompts")]
        assert shard_names == [f"{bucket:05d}.parquet" for bucket in sorted({prompt.bucket for prompt in expected})]
        found = [prompt for path in list_shards(folder, "prompts") for prompt in read_prompts(path)]
        assert sorted(found, key=lambda prompt: prompt.prompt_id) == expected
        for path in list_shards(folder, "prompts"):
            ids = [prompt.prompt_id for prompt in read_prompts(path)]
            assert ids == sorted(ids)
    assert {prompt.split for prompt in read_prompts(tmp_path / "out" / "opd" / "00000.parquet")} == {"validation"}
    assert {prompt.split for prompt in read_prompts(tmp_path / "out" / "opd" / "00001.parquet")} == {"opd"}
    for split in ("sft", "evaluation"):
        assert {prompt.split for prompt in read_prompts(tmp_path / "out" / split / "00000.parquet")} == {split}
    about = read_about(tmp_path / "out" / "sft" / "00000.parquet")
    assert set(about["identity"]) == {"stage", "version", "format", "rows"}
    assert set(about["made_with"]) == {"potstill", "pyarrow"}
    assert (made.found, made.tokens) == (0, 0)
    assert made.made == sum(len(group_by_bucket(inside)) for inside in collected.values())


def test_one_more_prompt_changes_one_bucket_and_its_place_in_the_file_none(tmp_path: Path) -> None:
    first = stage.run(three(tmp_path), Store(tmp_path / "store"), out=tmp_path / "out")
    more = [{"prompt": "one more", "answer": 1}, *reversed(rows("opd", 40))]
    second = stage.run(three(tmp_path, opd=more), Store(tmp_path / "store"), out=tmp_path / "out")
    assert (second.made, second.found) == (1, first.made - 1)
    assert stage.run(three(tmp_path, opd=more), Store(tmp_path / "store"), out=tmp_path / "out").made == 0


def test_nothing_is_written_where_a_row_is_bad(tmp_path: Path) -> None:
    with pytest.raises(PromptError):
        stage.run(three(tmp_path, evaluation=[7]), Store(tmp_path / "store"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not GSM8K.exists(), reason=f"{GSM8K} is missing")
def test_gsm8k_gives_500_questions_with_their_final_numbers() -> None:
    found, mistakes = read(GSM8K, fields=QUESTION, answer_after="####")
    lines = [json.loads(line) for line in GSM8K.read_text().splitlines()]
    assert (len(found), mistakes) == (500, [])
    assert found[0].answer == "72"
    assert [row.messages for row in found] == [({"role": "user", "content": line["question"]},) for line in lines]
    assert [row.answer for row in found] == [line["answer"].splitlines()[-1].removeprefix("#### ") for line in lines]
