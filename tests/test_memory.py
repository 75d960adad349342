"""Peak memory of each stage's work over some rows and over a hundred times as many, each in a process of its own.

Models are replaced by arrays of the right size: what is measured is what the pipeline holds. All data of the larger run
is several times as large as the processes, so a stage that held it would be seen; the last test is such a stage.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import measure
from pipeline.engines.engine import Response
from pipeline.grading import write as grade_writing
from pipeline.grading.write import Grading
from pipeline.rollouts import write as writing
from pipeline.rollouts.write import Author, write_rollouts
from pipeline.scoring.plan import plan_scores
from pipeline.scoring.write import write_scores
from pipeline.settings import params
from pipeline.settings.machine import Machine
from pipeline.settings.models import Training
from pipeline.settings.views import SupportSettings, View
from pipeline.storage.bucket import Bucket
from pipeline.storage.prompts import Prompt, read_prompts, write_prompts
from pipeline.storage.ragged import Ragged
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.scores import SCORES, Scores, make_score_table
from pipeline.storage.shards import ShardReader, Writer, read_shard
from pipeline.storage.store import Store

PROMPTS, MORE = 64, 100
TOKENS, K = 150, 32
TEXT = "so " * 3000
RESPONSE = (np.arange(TOKENS) % 30 + 4).astype(np.int32)
VIEW = View(support=SupportSettings(top_k=K))

pytestmark = pytest.mark.slow


class Model:
    """What is asked of a model and of its tokenizer, without transformers, which would outweigh the data."""

    name = weights_hash = location = commit = "model"

    def load_tokenizer(self):
        return self

    def apply_chat_template(self, messages, **_):
        return [len(messages)]

    def batch_decode(self, responses, **_):
        return ["a" * len(response) for response in responses]


class Arrays:
    """An engine, and what opens it, that computes nothing."""

    tail = "exact"
    model = Model()

    def open(self):
        return self

    def generate(self, requests, sampling, top_k=0, progress=None):  # noqa: ARG002
        ids = np.tile(np.arange(top_k, dtype=np.int32), (TOKENS, 1))
        return [
            Response(RESPONSE.copy(), np.full(TOKENS, -1, np.float32), None, ids.copy(), "length") for _ in requests
        ]

    def score(self, requests, support, progress=None):  # noqa: ARG002
        count = sum(len(request.response_ids) for request in requests)
        equal, counts = np.full(count * K, -np.log(K + 1), np.float32), np.full(count, K)
        ids = Ragged.cut(np.tile(np.arange(K, dtype=np.int32), count), counts)
        return Scores(equal[:count], ids, Ragged.cut(equal, counts), counts.astype(np.uint16), equal[:count], None)


ENGINE: Any = Arrays()


def refresh(folder: Path, times: int) -> None:
    """Write rollouts."""
    writing.AT_ONCE = PROMPTS
    identity = {"sampling": {"max_tokens": TOKENS}, "rows": {"samples": times}, "seed": 0, "engine": {"engine": "fake"}}
    author = Author(ENGINE, "student", top_k=K)
    write_rollouts(folder / f"written-{times}", identity, read_prompts(folder / "prompts"), author)


def grade(folder: Path, times: int) -> None:
    """Grade long responses."""
    grade_writing.AT_ONCE = PROMPTS
    with Grading(params.GradeSettings(grader="exact"), Store(folder / "store")) as grading:
        _, make = grading.prepare(folder / "prompts", folder / f"long-{times}")
        make(folder / f"grades-{times}")


def score(folder: Path, times: int) -> None:
    """Plan and score rollouts."""
    settings = params.Score(engine="fake", views={"teacher": VIEW}, entropies=False)
    bucket = Bucket(folder / f"rollouts-{times}", folder / "prompts")
    plan = plan_scores(settings, {"teacher": ENGINE.model}, ["teacher"], [bucket])
    with ShardReader(bucket.rollouts) as rollouts:
        write_scores(folder / f"made-{times}", plan.views["teacher"][0], lambda: ENGINE, rollouts)


def train(folder: Path, times: int) -> None:
    """Load every row for a training step."""
    from pipeline.settings.recipe import load_recipe
    from pipeline.storage.bucket import Bucket
    from pipeline.training import rows as training_rows  # brings torch, which the other stages do without
    from pipeline.training.loader import Loader
    from pipeline.training.rows import Rows

    training_rows.WINDOW = 1
    recipe = load_recipe("topk_reverse_kl")
    rows = Rows([Bucket(folder / f"rollouts-{times}", scores={"teacher": folder / f"scores-{times}"})], recipe)
    for packs in Loader(rows, Training(steps=times, batch=PROMPTS, learning_rate=1.0), Machine()):
        assert len(packs[0][1].targets) == 1


def holds_everything(folder: Path, times: int) -> None:
    """What no stage may do."""
    assert read_shard(folder / f"scores-{times}", SCORES).num_rows == PROMPTS * times


def write(path: Path, table: pa.Table, times: int) -> None:
    with Writer(path, table.schema, {}, {}) as writer:
        for _ in range(times):
            writer.write(table)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Prompts, and the inputs of each stage in both sizes."""
    made = tmp_path_factory.mktemp("data")
    asked = [
        Prompt(str(row), "all", ({"role": "user", "content": "1+1"},), "2", None, 0, "opd") for row in range(PROMPTS)
    ]
    write_prompts(made / "prompts", {}, {}, asked)
    row = {
        "sample": 0, "source": "student", "behaviour": "b", "written_in": "r1", "prompt_ids": [5],
        "response_ids": RESPONSE, "behaviour_logprobs": np.full(TOKENS, -1.0), "finish_reason": "length", "text": "",
        "sampling_logprobs": None, "behaviour_topk_ids": None, "segments": None,
    }  # fmt: skip
    ids = [str(number) for number in range(PROMPTS)]
    written = [row | {"rollout_id": id_, "prompt_id": id_} for id_ in ids]
    few = pa.Table.from_pylist(written, ROLLOUTS)
    long = pa.Table.from_pylist([one | {"text": TEXT, "response_ids": [5]} for one in written], ROLLOUTS)
    scored = ENGINE.score([SimpleNamespace(response_ids=RESPONSE)] * PROMPTS, None)
    table = make_score_table(ids, np.full(PROMPTS, TOKENS), scored, ["c"] * PROMPTS)
    for times in (1, MORE):
        for name, of_rows in (("rollouts", few), ("long", long), ("scores", table)):
            write(made / f"{name}-{times}", of_rows, times)
    return made


def growth(work: Callable[[Path, int], None], folder: Path) -> int:
    """Bytes that a hundred times the rows take more at their peak."""
    small, large = (measure.in_child(work, folder, times)[1] for times in (1, MORE))
    return large - small


@pytest.fixture(scope="module")
def everything(folder) -> int:
    """Bytes that a stage would take more if it held all scores: what the others are compared with."""
    return growth(holds_everything, folder)


@pytest.mark.parametrize("work", [refresh, grade, score, train])
def test_a_hundred_times_the_rows_take_no_more_memory(folder, everything, work):
    """But for a segment of Arrow's own pool, which takes memory by 32 MiB: a twelfth of all scores is more."""
    assert growth(work, folder) <= everything / 12


def test_a_stage_that_holds_everything_is_noticed(everything):
    """It is as much as the numbers in the shards, and many times what is allowed."""
    assert everything > 2**28
