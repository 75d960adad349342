"""A training step of ours, from shards, against plain fine-tuning and against a trainer that keeps its teacher live.

    python -m benchmarks.train_step --check

All train the same Qwen3 (8 layers × 512, vocabulary 151,936, random weights) on the same sequences, forward, backward,
clipping and AdamW included. Tokens are response tokens.

- `our NLL step`: our own `sft` recipe on the same packs;
- `transformers' loss`: the model's own `labels`, padded, which holds [tokens × vocabulary];
- `live teacher`: what a live trainer adds at each step, without generation: the teacher's forward pass and its full
  logits, and a reverse KL over the whole vocabulary.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import torch
import typer
from torch import Tensor

from benchmarks import measure, qwen3
from benchmarks.rows import Bar, Check, JsonFile, Row, conclude
from pipeline.models.packing import Pack
from pipeline.models.student import Student
from pipeline.objectives.inputs import Inputs
from pipeline.objectives.objective import Objective
from pipeline.settings.machine import Machine
from pipeline.settings.models import Training
from pipeline.settings.recipe import load_recipe
from pipeline.storage.bucket import Bucket
from pipeline.storage.ragged import Ragged
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.scores import Scores, make_score_table
from pipeline.storage.shards import Writer
from pipeline.training.loader import Loader
from pipeline.training.rows import Rows

PROMPT = 16
K = 32
OURS = "topk_reverse_kl"

Packs = list[tuple[Pack, Inputs]]


def main(
    sequences: Annotated[int, typer.Option(help="In one step.")] = 8,
    response: Annotated[int, typer.Option(help="Tokens of each response.")] = 128,
    vocabulary: Annotated[int, typer.Option(help="Of both models.")] = qwen3.VOCABULARY,
    rounds: Annotated[int, typer.Option(help="Timed turns, behind one that is not timed.")] = 2,
    results: JsonFile = None,
    check: Check = False,
) -> None:
    """Time the steps in turns."""
    with tempfile.TemporaryDirectory() as folder:
        source = _shards(Path(folder), sequences, response, vocabulary)

        def rows_of(recipe: str) -> Rows:
            scored = source if recipe == OURS else Bucket(source.rollouts)
            return Rows([scored], load_recipe(recipe))

        packs = {recipe: _packs(rows_of(recipe), sequences) for recipe in (OURS, "sft")}
        case = Case(packs["sft"], sequences, vocabulary)
        ways = {
            "ours": case.step(lambda: case.ours(OURS, packs[OURS])),
            "our NLL": case.step(lambda: case.ours("sft", packs["sft"])),
            "transformers": case.step(case.transformers),
            "live teacher": case.step(case.live),
            # From the files: rows that were just opened remember no row group.
            "loading": lambda: _packs(rows_of(OURS), sequences),
        }
        seconds = measure.seconds(ways, rounds)
    speed = {name: sequences * response / taken for name, taken in seconds.items()}
    rows = [
        Row("time of a step: our NLL step", "s", seconds["ours"], seconds["our NLL"], Bar("≤", 1.1)),
        Row("time of a step: transformers' loss", "s", seconds["ours"], seconds["transformers"]),
        Row("tokens: live teacher", "tokens/s", speed["ours"], speed["live teacher"]),
        Row("loading: a whole step", "s", seconds["loading"], seconds["ours"], Bar("≤", 0.03)),
    ]
    print(f"{sequences} sequences of {PROMPT} + {response} tokens, K = {K}, {torch.get_num_threads()} threads\n")
    conclude(rows, results, check)


class Case:
    """A student, a teacher and an optimiser, and the losses of one step on the same sequences."""

    def __init__(self, packs: Packs, sequences: int, vocabulary: int):
        torch.manual_seed(0)
        self.student = Student(qwen3.model(vocabulary=vocabulary).train())
        self.teacher = qwen3.model(vocabulary=vocabulary).eval()
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-6, fused=True)
        self.ids = torch.cat([pack.input_ids.reshape(sequences, -1) for pack, _ in packs])
        self.is_response = torch.arange(self.ids.shape[1]) >= PROMPT

    def step(self, losses: Callable[[], list[Tensor]]) -> Callable[[], None]:
        """The whole optimiser step that these losses are part of."""

        def take() -> None:
            self.optimizer.zero_grad()
            for loss in losses():
                loss.backward()
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
            self.optimizer.step()

        return take

    def ours(self, recipe: str, packs: Packs) -> list[Tensor]:
        """By the head and the objective."""
        objective = Objective(load_recipe(recipe))
        asked = [(pack, inputs, objective.ask(inputs)) for pack, inputs in packs]
        return [objective.loss(self.student(pack, ask), inputs)[0] for pack, inputs, ask in asked]

    def transformers(self) -> list[Tensor]:
        """The model's own loss."""
        return [self.student.transformer(input_ids=self.ids, labels=self.ids.masked_fill(~self.is_response, -100)).loss]

    def live(self) -> list[Tensor]:
        """A reverse KL over the whole vocabulary, to a teacher that is asked now."""
        responses = slice(PROMPT - 1, -1)
        with torch.no_grad():
            target = self.teacher(input_ids=self.ids).logits[:, responses].log_softmax(dim=-1)
        own = self.student.transformer(input_ids=self.ids).logits[:, responses].log_softmax(dim=-1)
        return [(own.exp() * (own - target)).sum(dim=-1).mean()]


def _packs(rows: Rows, sequences: int) -> Packs:
    return Loader(rows, Training(steps=1, batch=sequences, learning_rate=1.0), Machine()).step(0)


def _shards(folder: Path, sequences: int, response: int, vocabulary: int) -> Bucket:
    """One shard of random rollouts, and scores of K ids each and the tail outside them."""
    random = np.random.default_rng(0)
    written = [
        {
            "rollout_id": str(row), "prompt_id": str(row), "sample": 0, "source": "student", "behaviour": "b",
            "written_in": "r1", "prompt_ids": random.integers(1, vocabulary, PROMPT),
            "response_ids": random.integers(1, vocabulary, response), "behaviour_logprobs": np.full(response, -1.0),
            "sampling_logprobs": None, "behaviour_topk_ids": None, "segments": None,
            "finish_reason": "stop", "text": "",
        }
        for row in range(sequences)
    ]  # fmt: skip
    tokens = sequences * response
    ids = (random.integers(vocabulary, size=(tokens, 1)) + np.arange(K) * 1000) % vocabulary
    logits = -np.sort(random.exponential(3, (tokens, K + 1)), axis=1)
    logprobs = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
    counts = np.full(tokens, K)
    scores = Scores(
        logprobs[:, 0], Ragged.cut(ids.ravel().astype(np.int32), counts), Ragged.cut(logprobs[:, :K].ravel(), counts),
        counts.astype(np.uint16), logprobs[:, K], None,
    )  # fmt: skip
    names, lengths = [row["rollout_id"] for row in written], np.full(sequences, response)
    table = make_score_table(names, lengths, scores, ["context"] * sequences)
    paths = folder / "rollouts.parquet", folder / "scores.parquet"
    for path, rows in zip(paths, (pa.Table.from_pylist(written, ROLLOUTS), table), strict=True):
        with Writer(path, rows.schema, {"stage": "benchmark"}, {}) as writer:
            writer.write(rows)
    return Bucket(paths[0], scores={"teacher": paths[1]})


if __name__ == "__main__":
    typer.run(main)
