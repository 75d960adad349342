"""Two views of one model that differ in their context alone must differ in what they say.

Privileged context that never reaches the teacher is silent: training goes on, towards the model without it. (The
authors of arXiv:2605.02943 report it of their own runs, in HINT_FIX.md of their repository.) What is compared was
stored, so a run that finds every shard compares again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.errors import ShardError
from pipeline.scoring.plan import ScoreJob
from pipeline.storage.scores import SCORES, Scores, decode_scores
from pipeline.storage.shards import open_shard, read_group

LEAST_KL = 1e-4
"""Nats per token that two contexts must be apart, in the mean."""

SHARDS, ROWS = 16, 4
"""The KL is taken over so many shards at most, and so many rows of each: a sample, whatever the run's size."""


def list_views_to_compare(name: str, jobs: Mapping[str, ScoreJob]) -> list[str]:
    """List the views of the same model as this one's in another context; `jobs` has one of each view."""
    own = jobs[name]
    return [
        other
        for other, job in jobs.items()
        if job.model.weights_hash == own.model.weights_hash and job.view.context != own.view.context
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
    sampled: list[tuple[str, Scores, Scores]] = []
    step = -(-len(pairs) // SHARDS)
    for number, paths in enumerate(pairs):
        shards = [_read_shard(path, number % step == 0) for path in paths]
        if (rollout_id := _same_context(*(shard.contexts for shard in shards))) is not None:
            raise ShardError(
                f"{what}, but response {rollout_id} ({paths[1]}) was scored after the same tokens in both: what one of "
                f"them adds does not arrive. {remedy}"
            )
        sampled += _rows_of_both([shard.first_rows for shard in shards], paths)
    values = np.concatenate([least_kl(one, other) for _, one, other in sampled]) if sampled else np.array([])
    if len(values) and values.mean() < LEAST_KL:
        raise ShardError(
            f"{what}, but over {len(values)} tokens of {len(sampled)} responses, {sampled[0][0]} the first, their mean "
            f"KL is {values.mean():.1e} nats, under {LEAST_KL:.0e}: the context changes nothing. {remedy}"
        )


def least_kl(one: Scores, other: Scores) -> np.ndarray:
    """Bound KL(one ‖ other) from below at each token, from what both views stored.

    The larger of two KLs of coarser outcomes, each at most the KL over the vocabulary (data-processing inequality): the
    ids that both kept and all else; the sampled token and all else, for views that have few or no ids in common.

    Returns:
        [T], nats.
    """
    tokens = len(one.tail_logprobs)
    shared, of_one, of_other = np.intersect1d(_keys(one), _keys(other), assume_unique=True, return_indices=True)
    differences = _divergence(one.logprobs.values[of_one], other.logprobs.values[of_other])
    at_shared = np.bincount(shared >> 32, differences, tokens)
    rest, other_rest = _log_mass_outside(one, of_one), _log_mass_outside(other, of_other)
    sampled, other_sampled = (scores.sampled_logprobs.astype(np.float64) for scores in (one, other))
    not_sampled, other_not_sampled = _log(-np.expm1(sampled)), _log(-np.expm1(other_sampled))
    at_sampled = _divergence(sampled, other_sampled) + _divergence(not_sampled, other_not_sampled)
    return np.maximum(at_shared + _divergence(rest, other_rest), at_sampled)


def _divergence(logprobs: np.ndarray, others: np.ndarray) -> np.ndarray:
    """An outcome's share of the KL, from its two log-probabilities."""
    logprobs = logprobs.astype(np.float64)
    return np.exp(logprobs) * (logprobs - others)


def _keys(scores: Scores) -> np.ndarray:
    """Token and id of each entry in one number."""
    return (_tokens_of_entries(scores) << 32) + scores.ids.values


def _tokens_of_entries(scores: Scores) -> np.ndarray:
    return np.repeat(np.arange(len(scores.ids)), scores.ids.lengths)


def _log_mass_outside(scores: Scores, entries: np.ndarray) -> np.ndarray:
    """Log of the probability outside these entries, [T]."""
    is_outside = np.ones(len(scores.ids.values), bool)
    is_outside[entries] = False
    masses = np.exp(scores.logprobs.values[is_outside].astype(np.float64))
    of_entries = np.bincount(_tokens_of_entries(scores)[is_outside], masses, len(scores.ids))
    return _log(of_entries + np.exp(scores.tail_logprobs.astype(np.float64)))


def _log(masses: np.ndarray) -> np.ndarray:
    """Logarithm of masses that rounding may have made 0: these count as 1e-30."""
    return np.log(np.maximum(masses, 1e-30))


@dataclass(frozen=True, eq=False)
class _Shard:
    """A shard of scores as it is compared: the context of every row, and the rows of the first row group."""

    contexts: pa.Table
    first_rows: pa.Table


def _read_shard(path: Path, is_sampled: bool) -> _Shard:
    """Open a shard once; of one that is not sampled there are no first rows."""
    with open_shard(path, ("context_hash", *_COMPARED)) as file:
        numbers = range(file.num_row_groups)
        contexts = [read_group(path, file, number, ("rollout_id", "context_hash")) for number in numbers]
        first = [read_group(path, file, number, _COMPARED) for number in numbers[:1] if is_sampled]
    return _Shard(_join(contexts, ("rollout_id", "context_hash")), _join(first, _COMPARED))


_COMPARED = ("rollout_id", "sampled_logprobs", "support_ids", "support_logprobs", "tail_logprobs", "skipped")


def _join(groups: Sequence[pa.Table], columns: Sequence[str]) -> pa.Table:
    return pa.concat_tables(groups) if groups else SCORES.empty_table().select(list(columns))


def _same_context(one: pa.Table, other: pa.Table) -> str | None:
    """The first row that two views scored after the same tokens."""
    both = zip(one.to_pylist(), other.to_pylist(), strict=True)
    return next((row["rollout_id"] for row, twin in both if row == twin and row["context_hash"] is not None), None)


def _rows_of_both(groups: Sequence[pa.Table], paths: Sequence[Path]) -> Iterator[tuple[str, Scores, Scores]]:
    """The first rows of a row group that both views scored."""
    is_scored = [group.column("skipped").is_null().to_numpy() for group in groups]
    for row in np.flatnonzero(np.logical_and(*is_scored))[:ROWS]:
        one, other = (decode_scores(group.slice(row, 1), path)[1] for group, path in zip(groups, paths, strict=True))
        yield groups[0].column("rollout_id")[row].as_py(), one, other
