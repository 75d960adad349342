"""Fingerprints that must not change by accident: one for each stage, from facts written down here.

Each pins how a stage's identity is put together. Where one changes, every shard that users have of that stage is made
again; so if it changes on purpose, raise the stage's VERSION, say so in the commit, and pin the new one.
"""

import pyarrow as pa
import pytest

from pipeline.grading.write import Grading
from pipeline.models.record import Model
from pipeline.rollouts.write import Writing, identify_rollouts
from pipeline.scoring.plan import identify_scores
from pipeline.scoring.reading import read_bucket
from pipeline.settings import params
from pipeline.settings.models import Demo, EngineSettings, Sampling, TinyModel, Training
from pipeline.settings.recipe import load_recipe
from pipeline.settings.views import Hint, SupportSettings, View
from pipeline.storage import hashing
from pipeline.storage.bucket import Bucket
from pipeline.storage.prompts import Prompt, write_prompts
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.shards import Writer
from pipeline.storage.store import Store
from pipeline.training.checkpoints import hash_shard, identify_checkpoint
from stages import models as models_stage
from stages import prompts as prompts_stage

MODEL = Model(
    name="owner/name@main", location="owner/name", commit="c0ffee", weights_hash="w", tokenizer="t", chat_template="c",
    vocabulary=10, tokens=10, eos_ids=(0,), context=64, parameters=None,
)  # fmt: skip
PROMPT = Prompt("p0", "all", ({"role": "user", "content": "1+1"},), "2", "one and one", 0, "opd")
SAMPLING = Sampling(max_tokens=8)


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "prompts.parquet"
    write_prompts(path, {"stage": "prompts"}, {}, [PROMPT])
    return path


@pytest.fixture
def rollout_shard(tmp_path):
    path = tmp_path / "rollouts.parquet"
    row = {
        "rollout_id": "r", "prompt_id": "p0", "sample": 0, "source": "student", "behaviour": "w", "written_in": "r1",
        "prompt_ids": [1, 2], "response_ids": [3, 0], "behaviour_logprobs": [-0.5, -0.25], "finish_reason": "stop",
        "text": "2", "sampling_logprobs": None, "behaviour_topk_ids": None, "segments": None,
    }  # fmt: skip
    with Writer(path, ROLLOUTS, {"stage": "refresh"}, {}) as writer:
        writer.write(pa.Table.from_pylist([row], ROLLOUTS))
    return path


def test_the_fingerprint_of_prompts():
    assert hashing.fingerprint(prompts_stage.identify_prompts([PROMPT])) == "198262e7bad6cd7017fedbbf96cc2e70"


def test_the_fingerprint_of_demo_models():
    size = TinyModel(layers=1, hidden=8, heads=2)
    learning = Training(steps=1, batch=1, learning_rate=1e-3)
    demo = Demo(teacher=size, student=size, examples=4, training=learning)
    assert hashing.fingerprint(models_stage.identify_demo_model(demo, "teacher")) == "f6e8459825741a5b4530878dc11fca09"


def test_the_fingerprint_of_rollouts(shard):
    writing = Writing(MODEL, EngineSettings(), SAMPLING, samples=1, seed=0)
    of_teacher = identify_rollouts("teacher_rollouts", 1, shard, writing)
    assert hashing.fingerprint(of_teacher) == "43e0a4a2eb85d0937500acaba64666aa"
    of_student = identify_rollouts("refresh", 1, shard, writing, round="r1")
    assert hashing.fingerprint(of_student) == "0731e98b31c1eef545629a951e8a0e73"


def test_the_fingerprint_of_grades(shard, rollout_shard):
    identity, _ = Grading(params.GradeSettings(grader="exact"), Store(shard.parent)).prepare(shard, rollout_shard)
    assert hashing.fingerprint(identity) == "a4be7f7661fc0ec776b4659e0b8cf662"


def test_the_fingerprint_of_scores(shard, rollout_shard):
    view = View(support=SupportSettings(top_k=4))
    settings = params.Score(views={"teacher": view})
    bucket = Bucket(rollout_shard, shard, shard.with_name("grades.parquet"))
    plain = identify_scores(read_bucket(bucket, [view]), view, MODEL, settings)
    assert hashing.fingerprint(plain) == "9924190ca22494d8deae379a5997a1c7"
    hinted = view.model_copy(update={"context": Hint()})
    assert (
        hashing.fingerprint(identify_scores(read_bucket(bucket, [hinted]), hinted, MODEL, settings))
        == "a918894ad590d3230ae92ef3ba059324"
    )


def test_the_fingerprint_of_checkpoints(rollout_shard):
    learning = Training(steps=1, batch=1, learning_rate=1e-3)
    data = {"0.parquet": hash_shard(Bucket(rollout_shard))}
    identity = identify_checkpoint("sft", 1, MODEL, load_recipe("sft"), learning, data=data)
    assert hashing.fingerprint(identity) == "ef0169ebbcf97fd36d1f0c8c97fb4110"
