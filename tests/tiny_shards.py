"""Shards that tests train on: what one bigram model writes and another says of it, known to the last digit."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.engines.engine import Engine, Request, ScoreRequest
from pipeline.head.support import Support
from pipeline.settings.machine import Machine
from pipeline.settings.models import Sampling, Training
from pipeline.storage.bucket import Bucket
from pipeline.storage.rollouts import ROLLOUTS, Rollout, make_rollout_table
from pipeline.storage.scores import SCORES, make_score_table
from pipeline.storage.shards import GROUP_ROWS, Writer, read_shard
from pipeline.training.loader import Loader
from pipeline.training.rows import Rows

FIRST, LAST = 1, 36
"""The ids that a prompt may hold; 0 ends a sequence."""


def write(
    folder: Path, writer: Engine, scorer: Engine, rows: list[int], top_k: int = 4, shift: int = 0
) -> list[Bucket]:
    """A shard of rollouts, and one of scores, for each entry of `rows`.

    Args:
        folder: where they go.
        writer: draws the responses.
        scorer: whose log-probabilities are kept.
        rows: of each shard.
        top_k: ids kept at each position.
        shift: positions that the scores are wrong by: the mistake that tests must find.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number, count in enumerate(rows):
        random = np.random.default_rng(number)
        requests = [
            Request([int(id_) for id_ in random.integers(FIRST, LAST + 1, random.integers(1, 5))], number * 1000 + row)
            for row in range(count)
        ]
        responses = [response.ids for response in writer.generate(requests, Sampling(max_tokens=16))]
        rollouts, scores = folder / f"rollouts-{number}.parquet", folder / f"scores-{number}.parquet"
        _write(rollouts, _rollouts(number, requests, responses))
        _write(scores, _scores(number, requests, responses, scorer, top_k, shift))
        made.append(Bucket(rollouts, scores={"teacher": scores}))
    return made


def loader(rows: Rows, steps: int, batch: int, tokens: int, seed: int = 0, devices: int = 1) -> Loader:
    """The loader of a run of so many steps of `batch` rows, in packs of at most so many tokens."""
    how = Training(steps=steps, batch=batch, learning_rate=1.0, seed=seed)
    return Loader(rows, how, Machine(device="cpu", train_tokens=tokens, devices=devices))


def stored(sources: list[Bucket]) -> dict[tuple[int, int], dict[str, Any]]:
    """Every row as the files have it, by (row group, row)."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    group = 0
    for source in sources:
        rollouts = read_shard(source.rollouts, ROLLOUTS).to_pylist()
        scores = read_shard(source.scores["teacher"], SCORES).to_pylist()
        for start in range(0, len(rollouts), GROUP_ROWS):
            rows = list(zip(rollouts, scores, strict=True))[start : start + GROUP_ROWS]
            found.update({(group, row): {**one, **other} for row, (one, other) in enumerate(rows)})
            group += 1
    return found


def _write(path: Path, table: pa.Table) -> None:
    with Writer(path, table.schema, {"stage": "test"}, {}) as writer:
        writer.write(table)


def _rollouts(number: int, requests: list[Request], responses: list[np.ndarray]) -> pa.Table:
    rows = [
        Rollout(
            rollout_id=f"{number}-{row}", prompt_id=f"p{row}", sample=0, source="student", behaviour="b",
            written_in="r1", prompt_ids=request.prompt_ids, response_ids=response,
            behaviour_logprobs=np.full(len(response), -1.0, np.float32), finish_reason="stop", text="",
        )
        for row, (request, response) in enumerate(zip(requests, responses, strict=True))
    ]  # fmt: skip
    return make_rollout_table(rows)


def _scores(
    number: int, requests: list[Request], responses: list[np.ndarray], scorer: Engine, top_k: int, shift: int
) -> pa.Table:
    scored = [
        ScoreRequest(request.prompt_ids, np.roll(response, shift))
        for request, response in zip(requests, responses, strict=True)
    ]
    lengths = np.array([len(response) for response in responses])
    ids = [f"{number}-{row}" for row in range(len(responses))]
    return make_score_table(ids, lengths, scorer.score(scored, Support(top_k)), ["c"] * len(ids))
