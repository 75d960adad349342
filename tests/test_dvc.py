"""`dvc repro` on bigram models: everything once, then nothing, a killed stage resumed, and no file there twice."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from pipeline.storage.manifest import MANIFEST
from pipeline.storage.store import Store
from tests import dag, dvc_project, tiny_models
from tests.dvc_project import ran, run

pytestmark = pytest.mark.slow

LONG = {"engine": "fake", "sampling": {"temperature": 1.0, "max_tokens": 60}, "samples": 4}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards that are large beside the files that say what they are, as real ones."""
    score = dag.settings()["score"]
    views = {name: view | {"support": {"top_k": 24}} for name, view in score["views"].items()}
    return dvc_project.new_project(
        tmp_path_factory.mktemp("dvc") / "project",
        {"opd": 240, "sft": 16, "evaluation": 8},
        teacher_rollouts=LONG,
        refresh=LONG,
        score=score | {"views": views},
        evaluate=dag.settings()["evaluate"] | LONG,
        rounds={"r1": {"prev": "r0"}},
    )


@pytest.fixture(scope="module")
def killed(project: Path) -> tuple[str, int]:
    """What `dvc repro` printed after its `refresh` was killed in the middle, and how many shards that had written."""
    before = -1
    process = subprocess.Popen(
        ["dvc", "repro"], cwd=project, env=dvc_project.ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 300
        while (count := written(project)) < 2:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.002)
        stage = [child for child in psutil.Process(process.pid).children(recursive=True) if runs_refresh(child)]
        for each in stage:
            each.kill()
        before = written(project)
        assert process.wait(60) != 0, "DVC takes a killed stage for a finished one"
    finally:
        process.kill()
    assert count <= before < dag.BUCKETS
    return run(project, "dvc", "repro"), before


def written(project: Path) -> int:
    """Shards that `refresh` wrote and linked to its output."""
    return len(list((project / "data/rollouts/r1").glob("*.parquet")))


def runs_refresh(process: psutil.Process) -> bool:
    try:
        return "stages.refresh" in process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def test_after_a_kill_dvc_repro_goes_on_and_redoes_one_shard(killed):
    printed, before = killed
    assert ran(printed)[0] == "refresh@r1"
    assert f"refresh: {dag.BUCKETS - before} of {dag.BUCKETS} shards to write" in printed
    assert ran(printed)[-1] == "report"


def test_a_second_dvc_repro_runs_nothing(project, killed):
    printed = run(project, "dvc", "repro")
    assert ran(printed) == []
    assert re.search("Stage 'report' didn't change, skipping", printed)


def test_a_stage_that_is_forced_leaves_all_later_ones_alone(project, killed):
    printed = run(project, "dvc", "repro", "-f", "-s", "score@r1")
    assert "0 of 4 shards to score" in printed
    assert "score: nothing was made: all 8 files were found in the store" in printed
    assert ran(run(project, "dvc", "repro")) == []


def test_a_training_that_is_forced_says_that_it_found_its_checkpoint(project, killed):
    printed = run(project, "dvc", "repro", "-f", "-s", "train@r1")
    assert "train: nothing was made: all 1 files were found in the store" in printed


@pytest.fixture
def copy(project: Path, killed: tuple[str, int], tmp_path: Path) -> Path:
    """The finished project, with models that may be written."""
    copy = dag.copy(project, tmp_path / "project")
    shutil.rmtree(copy / "models")
    return shutil.copytree(project / "models", copy / "models").parent


def test_a_file_that_was_edited_runs_the_stages_that_read_it(copy):
    rows = dag.read_prompts(copy, "opd")
    dag.write_prompts(copy, "opd", [*rows, {"prompt": "one more: 9", "answer": "9", "hint": "none"}])
    printed = run(copy, "dvc", "repro", "prompts")
    assert ran(printed) == ["prompts"]
    assert "is empty" not in printed
    tiny_models.bigram(copy / "models/student", 9)
    (copy / "models/student/chat_template.jinja").write_text(dag.TEMPLATE)
    assert ran(run(copy, "dvc", "repro", "models")) == ["models"]


def test_a_grader_that_was_edited_grades_again(copy):
    for verdict in (True, False):
        (copy / "mine.py").write_text(f"def grade(response, answer):\n    return {verdict}\n")
        dag.change(copy, grade__grader="mine:grade")
        assert ran(run(copy, "dvc", "repro", "teacher_rollouts")) == ["teacher_rollouts"]
        grades = [pq.read_table(path) for path in (copy / "data/teacher_rollouts/grades").glob("*.parquet")]
        assert {correct for each in grades for correct in each.column("correct").to_pylist()} == {verdict}


def test_without_an_active_environment_the_stages_run_with_the_one_beside_them(copy):
    (copy / ".venv/bin").mkdir(parents=True)
    (copy / ".venv/bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (copy / ".venv/bin/python").chmod(0o755)
    command = [sys.executable, "-m", "dvc", "repro", "-f", "-s", "inputs"]
    ended = subprocess.run(
        command, cwd=copy, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_store_cache_and_workspace_have_each_shard_once(project, killed):
    """Files of one inode count once. The report has the size of its scripts, and manifests that of tiny shards."""
    no_shards = [*(project / "data/report").rglob("*"), *(project / "data").rglob(MANIFEST)]
    beside = {path.stat().st_ino for path in no_shards}
    everywhere: dict[int, int] = {}
    for folder in (".potstill", ".dvc/cache", "data"):
        for path in (project / folder).rglob("*"):
            found = path.stat()
            if path.is_file() and found.st_ino not in beside:
                everywhere[found.st_ino] = found.st_size
    files = [file for path in Store(project / ".potstill/store").entries() for file in all_files(path)]
    shards = sum({path.stat().st_ino: path.stat().st_size for path in files}.values())
    assert sum(everywhere.values()) <= 1.05 * shards
    in_data = {path.stat().st_ino for path in (project / "data").rglob("*.parquet")}
    in_cache = {path.stat().st_ino for path in (project / ".dvc/cache").rglob("*")}
    assert in_data <= in_cache
    assert in_data <= {path.stat().st_ino for path in files}


def all_files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
