"""What each stage reads, changed by a byte that no library looks at: the stage ends before it uses any of it."""

import contextlib
from pathlib import Path

import pytest

from pipeline.errors import ShardError
from tests import dag
from tests.dag import Stage

READ = [
    ("teacher_rollouts", "data/prompts/sft"),
    ("sft", "data/teacher_rollouts/rollouts"),
    ("sft", "data/teacher_rollouts/grades"),
    ("refresh@r2", "data/prompts/opd"),
    ("refresh@r2", "data/rollouts/r1"),
    ("score@r2", "data/rollouts/r2"),
    ("score@r2", "data/prompts/opd"),
    ("score@r2", "data/grades/r2"),
    ("score@r2", "data/scores/r1/teacher"),
    ("score@r2", "data/scores/r1/views/hinted"),
    ("train@r2", "data/rollouts/r2"),
    ("train@r2", "data/prompts/opd"),
    ("train@r2", "data/grades/r2"),
    ("train@r2", "data/scores/r2/teacher"),
    ("evaluate@r2", "data/prompts/evaluation"),
    ("report", "data/prompts/opd"),
    ("report", "data/rollouts/r2"),
    ("report", "data/grades/r1"),
    ("report", "data/scores/r2/views/hinted"),
]
CHECKPOINTS = [("refresh@r2", "data/models/r1"), ("train@r1", "data/models/r0"), ("report", "data/models/r2")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Stage]]:
    """A project in which two rounds ran, and its stages by name."""
    project = dag.new_project(tmp_path_factory.mktemp("finished") / "project")
    order = dag.stages(project)
    with contextlib.chdir(project):
        dag.run(project, order=order)
    return project, {stage.name: stage for stage in order}


@pytest.fixture
def project(finished, tmp_path, monkeypatch) -> Path:
    copy = dag.copy(finished[0], tmp_path / "project")
    monkeypatch.chdir(copy)
    return copy


def change(path: Path, old: bytes, new: bytes) -> None:
    whole = path.read_bytes()
    assert old in whole
    path.unlink()  # the finished project has the inode, too
    path.write_bytes(whole.replace(old, new))


@pytest.mark.parametrize(("stage", "folder"), READ)
def test_a_stage_compares_the_shards_that_it_reads(stage, folder, project, finished):
    shard = min((project / folder).glob("*.parquet"))
    change(shard, b"parquet-cpp-arrow", b"Parquet-cpp-arrow")  # who wrote the file: all readers take it
    finished[1][stage].delete_outs(project)
    with pytest.raises(ShardError, match=f"{folder}/{shard.name} is cut off or damaged"):
        finished[1][stage].run()


@pytest.mark.parametrize(("stage", "folder"), CHECKPOINTS)
def test_a_stage_compares_every_file_of_a_checkpoint_that_it_reads(stage, folder, project, finished):
    change(project / folder / "history.csv", b"step", b"Step")
    finished[1][stage].delete_outs(project)
    with pytest.raises(ShardError, match=rf"{folder}/history\.csv has another content"):
        finished[1][stage].run()
