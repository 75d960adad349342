"""Drift: how far the student of now is from the one that wrote a shard.

With d = log π_now − log π_behaviour of the response tokens, both at temperature 1, the mean of e^d − 1 − d is an
unbiased estimate of KL(behaviour ‖ now) in nats per token where sampling was at temperature 1; it is never negative.
Sequence-level weights are useless at thousands of tokens, so the effective sample size is that of tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.engines.engine import Engine, ScoreRequest
from pipeline.errors import SettingsError
from pipeline.head.support import Support
from pipeline.progress import Progress
from pipeline.storage.ragged import from_lists
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.shards import read_groups, read_shard

VERSION = 1

COLUMNS = ("rollout_id", "prompt_ids", "response_ids", "behaviour_logprobs")

FLOORS = 3
"""A bound below so many floors would act on rounding."""


@dataclass(frozen=True)
class Drift:
    """A measurement.

    Attributes:
        nats: per token, mean of e^d − 1 − d.
        effective_sample_size: (Σw)² / (n Σw²) over tokens, w = e^d; 1 where nothing moved.
        tokens: that it was measured on.
    """

    nats: float
    effective_sample_size: float
    tokens: int


def estimate_drift(logratios: np.ndarray) -> Drift:
    """From d of each token, nats."""
    d = logratios.astype(np.float64)
    # Far below zero e^d − 1 − d is −d, and expm1 keeps the small ones exact.
    weights = np.exp(d - d.max())
    share = weights.sum() ** 2 / (len(d) * (weights**2).sum())
    return Drift(float((np.expm1(d) - d).mean()), float(share), len(d))


def measure_drift(engine: Engine, path: Path, rows: int, progress: Progress | None = None) -> Drift:
    """Score some rows of a shard with the student of now.

    Args:
        engine: that student, open.
        path: the shard of rollouts.
        rows: how many; those with the smallest ids, which are hashes.
        progress: told of scored responses.
    """
    ids = read_shard(path, ROLLOUTS, ["rollout_id"]).column("rollout_id").to_pylist()
    chosen = sorted(range(len(ids)), key=lambda row: ids[row])[:rows]
    found = dict(_rows(path, set(chosen)))
    prompts, responses, behaviour = zip(*[found[row] for row in chosen], strict=True)
    return estimate_drift(_now(engine, prompts, responses, progress) - np.concatenate(behaviour))


def _rows(path: Path, chosen: set[int]) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
    """Of some rows the prompt's ids, the response's and their log-probabilities; a row group is held at a time."""
    first = 0
    for group in read_groups(path, ROLLOUTS, COLUMNS[1:]):
        columns = [from_lists(group.column(name)) for name in COLUMNS[1:]]
        for row in chosen.intersection(range(first, first + group.num_rows)):
            yield row, tuple(column[row - first].copy() for column in columns)
        first += group.num_rows


def check_bound(bound: float, floor: float) -> None:
    """Refuse a bound that engine and trainer would already pass by rounding.

    Raises:
        SettingsError: it is below `FLOORS` floors.
    """
    if bound < FLOORS * floor:
        raise SettingsError(
            f"refresh.bound is {bound:g} nats per token. The unchanged student already shows {floor:g} (the floor, "
            f"from rounding between writing and scoring), and a bound below {FLOORS} floors ({FLOORS * floor:g}) would "
            "act on that. Raise refresh.bound."
        )


def _now(
    engine: Engine, prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray], progress: Progress | None
) -> np.ndarray:
    sequences = [ScoreRequest(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
    return engine.score(sequences, Support(0, entropies=False), progress).sampled_logprobs
