"""Values in files, written here byte by byte or typed by Arrow, against the rows that are read and what is said."""

import decimal
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import PromptError
from pipeline.prompts.sources import Row, read_source
from pipeline.settings.prompts import Source

ANSWERED = {"fields": {"answer": "answer"}}
LARGE = "123456789012345678901234567890"

in_folder = pytest.mark.parametrize("folder", [False, pytest.param(True, marks=pytest.mark.slow)])
"""Read by `path`, and by `dataset` as a folder, which takes longer."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, str(tmp_path / "cache" / name))


def read(path: Path, **options: Any) -> tuple[list[Row], list[str]]:
    origin = "dataset" if path.is_dir() else "path"
    source = Source.model_validate_json(json.dumps({"split": "sft", origin: str(path), **ANSWERED, **options}))
    return read_source(source, "prompts.sources.0")


def answers(path: Path) -> list[str | None]:
    rows, mistakes = read(path)
    assert mistakes == []
    return [row.answer for row in rows]


def lines(path: Path, *written: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in written).encode())
    return path


def answered(written: str) -> str:
    return f'{{"prompt": "x", "answer": {written}}}'


NUMBERS = ["4.10", LARGE, "0.1000000000000000055511151231257827", "1e3", "-0", "3", "1E400", "9007199254740993"]


@in_folder
def test_an_answer_of_json_has_the_digits_of_its_file(tmp_path: Path, folder: bool) -> None:
    path = lines(tmp_path / "set" / "train.jsonl", *[answered(number) for number in NUMBERS])
    assert answers(path.parent if folder else path) == NUMBERS


def test_text_that_looks_like_a_number_or_a_date_stays_text(tmp_path: Path) -> None:
    texts = ["007", "1.10", "2024-01-01T00:00:00", "true", " 5"]
    json_path = lines(tmp_path / "json" / "train.jsonl", *[answered(json.dumps(text)) for text in texts])
    csv_path = lines(tmp_path / "csv" / "train.csv", "prompt,answer", *[f"x,{text}" for text in texts])
    assert answers(json_path) == answers(json_path.parent) == answers(csv_path.parent) == texts
    lines(csv_path, "prompt,answer", "x,007", "x,1.10")
    assert answers(csv_path.parent) == ["007", "1.10"]


@pytest.mark.parametrize(
    ("kind", "value", "told"),
    [
        (pa.float32(), 4.1, "4.1"),
        (pa.float32(), 123456792.0, "123456792.0"),
        (pa.float32(), 1e20, "1e+20"),
        (pa.float16(), np.float16(4.1), "4.1"),
        (pa.float64(), 0.1, "0.1"),
        (pa.int64(), 2**62 + 1, str(2**62 + 1)),
        (pa.uint64(), 2**64 - 1, str(2**64 - 1)),
        (pa.decimal128(38, 10), decimal.Decimal("12345678901234567890.1000000000"), "12345678901234567890.1000000000"),
        (pa.dictionary(pa.int8(), pa.float32()), 4.1, "4.1"),
        (pa.large_string(), "007", "007"),
    ],
    ids=str,
)
@in_folder
def test_an_answer_of_parquet_has_the_digits_of_its_type(
    tmp_path: Path, kind: pa.DataType, value: Any, told: str, folder: bool
) -> None:
    path = tmp_path / "set" / "train.parquet"
    path.parent.mkdir()
    typed = pa.array([value, None], kind.value_type).dictionary_encode() if pa.types.is_dictionary(kind) else None
    pq.write_table(pa.table({"prompt": ["x", "y"], "answer": typed or pa.array([value, None], kind)}), path)
    assert answers(path.parent if folder else path) == [told, None]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (answered("9" * 4301), "has an integer of 4301 digits, 4300 are the most: write it as text"),
        ('{"prompt": "x", "meta": ' + "[" * 100_000 + "]" * 100_000 + "}", "is nested too deeply to be read"),
        ('{"prompt": "x", "prompt": "y", "answer": 1}', "has the key `prompt` more than once"),
        ('{"prompt": "x", "answer": 1, "meta": {"a": 1, "a": 2}}', "has the key `a` more than once"),
        ('{"prompt": "\\ud800", "answer": 1}', "`prompt` has half a surrogate pair, which is no text"),
        ('\ufeff{"prompt": "x", "answer": 1}', "is not JSON ("),
        ('{"prompt": "x\0", "answer": 1}', "is not JSON (Invalid control character"),
        ('"prompt"', "is text, where an object is expected"),
        ("7", "is a number, where an object is expected"),
        ('{"prompt": 7, "answer": 1}', "`prompt` is a number, where text is expected"),
        (answered("Infinity"), "has Infinity, which is not JSON"),
        (answered("[1]"), "`answer` is a list, where text, a number or null is expected"),
        ('{"prompt": "x"}', "lacks `answer`; it has prompt (write null for unknown)"),
    ],
    ids=lambda value: value[:40],
)
@in_folder
def test_a_line_that_no_value_can_be_read_from_is_named(tmp_path: Path, line: str, told: str, folder: bool) -> None:
    path = lines(tmp_path / "set" / "train.jsonl", answered("1"), line)
    rows, (mistake,) = read(path.parent if folder else path)
    assert len(rows) == 1
    assert mistake.startswith(f"{path}, line 2: {told}")


@pytest.mark.parametrize(
    "text",
    [
        '[{"role": "user", "content": "Hi"}]',
        "[{'role': 'user', 'content': 'Hi'}]",
        ' [ {"content": "Hi", "role": "user"}]',
        '{"role": "user", "content": "Hi"}',
        '[{"from": "human", "value": "Hi"}]',
        '{"messages": [{"role": "user", "content": "Hi"}]}',
    ],
)
def test_messages_that_are_spelled_as_text_are_no_text(tmp_path: Path, text: str) -> None:
    path = lines(tmp_path / "a.jsonl", json.dumps({"prompt": text, "answer": 1}), answered("1"))
    pq.write_table(pa.table({"prompt": [text, "[1, 2]"], "answer": ["1", "2"]}), tmp_path / "a.parquet")
    for file in (path, tmp_path / "a.parquet"):
        (row,), (mistake,) = read(file)
        assert "1: `prompt` is text that spells messages" in mistake
        assert row.messages[0]["content"] in ("x", "[1, 2]")


def test_a_byte_order_mark_at_the_beginning_is_no_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "json" / "train.jsonl"
    lines(path, "\ufeff" + answered("1"), answered("2"))
    lines(tmp_path / "csv" / "train.csv", "\ufeffprompt,answer", "x,1", "y,2")
    assert answers(path) == answers(path.parent) == answers(tmp_path / "csv") == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", gzip.compress(b'{"prompt": "x"}\n', mtime=0), r"a\.jsonl is gzip'ed, where text in UTF-8 is"),
        ("a.jsonl", '{"prompt": "x"}\n'.encode("utf-16"), r"a\.jsonl is in UTF-16, where"),
        ("a.jsonl", b"PAR1", r"a\.jsonl is Parquet, where"),
        ("a.jsonl", b"", r"prompts\.sources\.0 \(.*a\.jsonl\) has no rows"),
        ("a.parquet", b"", r"prompts\.sources\.0\.path: .*a\.parquet cannot be read as Parquet"),
        ("a.parquet", gzip.compress(b"x", mtime=0), r"a\.parquet cannot be read as Parquet"),
        ("a.csv", b"prompt,answer\nx,1\n", r"a \.jsonl or \.parquet file is expected, found .*a\.csv"),
        ("a.jsonl.gz", b"", r"a \.jsonl or \.parquet file is expected, found"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=rf"^prompts\.sources\.0.*{told}" if "sources" not in told else told):
        read(tmp_path / name)


def test_a_value_of_parquet_that_python_cannot_hold_is_named_by_row(tmp_path: Path) -> None:
    times = pa.array([0, 2**62, None, 1], pa.timestamp("ms"))
    ends = pa.array([0, 1], pa.int32()).buffers()[1]
    not_utf8 = pa.Array.from_buffers(pa.string(), 1, [None, ends, pa.py_buffer(b"\xff")])
    pq.write_table(pa.table({"prompt": ["a", "b", "c", "d"], "answer": times}), tmp_path / "time.parquet")
    rows, mistakes = read(tmp_path / "time.parquet")
    assert [row.answer for row in rows] == [None]
    told = [mistake.removeprefix(f"{tmp_path / 'time.parquet'}, ") for mistake in mistakes]
    assert told[0].startswith("row 1: `answer` is of type datetime, where text, a number")
    assert told[1].startswith("row 2: has a value that cannot be read (")
    pq.write_table(pa.table({"prompt": pa.chunked_array([pa.array(["a"]), not_utf8])}), tmp_path / "text.parquet")
    (row,), (mistake,) = read(tmp_path / "text.parquet", fields={})
    assert row.place.endswith("row 1")
    assert mistake.startswith(f"{tmp_path / 'text.parquet'}, row 2: has a value that cannot be read (")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_number_of_parquet_that_is_none_is_refused(tmp_path: Path, value: float) -> None:
    pq.write_table(pa.table({"prompt": ["x"], "answer": [value]}), tmp_path / "a.parquet")
    _, (mistake,) = read(tmp_path / "a.parquet")
    assert mistake.endswith(f"`answer` is {value}, where a finite number is expected")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["x"])] * 3, ["prompt", "answer", "answer"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(PromptError, match=r"sources\.0\.fields: .*a\.parquet has more than one column `answer`"):
        read(tmp_path / "a.parquet")
    lines(tmp_path / "set" / "train.csv", "prompt,answer,answer", "x,1,2")
    with pytest.raises(PromptError, match=r"train\.csv has more than one column `answer`"):
        read(tmp_path / "set")


def test_a_folders_files_may_have_different_keys_and_are_named_each(tmp_path: Path) -> None:
    lines(tmp_path / "set" / "train-0.jsonl", '{"prompt": "a", "answer": "4"}')
    second = lines(tmp_path / "set" / "train-1.jsonl", '{"prompt": "b", "answer": 7, "difficulty": 1}', "[]")
    rows, (mistake,) = read(tmp_path / "set")
    assert [row.answer for row in rows] == ["4", "7"]
    assert mistake == f"{second}, line 2: is a list, where an object is expected"


def test_a_folders_json_may_be_one_list(tmp_path: Path) -> None:
    path = lines(tmp_path / "set" / "train.json", f"[{answered(LARGE)},", '{"prompt": "y"}]')
    (row,), mistakes = read(tmp_path / "set")
    assert (row.answer, row.place) == (LARGE, f"{path}, item 1")
    assert mistakes == [f"{path}, item 2: lacks `answer`; it has prompt (write null for unknown)"]
    path.write_text("[1")
    with pytest.raises(PromptError, match=r"sources\.0\.dataset: .*train\.json is not JSON"):
        read(tmp_path / "set")


def test_a_folders_csv_is_read_cell_by_cell(tmp_path: Path) -> None:
    path = lines(tmp_path / "set" / "train.csv", "prompt,answer", "a,", '"two\nlines, ""quoted""",1', "b", "c,2,3", "")
    rows, mistakes = read(tmp_path / "set")
    assert [(row.messages[0]["content"], row.answer) for row in rows] == [("a", None), ('two\nlines, "quoted"', "1")]
    assert mistakes == [
        f"{path}, line 5: has 1 cells, where the first line names 2 columns",
        f"{path}, line 6: has 3 cells, where the first line names 2 columns",
        f"{path}, line 7: is blank",
    ]


