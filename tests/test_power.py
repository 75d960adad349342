"""Stages that a power cut ends at some change to the project's files, against a project in which nothing was cut.

A trial's number decides stage and event. The stage runs in a process of its own (`tests/power.py`), in which what was
written and not synced is lost with it; then it runs again, here, and every file of its outputs is compared.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import dag
from tests.campaigns import trials
from tests.dag import Stage

pytestmark = [pytest.mark.slow, pytest.mark.campaign]

TRIALS = trials(300)
SHARES = 3


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[Stage, Path]]]:
    """A project in which everything ran, and each of its stages with the project as it was before."""
    made = tmp_path_factory.mktemp("power")
    project = dag.new_project(made / "project", rounds={"r1": {"prev": "r0"}})
    order = [stage for stage in dag.stages(project) if stage.name not in ("report", "inputs")]
    before = []
    with contextlib.chdir(project):
        for number, stage in enumerate(order):
            before.append((stage, shutil.copytree(project, made / str(number))))
            dag.run(project, order=[stage])
    return project, before


def start(project: Path, stage: Stage, event: int) -> "subprocess.CompletedProcess[str]":
    stage.delete_outs(project)
    argv = [sys.executable, "-m", "tests.power", str(event), *stage.argv[2:]]
    environment = os.environ | {"PYTHONPATH": str(dag.ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(argv, cwd=project, env=environment, capture_output=True, text=True, timeout=120)


def outputs(project: Path, stage: Stage) -> dict[str, dict[str, str]]:
    return {out: dag.contents(project / out) for out in stage.outs if not out.startswith("data/timings")}


def count_events(stage: Stage, project: Path) -> int:
    """Run a stage to its end; how many changes it makes."""
    counted = start(project, stage, -1)
    assert counted.returncode == 0, counted.stderr
    return int(counted.stdout.splitlines()[-1])


@pytest.mark.parametrize("share", range(SHARES))
def test_what_the_power_ended_runs_again_and_ends_equal(snapshots, share, tmp_path, monkeypatch):
    reference, before = snapshots
    events: dict[str, int] = {}
    for number in list(TRIALS)[share::SHARES]:
        draw = random.Random(number)
        stage, snapshot = draw.choice(before)
        if stage.name not in events:
            events[stage.name] = count_events(stage, shutil.copytree(snapshot, tmp_path / stage.name))
        event = draw.randint(1, events[stage.name])
        project = shutil.copytree(snapshot, tmp_path / str(number))
        ended = start(project, stage, event)
        assert ended.returncode == -signal.SIGKILL, f"trial {number}: {stage.name}, event {event}: {ended.stderr}"
        monkeypatch.chdir(project)
        dag.run(project, order=[stage])
        assert outputs(project, stage) == outputs(reference, stage), f"trial {number}: {stage.name}, event {event}"
        shutil.rmtree(project)
