"""Views as training reads them: the columns of one row group, and of a pack's sequences as padded tensors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import ShardError
from pipeline.objectives.inputs import Target
from pipeline.objectives.outcomes import Outcomes
from pipeline.settings.recipe import Recipe
from pipeline.storage.ragged import Ragged
from pipeline.storage.scores import Scores, decode_scores

TARGET_COLUMNS = ("rollout_id", "sampled_logprobs", "support_ids", "support_logprobs", "tail_logprobs", "skipped")
"""Columns of a score shard that training always reads; a recipe may add some."""


def list_target_columns(recipe: Recipe | None, view: str) -> tuple[str, ...]:
    """List the columns of a score shard that training reads for a recipe."""
    if recipe is None:
        return TARGET_COLUMNS
    own = ("own",) if view in recipe.own_views else ()
    return TARGET_COLUMNS + own + (("entropies",) if view in recipe.entropy_views else ())


def decode_view(rows: Any, responses: Ragged, path: Path, may_lack: bool) -> Scores:
    """Read a view of one row group back, its tokens as in the responses.

    Args:
        rows: of the shard of scores.
        responses: the tokens of the same rows.
        path: of the shard, for errors.
        may_lack: rows may be without a score: their tokens then have no entries, and a tail of probability 1.

    Raises:
        ShardError: a row has no score, or one of another length than its response.
    """
    is_scored = rows.column("skipped").is_null().to_numpy()
    if not may_lack and not is_scored.all():
        reasons = sorted({reason for reason in rows.column("skipped").to_pylist() if reason is not None})
        raise ShardError(
            f"{path}: {(~is_scored).sum()} of {rows.num_rows} rows have no score "
            f"({', '.join(reasons)}), so its view cannot be a target for all rollouts. Give every prompt what "
            "the view needs, or choose a train.objective that does not learn from it."
        )
    lengths, scores = decode_scores(rows.filter(is_scored), path)
    if not np.array_equal(lengths, responses.lengths[is_scored]):
        raise ShardError(f"{path}: its lists are not as long as the responses. Run `dvc repro score`.")
    return scores if is_scored.all() else _spread(scores, np.repeat(is_scored, responses.lengths))


def _spread(scores: Scores, has_score: np.ndarray) -> Scores:
    """Put scores where their tokens are among those without one, so that row boundaries are the responses' own."""

    def spread(known: np.ndarray) -> np.ndarray:
        everywhere = np.zeros(len(has_score), known.dtype)
        everywhere[has_score] = known
        return everywhere

    counts = spread(scores.ids.lengths)
    return Scores(
        spread(scores.sampled_logprobs),
        Ragged.cut(scores.ids.values, counts),
        Ragged.cut(scores.logprobs.values, counts),
        None if scores.own is None else spread(scores.own),
        spread(scores.tail_logprobs),
        None if scores.entropies is None else spread(scores.entropies),
    )


def make_unscored_view(responses: Ragged) -> Scores:
    """Make the scores of responses that a view was never asked about, those of another source: no entries."""
    zeros = np.zeros(len(responses.values), np.float32)
    no_entries = np.zeros(len(zeros) + 1, np.int64)
    ids, logprobs = (Ragged(np.empty(0, dtype), no_entries) for dtype in (np.int32, np.float32))
    return Scores(zeros, ids, logprobs, None, zeros, None)


def build_target(parts: Sequence[tuple[Scores, slice]]) -> Target:
    """Lay out the sequences of a pack as padded tensors, without a loop over tokens.

    Args:
        parts: of each sequence the scores of its row group, and which of that group's tokens are its own.
    """
    cut = [scores.slice_tokens(its.start, its.stop) for scores, its in parts]
    counts = np.concatenate([scores.ids.lengths for scores in cut])
    is_entry = np.arange(counts.max(initial=0)) < counts[:, None]
    ids = np.full(is_entry.shape, -1, np.int64)
    ids[is_entry] = np.concatenate([scores.ids.values for scores in cut])
    logprobs = np.full(is_entry.shape, -np.inf, np.float32)
    logprobs[is_entry] = np.concatenate([scores.logprobs.values for scores in cut])

    def lay_out(columns: Sequence[np.ndarray | None]) -> torch.Tensor:
        """Zeros where the recipe does not read a column."""
        zeros = [np.zeros(len(scores.sampled_logprobs), np.float32) for scores in cut]
        return torch.from_numpy(
            np.concatenate([zero if column is None else column for zero, column in zip(zeros, columns, strict=True)])
        )

    tails, sampled, own, entropies = (
        lay_out([getattr(scores, name) for scores in cut])
        for name in ("tail_logprobs", "sampled_logprobs", "own", "entropies")
    )
    return Target(torch.from_numpy(ids), Outcomes(torch.from_numpy(logprobs), tails), sampled, own.long(), entropies)
