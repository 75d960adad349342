"""Drift: how far the student of now is from the one that wrote a shard.

With d = log π_now − log π_behaviour of the response tokens, both at temperature 1, the mean of e^d − 1 − d is an
unbiased estimate of KL(behaviour ‖ now) in nats per token where sampling was at temperature 1; it is never negative.
Ratios of whole sequences are useless at thousands of tokens, so the effective sample size is that of tokens.

It is measured on some responses of a shard, and tokens of one response go together: how sure it is comes from how the
responses differ, as of any ratio of sums over clusters (Cochran, Sampling Techniques, 3rd edition, section 6.4).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.engines.engine import Engine, ScoreRequest
from pipeline.errors import SettingsError
from pipeline.head.support import Support
from pipeline.storage.ragged import from_lists
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.shards import read_groups, read_shard

VERSION = 2  # raise it when a drift would change; it is then measured again

DRIFT_COLUMNS = ("rollout_id", "prompt_ids", "response_ids", "behaviour_logprobs")

FLOORS = 3
"""A bound below so many floors would act on rounding."""

STANDARD_ERRORS = 2.0
"""On either side of an estimate, what is taken for its interval."""


@dataclass(frozen=True)
class ResponseDrift:
    """What one response says of the drift of its shard.

    Attributes:
        tokens: of the response.
        nats: sum of e^d − 1 − d over them.
        log_weight: log of the sum of w = e^d.
        log_square: log of the sum of w².
    """

    tokens: int
    nats: float
    log_weight: float
    log_square: float


@dataclass(frozen=True)
class Drift:
    """How far a student is from the one that wrote a shard, by some of its responses.

    Attributes:
        nats: per token, mean of e^d − 1 − d.
        standard_error: of that; 0 where the whole shard was measured, infinite where one of several responses was.
        effective_sample_size: (Σw)² / (n Σw²) over tokens, w = e^d; 1 where nothing moved.
        tokens: that it was measured on.
        responses: that it was measured on.
    """

    nats: float
    standard_error: float
    effective_sample_size: float
    tokens: int
    responses: int

    @property
    def margin(self) -> float:
        """Half the width of the interval, nats per token."""
        return STANDARD_ERRORS * self.standard_error


def measure_response(logratios: np.ndarray) -> ResponseDrift:
    """Sum up d of each token of a response, in nats."""
    d = logratios.astype(np.float64)
    # Far below zero e^d − 1 − d is −d, and expm1 keeps the small ones exact.
    nats = float((np.expm1(d) - d).sum())
    return ResponseDrift(len(d), nats, float(np.logaddexp.reduce(d)), float(np.logaddexp.reduce(2 * d)))


def estimate_drift(responses: Sequence[ResponseDrift], of: int) -> Drift:
    """Estimate the drift of a shard from some of its responses.

    Args:
        responses: at least one, drawn without looking at them.
        of: how many the shard has.
    """
    tokens = np.array([each.tokens for each in responses], float)
    nats = np.array([each.nats for each in responses])
    total, mean = tokens.sum(), nats.sum() / tokens.sum()
    log_weight = np.logaddexp.reduce([each.log_weight for each in responses])
    log_square = np.logaddexp.reduce([each.log_square for each in responses])
    return Drift(
        nats=float(mean),
        standard_error=_standard_error(nats - mean * tokens, of) / float(total),
        effective_sample_size=float(np.exp(2 * log_weight - log_square) / total),
        tokens=int(total),
        responses=len(responses),
    )


def _standard_error(residuals: np.ndarray, of: int) -> float:
    """Of the sum of what responses have more than their share, drawn without replacement from so many."""
    count = len(residuals)
    if count == of:
        return 0.0
    if count == 1:
        return np.inf
    return float(np.sqrt((1 - count / of) * count / (count - 1) * (residuals**2).sum()))


def measure_drift(engine: Engine, path: Path, start: int, stop: int) -> list[ResponseDrift]:
    """Measure how far the student of now is from the one that wrote a shard, on some of its responses.

    Args:
        engine: that student, open.
        path: the shard of rollouts.
        start: place of the first response, in the order of their ids, which are hashes.
        stop: place behind the last; the shard may have fewer.
    """
    ids = read_shard(path, ROLLOUTS, ["rollout_id"]).column("rollout_id").to_pylist()
    chosen = sorted(range(len(ids)), key=lambda row: ids[row])[start:stop]
    found = dict(_rows(path, set(chosen)))
    prompts, responses, behaviour = zip(*[found[row] for row in chosen], strict=True)
    sequences = [ScoreRequest(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
    now = engine.score(sequences, Support(0, entropies=False)).sampled_logprobs
    ends = np.cumsum([len(response) for response in responses])
    return [measure_response(each) for each in np.split(now - np.concatenate(behaviour), ends[:-1])]


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
