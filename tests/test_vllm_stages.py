"""The stages on real vLLM, on a demo of a few dozen steps: against the same stages and engines on transformers.

What `refresh` wrote and `score` scored is compared with what `hf` says of the same tokens, both ways of scoring with
`hf` and with each other, and a stage whose engine was killed with one that nobody disturbed. All in fp32.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from pipeline.engines.engine import EngineUse, ScoreRequest
from pipeline.engines.open import open_engine
from pipeline.head.support import Support
from pipeline.models.record import Model, read_model, record_model
from pipeline.settings.machine import Machine, VllmMachine
from pipeline.settings.models import EngineSettings
from pipeline.storage.ragged import from_lists, from_nested_lists
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.scores import SCORES
from pipeline.storage.shards import list_shards, read_about, read_shard
from pipeline.storage.store import Store
from tests import dag
from tests.dag import Stage

pytestmark = [
    pytest.mark.usefixtures("one_process"),
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

BUCKETS = 8
RESPONSES = 200
MODEL = {"layers": 2, "hidden": 64, "heads": 2}
TRAINING = {"steps": 300, "batch": 32, "learning_rate": 3e-3, "warmup": 0.05}
SAMPLING = {"temperature": 1.0, "max_tokens": 48}
SETTINGS = {
    "models": {
        "teacher": "data/models/demo/teacher",
        "student": "data/models/demo/student",
        "demo": {"teacher": MODEL, "student": MODEL, "examples": 6400, "training": TRAINING},
    },
    "prompts": {
        "sources": [
            {"split": "sft", "sums": 1, "limit": 64},
            {"split": "opd", "sums": 2, "limit": RESPONSES},
            {"split": "evaluation", "sums": 3, "limit": 8},
        ],
        "buckets": BUCKETS,
    },
    "teacher_rollouts": {"engine": "hf", "sampling": SAMPLING},
    "sft": {**TRAINING, "steps": 100},
    "refresh": {"engine": "vllm", "sampling": SAMPLING, "behaviour_top_k": 4},
    "score": {
        "engine": "vllm",
        "views": {
            "teacher": {"support": {"top_k": 8}},
            "student": {"model": "student", "target": False, "support": {"same_as": ["teacher"], "behaviour": True}},
        },
    },
    "rounds": {"r1": {"prev": "r0"}},
}
MACHINE = Machine(vllm=VllmMachine(enforce_eager=True))


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> tuple[Path, list[Stage]]:
    """A project whose rollouts vLLM wrote and scored, and its stages up to there."""
    project = dag.new_project(tmp_path_factory.mktemp("scored") / "project", **SETTINGS)
    (project / ".potstill").mkdir()
    (project / ".potstill/machine.yaml").write_text(MACHINE.model_dump_json())
    order = [stage for stage in dag.stages(project) if "@r0" not in stage.name]
    order = order[: [stage.name for stage in order].index("score@r1") + 1]
    with contextlib.chdir(project):
        dag.run(project, order=order)
    return project, order


@pytest.fixture(scope="module")
def sequences(scored) -> list[ScoreRequest]:
    """The rollouts of round 1."""
    tables = [
        read_shard(path, ROLLOUTS, ["prompt_ids", "response_ids"])
        for path in list_shards(scored[0] / "data/rollouts/r1", "refresh")
    ]
    return [
        ScoreRequest(prompt, response)
        for table in tables
        for prompt, response in zip(*(from_lists(table[name]) for name in table.column_names), strict=True)
    ]


@pytest.fixture(scope="module")
def teacher(scored) -> Model:
    return record_model(str(scored[0] / "data/models/demo/teacher"))


@pytest.fixture(scope="module")
def truth(teacher, sequences) -> np.ndarray:
    """Every log-probability of the teacher at every response token."""
    return by_hf(teacher, sequences)


def by_hf(model: Model, sequences: list[ScoreRequest]) -> np.ndarray:
    """Every log-probability at every response token, [T, vocabulary]."""
    with open_engine(model, EngineSettings(), MACHINE) as engine:
        scores = engine.score(sequences, Support(model.vocabulary))
    ids = scores.ids.values.reshape(-1, model.vocabulary)
    whole = np.empty(ids.shape, np.float64)
    np.put_along_axis(whole, ids, scores.logprobs.values.reshape(ids.shape).astype(np.float64), axis=1)
    return whole


def sampled(truth: np.ndarray, sequences: list[ScoreRequest]) -> np.ndarray:
    return truth[np.arange(len(truth)), np.concatenate([one.response_ids for one in sequences])]


def outside(row: np.ndarray, ids: np.ndarray) -> float:
    """Log mass of the ids that are not these."""
    return float(np.logaddexp.reduce(np.delete(row, ids)))


def entropies(truth: np.ndarray) -> np.ndarray:
    return -(np.exp(truth) * truth).sum(axis=1)


def column(project: Path, folder: str, name: str, schema: pa.Schema = SCORES) -> np.ndarray:
    """A list column of a folder's shards, end to end."""
    paths = list_shards(project / folder, "score")
    return np.concatenate([from_lists(read_shard(path, schema, [name])[name]).values for path in paths])


def ids_of(project: Path, folder: str, name: str, schema: pa.Schema = SCORES) -> list[np.ndarray]:
    """A column of ids of a folder's shards, token by token."""
    tables = [read_shard(path, schema, [name]) for path in list_shards(project / folder, "score")]
    return [ids for table in tables for ids in from_nested_lists(table[name])[1]]


