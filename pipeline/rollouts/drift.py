"""Drift: how far the student of now is from the one that wrote a shard.

With d = log π_now − log π_behaviour of the response tokens, both at temperature 1, the mean of e^d − 1 − d is an
unbiased estimate of KL(behaviour ‖ now) in nats per token where sampling was at temperature 1; it is never negative.
Ratios of whole sequences are useless at thousands of tokens, so the effective sample size is that of tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.engines.engine import Engine, ScoreRequest
from pipeline.errors import SettingsError
from pipeline.head.support import Support
from pipeline.storage.ragged import from_lists
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.shards import read_groups, read_shard

VERSION = 1  # raise it when a drift would change; it is then measured again

DRIFT_COLUMNS = ("rollout_id", "prompt_ids", "response_ids", "behaviour_logprobs")

FLOORS = 3
"""A bound below so many floors would act on rounding."""


@dataclass(frozen=True)
class Drift:
    """How far a student is from the one that wrote some tokens.

    Attributes:
        nats: per token, mean of e^d − 1 − d.
        effective_sample_size: (Σw)² / (n Σw²) over tokens, w = e^d; 1 where nothing moved.
        tokens: that it was measured on.
    """

    nats: float
    effective_sample_size: float
    tokens: int


def estimate_drift(logratios: np.ndarray) -> Drift:
    """Estimate the drift from d of each token, in nats."""
    d = logratios.astype(np.float64)
    ratios = np.exp(d - d.max())
    share = ratios.sum() ** 2 / (len(d) * (ratios**2).sum())
    # Far below zero e^d − 1 − d is −d, and expm1 keeps the small ones exact.
    return Drift(float((np.expm1(d) - d).mean()), float(share), len(d))


def measure_drift(engine: Engine, path: Path, rows: int) -> Drift:
    """Measure how far the student of now is from the one that wrote a shard, on some of its rows.

    Args:
        engine: that student, open.
        path: the shard of rollouts.
        rows: how many; those with the smallest ids, which are hashes.
    """
    ids = read_shard(path, ROLLOUTS, ["rollout_id"]).column("rollout_id").to_pylist()
    chosen = sorted(range(len(ids)), key=lambda row: ids[row])[:rows]
    found = dict(_rows(path, set(chosen)))
    prompts, responses, behaviour = zip(*[found[row] for row in chosen], strict=True)
    sequences = [ScoreRequest(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
    now = engine.score(sequences, Support(0, entropies=False)).sampled_logprobs
    return estimate_drift(now - np.concatenate(behaviour))


def _rows(path: Path, chosen: set[int]) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
    """Read the prompt's ids, the response's and their log-probabilities of some rows, a row group at a time."""
    first = 0
    for group in read_groups(path, ROLLOUTS, DRIFT_COLUMNS[1:]):
        columns = [from_lists(group.column(name)) for name in DRIFT_COLUMNS[1:]]
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
