"""Derived columns: statistics over groups and shards, as pure functions of stored columns, before any training.

They need whole groups, or all rows of a round, so no batch can compute them. A recipe names those that it reads, with
their seeds. Each class of `pipeline/settings/derived.py` meets its formula in `compute_column`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import singledispatch
from typing import Literal

import numpy as np

from pipeline.settings.derived import (
    AgreementCut,
    Balance,
    CrossFittedBias,
    DerivedColumn,
    GroupAdvantage,
    GroupTotal,
    Margin,
    Perplexity,
)

VERSION = 1  # raise it when a column would change; checkpoints that read one are then trained anew


@dataclass(frozen=True)
class Stored:
    """The stored columns of R rows with T response tokens in all, end to end.

    Attributes:
        group: [R], rows of one prompt have one number.
        lengths: [R], response tokens.
        correct: [R], 1, 0, or NaN where the grader gave none; None where not read, as below.
        reward: [R], NaN likewise.
        tokens: [T], ids.
        behaviour: [T], log-probability under the student that wrote them, at temperature 1, nats.
        views: [T] by name, log-probability under a view, nats; NaN in rows that it has not scored.
    """

    group: np.ndarray
    lengths: np.ndarray
    correct: np.ndarray | None
    reward: np.ndarray | None
    tokens: np.ndarray | None
    behaviour: np.ndarray | None
    views: Mapping[str, np.ndarray]

    @property
    def row(self) -> np.ndarray:
        """Row of each token, [T]."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def position(self) -> np.ndarray:
        """Position of each token in its row, from 0, [T]."""
        ends = np.cumsum(self.lengths)
        return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - self.lengths, self.lengths)

    def grade(self, name: Literal["correct", "reward"]) -> np.ndarray:
        """One of the grades, [R]."""
        return _known(self.correct if name == "correct" else self.reward)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Mean of a token column over each row, [R]."""
        return np.bincount(self.row, values, len(self.lengths)) / self.lengths


@singledispatch
def compute_column(spec: DerivedColumn, stored: Stored) -> np.ndarray:  # noqa: ARG001 (its formulas read it)
    """One derived column, float64 [R], or [T] of a class that is of tokens."""
    raise AssertionError(f"no formula is registered for the derived column {type(spec).__name__}")


@compute_column.register
def _group_advantage(spec: GroupAdvantage, stored: Stored) -> np.ndarray:
    return group_advantage(stored.grade(spec.of), stored.group, spec.scaled, spec.deviation)


@compute_column.register
def _group_total(spec: GroupTotal, stored: Stored) -> np.ndarray:
    total, count = _group_sums(stored.grade(spec.of), stored.group)
    return total if spec.kind == "group_total" else total / np.maximum(count, 1)


@compute_column.register
def _perplexity(spec: Perplexity, stored: Stored) -> np.ndarray:
    of = _known(stored.behaviour) if spec.of == "behaviour" else stored.views[spec.of]
    is_among = stored.grade("correct") == (spec.among == "correct")
    sign = -1 if spec.favour == "high" else 1
    return group_softmax(sign * stored.mean(of) / spec.temperature, is_among, stored.group)


@compute_column.register
def _margin(spec: Margin, stored: Stored) -> np.ndarray:
    gain = stored.mean(stored.views[spec.view] - _known(stored.behaviour))
    return margin_shift(gain, stored.grade("correct"), stored.group, spec.margin)


@compute_column.register
def _balance(spec: Balance, stored: Stored) -> np.ndarray:
    return balance(stored.grade("correct"), stored.group, np.random.default_rng(spec.seed))


def group_advantage(
    reward: np.ndarray, group: np.ndarray, scaled: bool, deviation: Literal["population", "sample"]
) -> np.ndarray:
    """(R − mean of its group) / (standard deviation of its group + 1e-4), [R]; 0 for rows without a reward.

    The `sample` deviation divides by n − 1, so advantages are smaller by √((n − 1) / n) than by the `population`'s.

    Source: GRPO (arXiv:2402.03300); constant and n − 1 as in the code of KEPO (arXiv:2602.00400).
    """
    total, count = _group_sums(reward, group)
    away = np.nan_to_num(reward - total / np.maximum(count, 1))
    if not scaled:
        return away
    squares, _ = _group_sums(away**2, group)
    free = count - (1 if deviation == "sample" else 0)
    return away / (np.sqrt(squares / np.maximum(free, 1)) + 1e-4)


def group_softmax(logits: np.ndarray, is_among: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Softmax over the chosen rows of each group, [R], so that they sum to 1; 0 for the others.

    Source: SCOPE (arXiv:2604.10688), with logits ± mean log-probability / temperature. Its code multiplies by the
    number of rows and has the opposite sign on correct ones.
    """
    chosen = np.where(is_among, logits, -np.inf)
    highest = np.full(group.max(initial=-1) + 1, -np.inf)
    np.maximum.at(highest, group, chosen)
    weight = np.exp(np.where(is_among, logits, 0.0) - np.where(is_among, highest[group], 0.0)) * is_among
    return weight / np.maximum(_group_sums(weight, group)[0], 1e-300)