def test_refresh_keeps_the_probabilities_that_its_student_has(scored, sequences):
    project, _ = scored
    student = by_hf(read_model(project / "data/models/r0"), sequences)
    behaviour = column(project, "data/rollouts/r1", "behaviour_logprobs", ROLLOUTS)
    assert len(sequences) == RESPONSES
    np.testing.assert_allclose(behaviour, sampled(student, sequences), atol=1e-4)
    assert np.exp(behaviour).mean() > 0.5, "where nothing was learned, nothing but flat distributions is compared"


def test_score_writes_what_hf_says(scored, sequences, truth):
    project, _ = scored
    folder = "data/scores/r1/teacher"
    np.testing.assert_allclose(column(project, folder, "sampled_logprobs"), sampled(truth, sequences), atol=1e-4)
    np.testing.assert_allclose(column(project, folder, "entropies"), entropies(truth), atol=1e-4)
    assert (column(project, folder, "own") == 8).all()


def test_score_gives_the_students_view_of_the_ids_that_others_keep(scored, sequences):
    """`same_as` and `behaviour`: the teacher's eight and the four of who wrote, each once."""
    project, _ = scored
    student = by_hf(read_model(project / "data/models/r0"), sequences)
    folder = "data/scores/r1/views/student"
    kept = ids_of(project, folder, "support_ids")
    asked = zip(
        ids_of(project, "data/scores/r1/teacher", "support_ids"),
        ids_of(project, "data/rollouts/r1", "behaviour_topk_ids", ROLLOUTS),
        strict=True,
    )
    assert [sorted(ids) for ids in kept] == [sorted({*ids, *others}) for ids, others in asked]
    expected = [outside(row, ids) for row, ids in zip(student, kept, strict=True)]
    np.testing.assert_allclose(column(project, folder, "tail_logprobs"), expected, atol=1e-4)


def test_both_ways_agree_with_hf_on_the_rollouts(teacher, sequences, truth):
    assert np.exp(sampled(truth, sequences)).mean() > 0.5, "as peaked as a trained model's"
    settings = EngineSettings(engine="vllm")
    for way in ("hidden_states", "prompt_logprobs"):
        with open_engine(teacher, settings, MACHINE, EngineUse(way, 8)) as engine:
            scores = engine.score(sequences, Support(8))
        np.testing.assert_allclose(scores.sampled_logprobs, sampled(truth, sequences), atol=1e-4)
        kept = scores.ids.values.reshape(-1, 8)
        # Each id is as likely as the one of its rank: two lists differ among tied ids, and nowhere else.
        np.testing.assert_allclose(np.take_along_axis(truth, kept, axis=1), -np.sort(-truth, axis=1)[:, :8], atol=1e-4)
        tails = [outside(row, ids) for row, ids in zip(truth, kept, strict=True)]
        if way == "hidden_states":
            assert scores.entropies is not None
            np.testing.assert_allclose(scores.tail_logprobs, tails, atol=1e-4)
            np.testing.assert_allclose(scores.entropies, entropies(truth), atol=1e-4)
        else:
            np.testing.assert_allclose(np.exp(scores.tail_logprobs), np.exp(tails), atol=5e-5)


@pytest.mark.parametrize("name", ["refresh@r1", "score@r1"])
def test_finished_shards_are_kept_when_the_engine_dies(name, scored, tmp_path, monkeypatch):
    """The process of vLLM's gets SIGKILL once the stage has finished a shard: the next run makes what is missing."""
    reference, order = scored
    stage = next(stage for stage in order if stage.name == name)
    project = dag.copy(reference, tmp_path / "project")
    store = Store(project / ".potstill/store")
    for path in store.entries():
        if path.suffix == ".parquet" and read_about(path)["identity"]["stage"] in ("refresh", "score"):
            path.with_name(f"{path.name}.entry.json").unlink()
            path.unlink()
    monkeypatch.chdir(project)
    if name == "score@r1":
        for path in list_shards(project / "data/rollouts/r1", "refresh"):
            store.adopt(path)
    stage.delete_outs(project)
    before = {path: path.stat().st_ino for path in store.entries()}
    environment = {key: value for key, value in os.environ.items() if key != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    process = subprocess.Popen(
        [sys.executable, *stage.argv[1:]], cwd=project, env=environment | {"PYTHONPATH": str(dag.ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while len(store.entries()) == len(before):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.001)
        for child in psutil.Process(process.pid).children(recursive=True):
            if "EngineCore" in child.name():
                child.kill()
        told = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 1
    assert "vLLM's process died" in told
    assert "Traceback" not in told
    kept = {path: path.stat().st_ino for path in store.entries()}
    assert before.items() < kept.items()
    made = dag.total(dag.run(project, order=[stage]))
    made.pop("grade", None)
    assert 0 < made.total() == {"refresh@r1": BUCKETS, "score@r1": 2 * BUCKETS}[name] - (len(kept) - len(before))
    assert kept.items() < {path: path.stat().st_ino for path in store.entries()}.items()
    for out in (out for out in stage.outs if not out.startswith("data/timings")):
        assert set(dag.contents(project / out)) == set(dag.contents(reference / out))
