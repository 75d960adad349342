"""The score stage is planned once: what it opens, renders and hashes is counted, and a plan survives pickling.

The stage is the fake DAG's first round: four buckets, scored by the teacher on the plain prompt and with hints.
"""

import contextlib
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.engines import open as engines_open
from pipeline.engines.engine import Engine
from pipeline.engines.open import open_engine
from pipeline.errors import ModelError, ShardError
from pipeline.models.record import read_model
from pipeline.scoring import contexts
from pipeline.scoring.obtain import obtain_scores
from pipeline.scoring.plan import ScoreJob, ScorePlan, complete_job, plan_scores
from pipeline.scoring.write import write_scores
from pipeline.settings import params
from pipeline.settings.machine import Machine
from pipeline.storage import hashing
from pipeline.storage.bucket import list_buckets
from pipeline.storage.manifest import read_manifest
from pipeline.storage.shards import ShardReader
from pipeline.storage.store import Store
from tests import dag


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A project whose first round is written, and not scored."""
    twice = dag.settings()["refresh"] | {"samples": 2}  # so that rows share a context
    project = dag.new_project(tmp_path_factory.mktemp("plan") / "project", refresh=twice)
    stages = dag.stages(project)
    names = [stage.name for stage in stages]
    with contextlib.chdir(project):
        dag.run(project, order=stages[: names.index("score@r1")])
    return project, {stage.name: stage for stage in stages}


@pytest.fixture
def project(written, tmp_path, monkeypatch):
    """A copy of it, as the working directory."""
    copy = dag.copy(written[0], tmp_path / "project")
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def counted(monkeypatch) -> dict[str, Counter]:
    """How often each file is opened, each conversation rendered, each score identity hashed."""
    counts: dict[str, Counter] = {"opened": Counter(), "rendered": Counter(), "hashed": Counter()}

    def count(what, owner, name, key):
        original = getattr(owner, name)

        def counting(*arguments, **more):
            if (found := key(*arguments)) is not None:
                counts[what][found] += 1
            return original(*arguments, **more)

        monkeypatch.setattr(owner, name, counting)

    count("opened", pq, "ParquetFile", lambda path, *_: Path(path).stat().st_ino)
    count("rendered", contexts, "render_prompt", lambda _, messages: hashing.canonical(messages))
    count("hashed", hashing, "fingerprint", _of_score)
    return counts


def _of_score(identity: dict[str, Any]) -> str | None:
    return hashing.canonical(identity) if identity.get("stage") == "score" else None


def inodes(folder: Path) -> set[int]:
    """Of the shards below a folder: the store has the same files under other names."""
    return {path.stat().st_ino for path in folder.rglob("*.parquet")}


def test_each_file_is_opened_and_each_context_and_identity_made_as_seldom_as_can_be(written, project, counted):
    written[1]["score@r1"].run()
    rollouts, scores = inodes(project / "data/rollouts/r1"), inodes(project / "data/scores/r1")
    assert (len(rollouts), len(scores)) == (dag.BUCKETS, 2 * dag.BUCKETS)
    # Rollouts once to plan, and once to score: both views are of one model, and go through a bucket together.
    assert {counted["opened"][inode] for inode in rollouts} == {2}
    assert scores <= set(counted["opened"])
    assert max(counted["opened"].values()) == 2
    assert set(counted["rendered"].values()) == {1}
    assert set(counted["hashed"].values()) == {1}
    assert len(counted["hashed"]) == len(scores)


def test_a_run_that_finds_everything_renders_nothing_and_opens_rollouts_once(written, project, counted):
    written[1]["score@r1"].run()
    for counts in counted.values():
        counts.clear()
    written[1]["score@r1"].run()
    assert not counted["rendered"]
    assert {counted["opened"][inode] for inode in inodes(project / "data/rollouts/r1")} == {1}


def settings(**views) -> params.Score:
    given = {"teacher": {"support": {"top_k": 4}}, **views}
    return params.Score.model_validate({"engine": "fake", "views": given}, strict=False)


def planned(project: Path, of_views: params.Score, store: Store | None = None) -> ScorePlan:
    data = project / "data"
    buckets = list_buckets(data / "rollouts/r1", data / "prompts/opd", data / "grades/r1")
    teacher = read_model(data / "models/teacher.json")
    return plan_scores(of_views, dict.fromkeys(of_views.views, teacher), list(of_views.views), buckets, store)


MUTUAL = {
    "teacher": {"support": {"top_k": 4, "same_as": ["hinted"]}},
    "hinted": {"context": {"kind": "hint"}, "support": {"top_k": 3, "same_as": ["teacher"]}},
}


def write(path: Path, job: ScoreJob, engine: Engine) -> None:
    with ShardReader(job.bucket.rollouts) as rollouts:
        write_scores(path, job, lambda: engine, rollouts)


def test_the_shards_of_an_unpickled_plan_are_the_same_bytes(project, tmp_path):
    plan = planned(project, settings(**MUTUAL))
    carried = pickle.loads(pickle.dumps(plan))
    assert carried is not plan
    for number, each in enumerate((plan, carried)):
        with open_engine(each.views["teacher"][0].model, settings(), Machine()) as engine:
            first = []
            for name in ("teacher", "hinted"):
                first.append(tmp_path / f"{number}-first-{name}")
                write(first[-1], each.first_passes[name][0], engine)
            for name, asked in (("teacher", first[1]), ("hinted", first[0])):
                job = complete_job(each.views[name][0], [asked])
                write(tmp_path / f"{number}-{name}", job, engine)
    for name in ("first-teacher", "first-hinted", "teacher", "hinted"):
        assert (tmp_path / f"0-{name}").read_bytes() == (tmp_path / f"1-{name}").read_bytes()
        assert (tmp_path / f"0-{name}").stat().st_size


def test_views_that_ask_for_each_others_ids_are_planned_once_too(project, counted, tmp_path):
    of_views, store = settings(**MUTUAL), Store(tmp_path / "store")
    plan = planned(project, of_views, store)
    assert all(job.fingerprint is None for jobs in plan.views.values() for job in jobs)
    assert all(job.fingerprint is not None for jobs in plan.first_passes.values() for job in jobs)
    obtain_scores(plan, of_views, Machine(), store, {name: tmp_path / name for name in of_views.views})
    assert set(counted["rendered"].values()) == {1}
    assert set(counted["hashed"].values()) == {1}
    assert len(counted["hashed"]) == 4 * dag.BUCKETS


def test_views_that_tell_a_model_the_same_share_their_contexts(project, counted):
    hinted = {"context": {"kind": "hint"}, "support": {"top_k": 3}}
    plan = planned(project, settings(hinted=hinted, wide=hinted | {"support": {"top_k": 9}}))
    assert counted["rendered"]
    assert set(counted["rendered"].values()) == {1}
    for one, other in zip(plan.views["hinted"], plan.views["wide"], strict=True):
        assert one.contexts is other.contexts
        assert one.fingerprint != other.fingerprint


def opened_for(monkeypatch) -> list[str]:
    """The hashes of the records that engines are opened with."""
    hashes = []
    original = engines_open.open_engine
    monkeypatch.setattr(
        engines_open, "open_engine", lambda model, *more: hashes.append(model.weights_hash) or original(model, *more)
    )
    return hashes


def test_views_of_one_record_share_an_engine_and_those_of_two_do_not(project, tmp_path, monkeypatch):
    """Two records of one folder: the files can fit one of them alone, and each view is compared with its own."""
    hinted = {"context": {"kind": "hint"}, "support": {"top_k": 3}}
    of_views, data = settings(hinted=hinted), project / "data"
    teacher = read_model(data / "models/teacher.json")
    for other, wanted in ((teacher, 1), (teacher.model_copy(update={"weights_hash": "changed since"}), 2)):
        hashes, out = opened_for(monkeypatch), tmp_path / str(wanted)
        buckets = list_buckets(data / "rollouts/r1", data / "prompts/opd", data / "grades/r1")
        plan = plan_scores(of_views, {"teacher": teacher, "hinted": other}, ["teacher", "hinted"], buckets)
        with contextlib.suppress(ModelError):
            obtain_scores(plan, of_views, Machine(), Store(out / "store"), {name: out / name for name in plan.views})
        assert hashes == [teacher.weights_hash, other.weights_hash][:wanted]


def test_a_view_whose_context_changes_nothing_is_refused_before_another_model_is_opened(project, tmp_path, monkeypatch):
    """And what was made until then has its manifest: the next run finds it."""
    template = "{prompt}\n\nHint: {hint}"
    monkeypatch.setattr("pipeline.scoring.context_effect.LEAST_KL", 1e9)
    hinted = {"context": {"kind": "hint", "template": template}, "support": {"top_k": 3}}
    of_views, data = settings(hinted=hinted, other={"support": {"top_k": 2}, "target": False}), project / "data"
    teacher, student = read_model(data / "models/teacher.json"), read_model(data / "models/student.json")
    models = {"teacher": teacher, "hinted": teacher, "other": student}
    buckets = list_buckets(data / "rollouts/r1", data / "prompts/opd", data / "grades/r1")
    plan, hashes = plan_scores(of_views, models, list(models), buckets), opened_for(monkeypatch)
    with pytest.raises(ShardError, match="the context changes nothing"):
        obtain_scores(plan, of_views, Machine(), Store(tmp_path / "store"), {name: tmp_path / name for name in models})
    assert hashes == [teacher.weights_hash]
    assert read_manifest(tmp_path / "teacher")
    assert read_manifest(tmp_path / "hinted")
