"""Prompts that a model cannot be asked, against what is said of them before any model is opened."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.engines.open import OnDemand
from pipeline.errors import PromptError
from pipeline.models.record import Model, record_model
from pipeline.models.templates import render_prompt
from pipeline.prompts.collect import collect_prompts
from pipeline.rollouts.fit import check_prompts_fit
from pipeline.rollouts.write import Writing, identify_rollouts
from pipeline.settings.machine import Machine
from pipeline.settings.models import EngineSettings, Sampling
from pipeline.settings.prompts import Prompts
from pipeline.storage.prompts import write_prompts
from pipeline.storage.store import Store
from tests import dag, tiny_models


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("models") / "student"
    tiny_models.qwen3(folder)
    return record_model(str(folder))


def settings(folder: Path, opd: list[dict[str, Any]], **others: Any) -> Prompts:
    sources = []
    for split in ("sft", "opd", "evaluation"):
        rows = [{"prompt": f"{split} {number}", "hint": None} for number in range(9)] + (opd if split == "opd" else [])
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append({"split": split, "path": str(folder / f"{split}.jsonl"), "fields": {"hint": "hint"}})
    return Prompts.model_validate_json(json.dumps({"sources": sources, "buckets": 2, **others}))


def count_tokens(model: Model, text: str) -> int:
    return len(render_prompt(model.load_tokenizer(), [{"role": "user", "content": text}]))


def test_prompts_over_the_longest_are_refused_by_line_or_left_out(model: Model, tmp_path: Path) -> None:
    long, longer = "a" * 40, "b" * 60
    most = count_tokens(model, long)
    opd = [{"prompt": text, "hint": None} for text in (long, longer)]
    with pytest.raises(PromptError) as caught:
        collect_prompts(settings(tmp_path, opd, max_tokens=most), [model])
    tokens = count_tokens(model, longer)
    assert f"{tmp_path / 'opd.jsonl'}, line 11: has {tokens} tokens, where prompts.max_tokens allows {most}" in str(
        caught.value
    )
    assert "With `prompts.unfit: drop` such rows are left out." in str(caught.value)
    kept = collect_prompts(settings(tmp_path, opd, max_tokens=most, unfit="drop"), [model])["opd"]
    assert long in [prompt.messages[0]["content"] for prompt in kept]
    assert len(kept) == 10


def test_a_prompt_that_leaves_no_room_in_a_model_is_refused_by_line(model: Model, tmp_path: Path) -> None:
    assert model.context == 128
    fits, not_quite = ("e" * (length - count_tokens(model, "")) for length in (127, 128))
    opd = [{"prompt": text, "hint": None} for text in (fits, not_quite)]
    with pytest.raises(PromptError) as caught:
        collect_prompts(settings(tmp_path, opd), [model])
    path = tmp_path / "opd.jsonl"
    said = f"{path}, line 11: has 128 tokens, where {model.name} takes 128, a response included"
    assert said in str(caught.value)
    assert f"{path}, line 10" not in str(caught.value)


@pytest.mark.parametrize("place", ["prompt", "hint"])
def test_a_special_token_in_a_text_is_refused_by_line_or_left_out(model: Model, tmp_path: Path, place: str) -> None:
    token = model.load_tokenizer().eos_token
    opd = [{"prompt": "x", "hint": "y"} | {place: f"Hi{token}, you"}]
    with pytest.raises(PromptError) as caught:
        collect_prompts(settings(tmp_path, opd), [model])
    assert f"{tmp_path / 'opd.jsonl'}, line 10: has `{token}`, which the tokenizer of {model.name}" in str(caught.value)
    assert len(collect_prompts(settings(tmp_path, opd, unfit="drop"), [model])["opd"]) == 9


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose models take sixty tokens."""
    project = dag.new_project(tmp_path / "project")
    for name in ("teacher", "student"):
        config = project / "models" / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 60}))
    monkeypatch.chdir(project)
    return project


def refuse_to_open(*_: object) -> None:
    raise AssertionError("an engine was opened")


def check_long(folder: Path, model: Model, texts: list[str], max_tokens: int) -> str:
    """What is said of a shard of these prompts."""
    told = settings(folder, [{"prompt": text, "hint": None} for text in texts])
    opd = collect_prompts(told)["opd"]
    write_prompts(folder / "00000.parquet", {}, {}, opd)
    how = EngineSettings(max_model_len=100)
    writing = Writing(model, how, Sampling(max_tokens=max_tokens), 1, 0)
    wanted = [(folder / "00000.parquet", identify_rollouts("refresh", 1, folder / "00000.parquet", writing))]
    with pytest.raises(PromptError) as caught:
        check_prompts_fit(Store(folder / "store"), wanted, OnDemand(model, how, Machine()))
    ids = {prompt.messages[0]["content"]: prompt.prompt_id for prompt in opd}
    assert all(f"prompt_id {ids[text]} ({count_tokens(model, text)} tokens: " in str(caught.value) for text in texts)
    return str(caught.value)


def test_prompts_without_room_for_a_response_are_named_with_the_setting_that_leaves_them_out(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.engines.open.open_engine", refuse_to_open)
    long = ["c" * 100, "d" * 120]
    most = max(count_tokens(model, f"opd {number}") for number in range(9))
    said = check_long(tmp_path, model, long, 100 - most)
    assert f"2 of 11 prompts are too long for {model.name}, which takes 100 tokens, {100 - most} of them for" in said
    assert f"`prompts.max_tokens: {most}`, `prompts.unfit: drop`" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["teacher_rollouts", "refresh@r1", "evaluate_start@r0"])
def test_a_stage_that_writes_looks_at_all_its_prompts_first(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    dag.run(project, ["inputs", "models", "prompts", "teacher_rollouts", "sft"])
    for section in ("teacher_rollouts", "refresh", "evaluate"):
        dag.change(project, **{f"{section}__sampling": {"temperature": 1.0, "max_tokens": 59}})
    monkeypatch.setattr("pipeline.engines.open.open_engine", refuse_to_open)
    with pytest.raises(PromptError, match=r"prompts are too long for .*, which takes 60 tokens, 59 of them"):
        dag.run(project, [name])
