"""Two clones and a folder between them: one machine writes and trains, the other scores, and nothing is done twice.

A clone is what git has: code, settings, dvc.lock and bigram models. Data goes through `dvc push` and `pull`; the files
that prompts are read from are on one machine alone.
"""

import shutil
from pathlib import Path

import pytest

from tests import dag, dvc_project
from tests.dvc_project import ran, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository without data, whose DVC remote is a folder."""
    folder = tmp_path_factory.mktemp("machines")
    project = dvc_project.new_project(folder / "origin", rounds={"r1": {"prev": "r0"}})
    config = (project / ".dvc/config").read_text().replace("no_scm = true", "remote = shared")
    (project / ".dvc/config").write_text(f'{config}[remote "shared"]\n    url = {folder / "remote"}\n')
    (project / ".gitignore").write_text((dag.ROOT / ".gitignore").read_text() + "*.jsonl\n")
    run(project, "git", "init", "-q", "-b", "main")
    commit(project)
    run(project, "git", "config", "receive.denyCurrentBranch", "updateInstead")
    return project


def commit(project: Path) -> None:
    run(project, "git", "add", "-A")
    run(project, "git", "commit", "-q", "-m", "state")


def clone(origin: Path, name: str) -> Path:
    run(origin.parent, "git", "clone", "-q", "origin", name)
    return origin.parent / name


def publish(project: Path) -> None:
    run(project, "dvc", "push")
    commit(project)
    run(project, "git", "push", "-q", "origin", "main")


def test_one_machine_scores_for_the_other_and_nothing_is_done_twice(origin):
    student, teacher = clone(origin, "student"), clone(origin, "teacher")
    for path in origin.glob("*.jsonl"):
        shutil.copy(path, student)
    before = {"models", "prompts", "teacher_rollouts", "sft", "refresh@r1"}
    assert set(ran(run(student, "dvc", "repro", "refresh@r1"))) == before
    publish(student)

    run(teacher, "git", "pull", "-q")
    assert not (teacher / "data").exists()
    assert ran(run(teacher, "dvc", "repro", "--pull", "--allow-missing", "score@r1")) == ["score@r1"]
    assert not (teacher / "data/teacher_rollouts").exists(), "what scoring does not read is not fetched"
    publish(teacher)

    run(student, "git", "pull", "-q")
    printed = run(student, "dvc", "repro", "--pull", "--allow-missing", "train@r1")
    assert ran(printed) == ["score_teacher@r1", "train@r1"]
    for views in ("teacher", "views"):
        assert dag.contents(student / "data/scores/r1" / views) == dag.contents(teacher / "data/scores/r1" / views)

    # The next round keeps shards whose scores the other machine made: they are found, not made again.
    dag.change(student, rounds__r2={"prev": "r1"})
    printed = run(student, "dvc", "repro", "--pull", "--allow-missing", "score@r2")
    assert ran(printed) == ["refresh@r2", "score@r2"]
    assert "refresh: 2 of 4 shards to write" in printed
    assert "view teacher: 2 of 4 shards to score" in printed
