"""Views as training reads them: the columns of one row group, and of a pack's sequences as padded tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import ShardError
from pipeline.objectives.inputs import Target
from pipeline.objectives.outcomes import Outcomes
from pipeline.settings.recipe import Recipe
from pipeline.storage.ragged import Ragged, from_lists, from_nested_lists
from pipeline.storage.rounding import normalise

COLUMNS = ("rollout_id", "sampled_logprobs", "support_ids", "support_logprobs", "tail_logprobs", "skipped")
"""Of a score shard, what training always reads; a recipe's own columns come to these."""


@dataclass(frozen=True)
class ViewGroup:
    """A view of one row group; entries are cut by token, tokens as in `responses`."""

    ids: Ragged
    logprobs: np.ndarray
    tails: np.ndarray
    sampled: np.ndarray
    own: np.ndarray
    entropies: np.ndarray


def target_columns(recipe: Recipe | None, view: str) -> tuple[str, ...]:
    """Of a score shard, what training reads for a recipe."""
    if recipe is None:
        return COLUMNS
    own = ("own",) if view in recipe.own_views else ()
    return COLUMNS + own + (("entropies",) if view in recipe.entropy_views else ())


def decode_view(scores: Any, responses: Ragged, path: Path, may_lack: bool) -> ViewGroup:
    """A view of one row group; rows without a score have no entries, and a tail of probability 1."""
    is_scored = scores.column("skipped").is_null().to_numpy()
    if not may_lack and not is_scored.all():
        reasons = sorted({reason for reason in scores.column("skipped").to_pylist() if reason is not None})
        raise ShardError(
            f"{path}: {(~is_scored).sum()} of {scores.num_rows} rows have no score "
            f"({', '.join(reasons)}), so its view cannot be a target for all rollouts. Give every prompt what "
            "the view needs, or choose a train.objective that does not learn from it."
        )
    scored = scores.filter(is_scored)
    has_score = np.repeat(is_scored, responses.lengths)
    lengths, ids = from_nested_lists(scored.column("support_ids"))
    if not np.array_equal(lengths, responses.lengths[is_scored]):
        raise ShardError(f"{path}: its lists are not as long as the responses. Run `dvc repro score`.")
    _, logprobs = from_nested_lists(scored.column("support_logprobs"))
    values, tails = normalise(logprobs, from_lists(scored.column("tail_logprobs")).values, path)

    def spread(known: np.ndarray) -> np.ndarray:
        """Tokens are end to end as in the responses, so that row boundaries are the responses' own."""
        if is_scored.all():
            return known
        everywhere = np.zeros(len(has_score), known.dtype)
        everywhere[has_score] = known
        return everywhere

    def column(name: str) -> np.ndarray:
        """Zeros where the recipe does not read it."""
        if name not in scores.column_names:
            return np.zeros(len(has_score), np.float32)
        return spread(from_lists(scored.column(name)).values)

    entries = ids if is_scored.all() else Ragged.cut(ids.values, spread(ids.lengths))
    return ViewGroup(entries, values, spread(tails), *(column(n) for n in ("sampled_logprobs", "own", "entropies")))


def unscored_view(responses: Ragged) -> ViewGroup:
    """A view of responses that it was never asked about: those of another source."""
    nothing = np.zeros(len(responses.values), np.float32)
    no_ids = Ragged(np.empty(0, np.int32), np.zeros(len(responses.values) + 1, np.int64))
    return ViewGroup(no_ids, np.empty(0, np.float32), nothing, nothing, nothing, nothing)


def build_target(parts: Sequence[tuple[ViewGroup, slice]]) -> Target:
    """The sequences of a pack, each as its row group and its tokens there, as padded tensors; no loop over tokens."""
    entries = [(view, slice(view.ids.offsets[its.start], view.ids.offsets[its.stop])) for view, its in parts]
    counts = np.concatenate([np.diff(view.ids.offsets[its.start : its.stop + 1]) for view, its in parts])
    is_entry = np.arange(counts.max(initial=0)) < counts[:, None]
    ids = np.full(is_entry.shape, -1, np.int64)
    ids[is_entry] = np.concatenate([view.ids.values[its] for view, its in entries])
    logprobs = np.full(is_entry.shape, -np.inf, np.float32)
    logprobs[is_entry] = np.concatenate([view.logprobs[its] for view, its in entries])
    tails, sampled, own, entropies = (
        torch.from_numpy(np.concatenate([getattr(view, name)[its] for view, its in parts]))
        for name in ("tails", "sampled", "own", "entropies")
    )
    return Target(torch.from_numpy(ids), Outcomes(torch.from_numpy(logprobs), tails), sampled, own.long(), entropies)
