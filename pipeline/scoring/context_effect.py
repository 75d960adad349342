"""Two views of one model that differ in their context alone must differ in what they say.

Privileged context that never reaches the teacher is silent: training goes on, towards the model without it. (The
authors of arXiv:2605.02943 report it of their own runs, in HINT_FIX.md of their repository.) What is compared was
stored, so a run that finds every shard compares again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ShardError
from pipeline.models.record import Model
from pipeline.settings.views import View
from pipeline.storage.ragged import Ragged, from_lists, from_nested_lists
from pipeline.storage.rounding import normalise
from pipeline.storage.scores import SCORES
from pipeline.storage.shards import read_groups, read_shard

LEAST_KL = 1e-4
"""Nats per token that two contexts must be apart, in the mean."""

SHARDS, ROWS = 16, 4
"""The KL is taken over so many shards at most, and so many rows of each: a sample, whatever the run's size."""


@dataclass(frozen=True)
class Kept:
    """What a view kept of some tokens, as a distribution.

    Attributes:
        sampled: [T], nats, of the response's own token, kept or not.
        ids: int32 ragged [T][...], distinct at a token.
        logprobs: float, nats, of the ids' values end to end.
        tails: [T], nats, log of the mass outside them.
    """

    sampled: np.ndarray
    ids: Ragged
    logprobs: np.ndarray
    tails: np.ndarray


def views_to_compare(name: str, views: Mapping[str, View], by_view: Mapping[str, Model]) -> list[str]:
    """The views of the same model as this one's in another context."""
    return [
        other
        for other, view in views.items()
        if by_view[other].weights_hash == by_view[name].weights_hash and view.context != views[name].context
    ]


def check_contexts_differ(folders: Mapping[str, Path]) -> None:
    """Compare the stored scores of two views of one model in two contexts.

    Args:
        folders: of the two views, by name; shards of the same names hold scores of the same rows.

    Raises:
        ShardError: some row was scored after the same tokens in both, or their mean KL is under `LEAST_KL`.
    """
    (first, one), (second, other) = folders.items()
    pairs = [(path, other / path.name) for path in sorted(one.glob("*.parquet"))]
    what = f"score.views.{first} and score.views.{second} are one model in two contexts"
    remedy = (
        "Look at the templates of both and at what they show (`context_hash` in the shards tells contexts apart), "
        "correct score.views and run `dvc repro score`; or remove one of the two."
    )
    for paths in pairs:
        if (rollout_id := _same_context(paths)) is not None:
            raise ShardError(
                f"{what}, but response {rollout_id} ({paths[1]}) was scored after the same tokens in both: what one of "
                f"them adds does not arrive. {remedy}"
            )
    sampled = [row for paths in pairs[:: -(-len(pairs) // SHARDS)] for row in _rows_of_both(paths)]
    values = np.concatenate([least_kl(one, other) for _, one, other in sampled]) if sampled else np.array([])
    if len(values) and values.mean() < LEAST_KL:
        raise ShardError(
            f"{what}, but over {len(values)} tokens of {len(sampled)} responses, {sampled[0][0]} the first, their mean "
            f"KL is {values.mean():.1e} nats, under {LEAST_KL:.0e}: the context changes nothing. {remedy}"
        )


def least_kl(one: Kept, other: Kept) -> np.ndarray:
    """What KL(one ‖ other) is at least at each token, from what both views stored.

    The larger of two KLs of coarser outcomes, each at most the KL over the vocabulary (data-processing inequality): the
    ids that both kept and all else; the sampled token and all else, for views that have few or no ids in common.

    Returns:
        [T], nats.
    """
    tokens = len(one.tails)
    shared, of_one, of_other = np.intersect1d(_keys(one), _keys(other), assume_unique=True, return_indices=True)
    at_shared = np.bincount(shared >> 32, _divergence(one.logprobs[of_one], other.logprobs[of_other]), tokens)
    rest, other_rest = _log_mass_outside(one, of_one), _log_mass_outside(other, of_other)
    not_sampled, other_not_sampled = _log(-np.expm1(one.sampled)), _log(-np.expm1(other.sampled))
    at_sampled = _divergence(one.sampled, other.sampled) + _divergence(not_sampled, other_not_sampled)
    return np.maximum(at_shared + _divergence(rest, other_rest), at_sampled)


def _divergence(logprobs: np.ndarray, others: np.ndarray) -> np.ndarray:
    """What an outcome adds to the KL, from its two log-probabilities."""
    logprobs = logprobs.astype(np.float64)
    return np.exp(logprobs) * (logprobs - others)


def _keys(kept: Kept) -> np.ndarray:
    """Token and id in one number."""
    return (np.repeat(np.arange(len(kept.tails)), kept.ids.lengths) << 32) + kept.ids.values


def _log_mass_outside(kept: Kept, entries: np.ndarray) -> np.ndarray:
    """Of each token the log of the probability outside these entries."""
    is_outside = np.ones(len(kept.ids.values), bool)
    is_outside[entries] = False
    token = np.repeat(np.arange(len(kept.tails)), kept.ids.lengths)[is_outside]
    masses = np.exp(kept.logprobs[is_outside].astype(np.float64))
    return _log(np.bincount(token, masses, len(kept.tails)) + np.exp(kept.tails.astype(np.float64)))


def _log(masses: np.ndarray) -> np.ndarray:
    """Of 0, which rounding can leave, the log of what would not count either."""
    return np.log(np.maximum(masses, 1e-30))


def _same_context(paths: tuple[Path, Path]) -> str | None:
    """The first row that two views scored after the same tokens."""
    columns = ("rollout_id", "context_hash")
    one, other = (read_shard(path, SCORES, columns).to_pylist() for path in paths)
    both = zip(one, other, strict=True)
    return next((row["rollout_id"] for row, twin in both if row == twin and row["context_hash"] is not None), None)


def _rows_of_both(paths: tuple[Path, Path]) -> Iterator[tuple[str, Kept, Kept]]:
    """The first rows of a shard's first row group that both views scored."""
    groups = [next(read_groups(path, SCORES), SCORES.empty_table()) for path in paths]
    is_scored = [group.column("skipped").is_null().to_numpy() for group in groups]
    for row in np.flatnonzero(np.logical_and(*is_scored))[:ROWS]:
        one, other = (_kept(group.slice(row, 1), path) for group, path in zip(groups, paths, strict=True))
        yield groups[0].column("rollout_id")[row].as_py(), one, other


def _kept(row: Any, path: Path) -> Kept:
    _, ids = from_nested_lists(row.column("support_ids"))
    _, logprobs = from_nested_lists(row.column("support_logprobs"))
    values, tails = normalise(logprobs, from_lists(row.column("tail_logprobs")).values, path)
    sampled = from_lists(row.column("sampled_logprobs")).values.astype(np.float64)
    return Kept(sampled, ids, values, tails)