def margin_shift(gain: np.ndarray, correct: np.ndarray, group: np.ndarray, margin: float) -> np.ndarray:
    """+½ shift for correct rows and −½ for wrong ones (nats), where shift = max(0, margin − gap of their mean gains).

    Rows that are neither, and groups without both kinds, are not shifted.

    Source: Uni-OPD (arXiv:2605.03677), group, mean, both directions.
    """
    means = []
    for kind in (1.0, 0.0):
        total, count = _group_sums(np.where(correct == kind, gain, np.nan), group)
        means.append(total / np.where(count == 0, np.nan, count))
    shift = np.nan_to_num(np.maximum(0.0, margin - (means[0] - means[1])))
    sign = np.select([correct == 1, correct == 0], [0.5, -0.5], 0.0)
    return np.nan_to_num(sign * shift)


def balance(correct: np.ndarray, group: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """1 for as many correct as wrong rows of each mixed group, else 0, [R].

    Source: the online balance of Uni-OPD (arXiv:2605.03677).
    """
    keep = np.ones(len(group))
    order = np.argsort(group, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        kinds = [random.permutation(rows[correct[rows] == kind]) for kind in (1.0, 0.0)]
        fewest = min(len(kind) for kind in kinds)
        if fewest:
            keep[np.concatenate([kind[fewest:] for kind in kinds])] = 0.0
    return keep


@compute_column.register
def agreement_cut(spec: AgreementCut, stored: Stored) -> np.ndarray:
    """0 from the start of the first of `runs` windows in a row whose mean divergence is low, else 1, [T].

    The divergence of a token is e^d − 1 − d with d = log view − log behaviour, an estimate of KL(behaviour ‖ view) that
    is never negative. Low is below the `quantile`, over all rows, of a row's lowest window.

    Source: KAT (arXiv:2606.09471), whose threshold comes from a queue of the latest rollouts and whose divergence is
    summed over the top 64.
    """
    d = np.clip(stored.views[spec.view] - _known(stored.behaviour), -20, 20)
    windows = []
    for divergence in np.split(np.expm1(d) - d, np.cumsum(stored.lengths)[:-1]):
        upto = np.concatenate([[0.0], np.cumsum(divergence)])
        windows.append((upto[spec.window :] - upto[: -spec.window]) / spec.window)
    lowest = [window.min() for window in windows if len(window)]
    low = np.quantile(lowest, spec.quantile) if lowest else -np.inf
    kept = []
    for window, length in zip(windows, stored.lengths, strict=True):
        is_low = (window < low) & (np.arange(len(window)) >= spec.exempt)
        runs = np.convolve(is_low, np.ones(spec.runs, np.int64), "valid") if len(window) >= spec.runs else np.zeros(0)
        starts = np.flatnonzero(runs == spec.runs)
        kept.append(np.arange(length) < (starts[0] if len(starts) else length))
    return np.concatenate(kept).astype(np.float64)


@compute_column.register
def cross_fitted_bias(spec: CrossFittedBias, stored: Stored) -> np.ndarray:
    """½ mean(d | token) + ½ mean(d | position, surprisal), nats [T], d = log view − log behaviour of other prompts.

    Every row has total weight 1. Few observations are drawn to the mean over all: each mean counts `shrink` rows of
    it. Positions are binned by powers of two, surprisals by whole nats up to ten.

    Source: Lightning OPD 2.0 (arXiv:2607.28449); its bins and its shrinkage are not published.
    """
    behaviour, tokens = _known(stored.behaviour), _known(stored.tokens).astype(np.int64)
    d = stored.views[spec.view] - behaviour
    weight = np.repeat(1 / stored.lengths, stored.lengths)
    surprisal = np.clip(-behaviour, 0, 10).astype(np.int64)
    context = np.floor(np.log2(stored.position + 1)).astype(np.int64) * 11 + surprisal
    fold_of_group = np.random.default_rng(spec.seed).integers(0, spec.folds, stored.group.max(initial=-1) + 1)
    fold = fold_of_group[stored.group][stored.row]
    bias = np.zeros(len(d))
    for number in range(spec.folds):
        others, mine = fold != number, fold == number
        total = weight[others].sum()
        overall = (weight[others] * d[others]).sum() / total if total else 0.0
        for key in (tokens, context):
            size = int(key.max(initial=-1)) + 1
            sums = np.bincount(key[others], weight[others] * d[others], size) + spec.shrink * overall
            counts = np.bincount(key[others], weight[others], size) + spec.shrink
            bias[mine] += 0.5 * (sums / np.maximum(counts, 1e-12))[key[mine]]
    return bias


def _group_sums(values: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[R], sum and number of the values of each row's group; NaN does not count."""
    known = ~np.isnan(values)
    sums = np.bincount(group[known], values[known], group.max(initial=-1) + 1)
    return sums[group], np.bincount(group[known], minlength=len(sums))[group]


def _known(values: np.ndarray | None) -> np.ndarray:
    assert values is not None, "a recipe's `reads` names what its derived columns need"
    return values
