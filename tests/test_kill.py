"""Killed in the middle and run again, a stage redoes one shard or a few steps, and ends as an undisturbed run does.

The stage is a process of its own and gets SIGKILL as soon as the store shows that it is under way. It runs again in
this process, where what it makes is counted; every file of its outputs is compared with those of a project in
which nothing was killed. fp32 on one CPU: equal means equal bit for bit.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.storage.store import Store
from pipeline.training.module import Distillation
from pipeline.training.states import read_step
from tests import dag
from tests.dag import Stage

pytestmark = pytest.mark.slow

STEPS = 120
LONG = {"sampling": {"temperature": 1.0, "max_tokens": 48}, "samples": 4}
TRAINING = {"batch": 8, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Stage]]:
    """A project with enough shards and steps to be killed among, in which everything ran, and its stages."""
    settings = dag.settings()
    project = dag.new_project(
        tmp_path_factory.mktemp("undisturbed") / "project",
        {"opd": 120, "sft": 120, "evaluation": 8},
        prompts=settings["prompts"] | {"buckets": 12},
        teacher_rollouts=settings["teacher_rollouts"] | LONG,
        refresh={**LONG, "engine": "fake"},
        sft={"steps": 4, **TRAINING},
        train={"objective": "topk_reverse_kl", "steps": STEPS, **TRAINING},
        rounds={"r1": {"prev": "r0"}},
    )
    order = dag.stages(project)
    with contextlib.chdir(project):
        dag.run(project, order=order)
    return project, order


@pytest.fixture
def project(undisturbed, tmp_path, monkeypatch) -> Path:
    """The same project before anything ran."""
    copy = dag.copy(undisturbed[0], tmp_path / "project")
    for made in ("data", ".potstill"):
        (copy / made).rename(copy.parent / made)
    monkeypatch.chdir(copy)
    return copy


def start(project: Path, stage: Stage) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, *stage.argv[1:]],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(dag.ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@contextlib.contextmanager
def as_soon_as(process: "subprocess.Popen[bytes]", happened: Callable[[], bool]) -> Iterator[None]:
    """Wait until it happened while the process still runs; the process is gone after the block."""
    try:
        until = time.monotonic() + 120
        while not happened():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < until
            time.sleep(0.001)
        yield
    finally:
        process.kill()
        process.wait()


def run_before(project: Path, order: list[Stage], name: str) -> Stage:
    """Run all that comes before a stage."""
    before = [stage for stage in order if stage.name != "report"]
    place = [stage.name for stage in before].index(name)
    dag.run(project, order=before[:place])
    return before[place]


def finished_shards(project: Path) -> dict[Path, int]:
    """The inodes of what the store holds, by path."""
    return {path: path.stat().st_ino for path in Store(project / ".potstill/store").entries()}


def states(project: Path) -> list[Path]:
    return sorted((project / ".potstill/training").glob("*/step-*.ckpt"))


def outputs(project: Path, stage: Stage) -> dict[str, dict[str, str]]:
    """Of every file but the seconds it took."""
    return {out: dag.contents(project / out) for out in stage.outs if not out.startswith("data/timings")}


@pytest.mark.parametrize("name", ["teacher_rollouts", "refresh@r1", "score@r1"])
def test_a_killed_stage_redoes_one_shard(name, project, undisturbed):
    reference, order = undisturbed
    stage = run_before(project, order, name)
    before = finished_shards(project)
    process = start(project, stage)
    with as_soon_as(process, lambda: len(finished_shards(project)) >= len(before) + 2):
        process.kill()
    kept = finished_shards(project)
    made = dag.total(dag.run(project, order=[stage]))
    made.pop("grade", None)
    shards = {"teacher_rollouts": 12, "refresh@r1": 12, "score@r1": 2 * 12}[name]
    assert 2 <= len(kept) - len(before) < shards, "it was killed in the middle"
    assert made.total() == shards - (len(kept) - len(before))
    assert kept.items() <= finished_shards(project).items()
    assert outputs(project, stage) == outputs(reference, stage)


@pytest.mark.parametrize(("sent", "save_every"), [(signal.SIGKILL, 4), (signal.SIGTERM, 50)])
def test_a_killed_training_goes_on_from_its_last_state(sent, save_every, project, undisturbed, monkeypatch):
    """SIGTERM has it save one more state, where it is; save_every changes no number."""
    reference, order = undisturbed
    dag.change(project, train__save_every=save_every)
    stage = run_before(project, order, "train@r1")
    process = start(project, stage)
    with as_soon_as(process, lambda: bool(states(project))):
        sent_at = time.time_ns()
        process.send_signal(sent)
        process.wait(60)
    assert process.returncode in (-signal.SIGKILL, 128 + signal.SIGTERM)
    assert not (project / "data/models/r1").exists()
    saved = states(project)[-1]
    last = read_step(saved)
    assert save_every <= last < STEPS, "it was killed in the middle"
    assert sent == signal.SIGKILL or saved.stat().st_mtime_ns > sent_at
    steps = count_steps(monkeypatch)
    dag.run(project, order=[stage])
    assert len(steps) == STEPS - last
    assert outputs(project, stage) == outputs(reference, stage)
    assert not states(project)


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets an entry with each optimiser step."""
    steps: list[int] = []
    original = Distillation.training_step

    def training_step(self: Distillation, packs, number: int) -> None:
        steps.append(len(self.history) + 1)
        original(self, packs, number)

    monkeypatch.setattr(Distillation, "training_step", training_step)
    return steps
