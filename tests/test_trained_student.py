"""A student that comes trained (`sft.steps: 0`): nothing of SFT is asked for, written or read."""

import contextlib
from pathlib import Path

import pytest

from pipeline.engines.fake import BigramEngine
from pipeline.models.record import read_model
from pipeline.storage.manifest import read_manifest
from tests import dag

PASSED_THROUGH = {"steps": 0, "teacher": "models/teacher"}


def run(project: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run all stages of one round; the models that wrote, by their names."""
    wrote = []
    generate = BigramEngine.generate

    def note(self, *arguments):
        wrote.append(self.model.name)
        return generate(self, *arguments)

    monkeypatch.setattr(BigramEngine, "generate", note)
    with contextlib.chdir(project):
        dag.run(project)
    return wrote


def test_no_source_no_batch_and_no_learning_rate_are_needed_and_the_teacher_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dag.settings()
    sources = [source for source in settings["prompts"]["sources"] if source["split"] != "sft"]
    project = dag.new_project(
        tmp_path / "project", sft=PASSED_THROUGH, prompts=settings["prompts"] | {"sources": sources},
        rounds={"r1": {"prev": "r0"}},
    )  # fmt: skip
    run(project, monkeypatch)
    assert read_manifest(project / "data/teacher_rollouts/rollouts") == {}
    r0, student = (read_model(project / "data/models" / name) for name in ("r0", "student.json"))
    assert r0.tokenizer == student.tokenizer
    assert (project / "data/models/r1/model.safetensors").exists()


@pytest.mark.parametrize("reads", [False, True])
def test_prompts_of_sft_are_answered_where_a_view_reads_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    views = dag.settings()["score"]["views"]
    views["teacher"] |= {"teacher_rollouts": reads}
    project = dag.new_project(
        tmp_path / "project", sft=PASSED_THROUGH, score=dag.settings()["score"] | {"views": views},
        rounds={"r1": {"prev": "r0"}},
    )  # fmt: skip
    run(project, monkeypatch)
    assert bool(read_manifest(project / "data/teacher_rollouts/rollouts")) == reads


def test_a_view_that_begins_to_read_them_has_them_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = dag.new_project(tmp_path / "project", sft=PASSED_THROUGH, rounds={"r1": {"prev": "r0"}})
    run(project, monkeypatch)
    dag.change(project, score__views__teacher__teacher_rollouts=True)
    run(project, monkeypatch)
    assert read_manifest(project / "data/teacher_rollouts/rollouts")
    assert read_manifest(project / "data/scores/r1/of_teacher/teacher")
