"""Prompts that a person takes for the same, or does not, against what becomes of them: kept, joined, refused, moved."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PromptError
from pipeline.prompts.collect import choose_bucket, collect_prompts
from pipeline.settings.prompts import Prompts, Split

QUESTION = 'What is "12 + 3" in café no. 7?'
OTHER_SPELLINGS = {
    "spaces": 'What  is\t"12 + 3"\nin café no. 7? ',
    "no-break space": 'What\u00a0is "12 + 3" in café no. 7?',
    "spaces beside signs": 'What is "12+3" in café no. 7 ?',
    "decomposed": 'What is "12 + 3" in cafe\u0301 no. 7?',
    "full width": 'What is "１２ + ３" in café no. ７？',
    "zero width": 'What is "1\u200b2 + 3" in ca\u2060fé no. 7?',
    "byte order mark": '\ufeffWhat is "12 + 3" in café no. 7?',
    "soft hyphen": 'What is "12 + 3" in ca\u00adfé no. 7?',
    "direction marks": '\u202aWhat is "12 + 3"\u202c in café no. 7?\u200e',
    "variation selector": 'What is "12 + 3" in café no. 7\ufe0e?',
    "control character": 'What is "12 + 3"\x01 in café no. 7?',
    "curly quotes": "What is “12 + 3” in café no. 7?",
    "mathematical font": 'What is "𝟏𝟐 + 𝟑" in café no. 7?',
}
IN_OTHER_WORDS = {
    "case": 'what is "12 + 3" in CAFÉ no. 7?',
    "superscript": 'What is "12 + ³" in café no. 7?',
    "text behind": f"{QUESTION}\n\nThink step by step.",
    "text before": f"Answer the following. {QUESTION}",
}
OTHERS = ['What is "123" in café no. 7?', 'What is "1 2 + 3" in café no. 7?', 'What is "12 − 3" in café no. 7?']

spelled = pytest.mark.parametrize("text", OTHER_SPELLINGS.values(), ids=list(OTHER_SPELLINGS))


def settings(folder: Path, more: dict[str, Any], **others: Any) -> Prompts:
    """Forty prompts of each split, and more."""
    sources = []
    for split in ("sft", "opd", "evaluation"):
        rows = [{"prompt": f"{split} {number}", "answer": str(number)} for number in range(40)] + more.get(split, [])
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"split": split, "path": str(folder / f"{split}.jsonl"), "fields": {"answer": "answer"}}
        sources.append(source)
    return Prompts.model_validate_json(json.dumps({"sources": sources, "buckets": 4, **others}))


def row(text: Any, answer: str = "15") -> dict[str, Any]:
    return {"prompt": text, "answer": answer}


@spelled
def test_a_prompt_in_another_spelling_is_a_duplicate_and_the_first_is_kept_as_it_was_written(
    tmp_path: Path, text: str
) -> None:
    for pair in ([QUESTION, text], [text, QUESTION]):
        found = collect_prompts(settings(tmp_path, {"opd": [row(each) for each in pair]}))["opd"]
        assert len(found) == 41
        assert {prompt.messages[0]["content"] for prompt in found} & {*pair} == {pair[0]}


@spelled
def test_a_prompt_in_another_spelling_with_another_answer_is_refused_with_both_places(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "opd.jsonl"
    told = f"{path}, line 42: the prompt of {path}, line 41 in another spelling, but with answer '16' not '15'"
    with pytest.raises(PromptError) as caught:
        collect_prompts(settings(tmp_path, {"opd": [row(QUESTION), row(text, "16")]}))
    assert told in str(caught.value)
    assert "`prompts.contradictions: drop`" in str(caught.value)


@pytest.mark.parametrize("split", ["sft", "opd"])
@pytest.mark.parametrize("text", [*OTHER_SPELLINGS.values(), *IN_OTHER_WORDS.values()])
def test_an_evaluation_prompt_in_other_words_is_in_no_training(tmp_path: Path, split: Split, text: str) -> None:
    more = {"evaluation": [row(QUESTION)], split: [row(text, "none")]}
    found = collect_prompts(settings(tmp_path, more))
    assert (len(found[split]), len(found["evaluation"])) == (40, 41)


@pytest.mark.parametrize("place", [0, 2])
def test_an_evaluation_prompt_is_found_in_any_turn(tmp_path: Path, place: int) -> None:
    talk = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    talk[place]["content"] = QUESTION
    assert len(collect_prompts(settings(tmp_path, {"evaluation": [row(QUESTION)], "sft": [row(talk)]}))["sft"]) == 40


@pytest.mark.parametrize("text", [*OTHERS, "Why?"])
def test_other_prompts_stay_whatever_they_share_with_one_of_the_evaluation(tmp_path: Path, text: str) -> None:
    last = [
        {"role": "user", "content": "Be brief."},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Why?"},
    ]
    found = collect_prompts(settings(tmp_path, {"evaluation": [row(QUESTION), row(last)], "opd": [row(text, "16")]}))
    assert text in [prompt.messages[0]["content"] for prompt in found["opd"]]


@pytest.mark.parametrize("text", [*OTHERS, IN_OTHER_WORDS["case"], IN_OTHER_WORDS["superscript"]])
def test_prompts_that_may_mean_something_else_neither_join_nor_contradict(tmp_path: Path, text: str) -> None:
    assert len(collect_prompts(settings(tmp_path, {"opd": [row(QUESTION), row(text, "16")]}))["opd"]) == 42


def test_prompts_that_differ_in_case_alone_are_on_one_side_of_the_validation_split(tmp_path: Path) -> None:
    pairs = [(f"Which word is number {number}?", f"WHICH word is number {number}?") for number in range(40)]
    found = collect_prompts(settings(tmp_path, {"opd": [row(text) for pair in pairs for text in pair]}))["opd"]
    bucket = {prompt.messages[0]["content"]: (prompt.bucket, prompt.split) for prompt in found}
    assert all(bucket[one] == bucket[other] for one, other in pairs)
    assert len({bucket[one] for one, _ in pairs}) == 4
    ids = {prompt.messages[0]["content"]: prompt.prompt_id for prompt in found}
    assert all(bucket[one][0] == choose_bucket(min(ids[one], ids[other]), 4) for one, other in pairs)


def test_contradictions_are_left_out_where_the_settings_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = [row(QUESTION), row(f" {QUESTION}", "16"), row("opd 3", "3")]
    with caplog.at_level("INFO"):
        found = collect_prompts(settings(tmp_path, {"opd": more}, contradictions="drop"))["opd"]
    assert len(found) == 40
    counted = "43 rows, 2 duplicates, 1 that contradict themselves and 0 evaluation prompts left out"
    assert f"opd: 40 prompts ({counted})" in caplog.messages


def test_an_evaluation_prompt_that_contradicts_itself_is_in_no_training_either(tmp_path: Path) -> None:
    more = {"evaluation": [row(QUESTION), row(QUESTION, "16")], "sft": [row(QUESTION)]}
    assert len(collect_prompts(settings(tmp_path, more, contradictions="drop"))["sft"]) == 40
