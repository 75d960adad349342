"""Scores of single responses: cut out of a pack, and laid end to end."""

from collections.abc import Sequence

import numpy as np

from pipeline.head.scores import Scored
from pipeline.storage.ragged import Ragged
from pipeline.storage.scores import Scores

NOTHING = Scores(
    np.empty(0, np.float32),
    Ragged.from_rows([], np.int32),
    Ragged.from_rows([], np.float32),
    np.empty(0, np.uint16),
    np.empty(0, np.float32),
    None,
)
"""The scores of no response."""


def from_head(scored: Scored) -> Scores:
    """What the head says of some tokens, on the host and without padding."""
    ids = scored.ids.cpu().numpy()
    is_entry = ids >= 0
    counts = is_entry.sum(axis=1)
    return Scores(
        scored.sampled.float().cpu().numpy(),
        Ragged.cut(ids[is_entry].astype(np.int32), counts),
        Ragged.cut(scored.logprobs.float().cpu().numpy()[is_entry], counts),
        scored.own.cpu().numpy().astype(np.uint16),
        scored.tail.float().cpu().numpy(),
        None if scored.entropy is None else scored.entropy.float().cpu().numpy(),
    )


def cut_scores(scores: Scores, lengths: Sequence[int]) -> list[Scores]:
    """The scores of responses of these lengths, in tokens, that stand end to end."""
    ends = np.cumsum(lengths)
    return [_piece(scores, int(end - length), int(end)) for end, length in zip(ends, lengths, strict=True)]


def _piece(scores: Scores, start: int, end: int) -> Scores:
    offsets = scores.ids.offsets[start : end + 1]
    entries = slice(offsets[0], offsets[-1])
    return Scores(
        scores.sampled_logprobs[start:end],
        Ragged(scores.ids.values[entries], offsets - offsets[0]),
        Ragged(scores.logprobs.values[entries], offsets - offsets[0]),
        scores.own[start:end],
        scores.tail_logprobs[start:end],
        None if scores.entropies is None else scores.entropies[start:end],
    )


def concatenate(parts: Sequence[Scores]) -> Scores:
    """The responses' scores end to end, in this order."""
    if not parts:
        return NOTHING
    entropies = [part.entropies for part in parts if part.entropies is not None]
    counts = np.concatenate([part.ids.lengths for part in parts])
    return Scores(
        np.concatenate([part.sampled_logprobs for part in parts]),
        Ragged.cut(np.concatenate([part.ids.values for part in parts]), counts),
        Ragged.cut(np.concatenate([part.logprobs.values for part in parts]), counts),
        np.concatenate([part.own for part in parts]),
        np.concatenate([part.tail_logprobs for part in parts]),
        np.concatenate(entropies) if entropies else None,
    )
