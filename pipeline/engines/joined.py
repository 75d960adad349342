"""Scores of single responses, made one by one and laid end to end."""

from collections.abc import Sequence

import numpy as np

from pipeline import head, shards
from pipeline.ragged import Ragged


def of_head(scored: head.Scored) -> shards.Scores:
    """What the head says of one response, on the host and without padding."""
    ids = scored.ids.cpu().numpy()
    is_entry = ids >= 0
    counts = is_entry.sum(axis=1)
    return shards.Scores(
        scored.sampled.float().cpu().numpy(),
        Ragged.cut(ids[is_entry].astype(np.int32), counts),
        Ragged.cut(scored.logprobs.float().cpu().numpy()[is_entry], counts),
        scored.own.cpu().numpy().astype(np.uint16),
        scored.tail.float().cpu().numpy(),
        None if scored.entropy is None else scored.entropy.float().cpu().numpy(),
    )


def joined(parts: Sequence[shards.Scores]) -> shards.Scores:
    """The responses' scores end to end, in this order; there is at least one."""
    entropies = [part.entropies for part in parts if part.entropies is not None]
    counts = np.concatenate([part.ids.lengths for part in parts])
    return shards.Scores(
        np.concatenate([part.sampled_logprobs for part in parts]),
        Ragged.cut(np.concatenate([part.ids.values for part in parts]), counts),
        Ragged.cut(np.concatenate([part.logprobs.values for part in parts]), counts),
        np.concatenate([part.own for part in parts]),
        np.concatenate([part.tail_logprobs for part in parts]),
        np.concatenate(entropies) if entropies else None,
    )