def test_a_gzipped_file_in_a_folder_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl.gz").write_bytes(gzip.compress(answered(LARGE).encode()))
    assert answers(tmp_path / "set") == [LARGE]


def test_a_split_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    lines(tmp_path / "set" / "test.jsonl", answered("1"))
    with pytest.raises(PromptError, match=r"has no split `train`; it has test\. Set `dataset_split`"):
        read(tmp_path / "set")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder"])
def test_a_system_message_in_a_field_is_used_or_refused_and_never_passed_over(tmp_path: Path, kind: str) -> None:
    rows = [{"prompt": "x", "answer": "1", "system": "Be brief."}, {"prompt": "y", "answer": "2", "system": None}]
    path = tmp_path / "set" / ("train.parquet" if kind == "parquet" else "train.jsonl")
    path.parent.mkdir()
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines(path, *map(json.dumps, rows))
    origin = path.parent if kind == "folder" else path
    (row,), (mistake,) = read(origin)
    assert row.messages == ({"role": "user", "content": "y"},)
    assert mistake.endswith(
        "1: `system` is used by no setting: name it in `fields.system`, or set the source's `system`"
    )
    named = {"answer": "answer", "system": "system"}
    told = [row.messages[0] for row in read(origin, fields=named)[0]]
    assert told == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "y"}]
    told = [row.messages[0]["content"] for row in read(origin, system="Think.")[0]]
    assert told == ["Think.", "Think."]
    (_,), (mistake,) = read(origin, fields=named, system="Think.")
    assert mistake.endswith("1: `system` has a system message, and so has the source (`system`)")


def test_a_line_that_is_a_list_makes_no_list_of_the_file(tmp_path: Path) -> None:
    path = lines(tmp_path / "set" / "train.jsonl", "[1]", answered("1"))
    for origin in (path, path.parent):
        (row,), (mistake,) = read(origin)
        assert (row.answer, mistake) == ("1", f"{path}, line 1: is a list, where an object is expected")
