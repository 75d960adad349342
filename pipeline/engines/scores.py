"""From the head's padded tensors to the scores that an engine gives."""

import numpy as np

from pipeline.head.scores import PaddedScores
from pipeline.storage.ragged import Ragged
from pipeline.storage.scores import Scores


def unpad_scores(padded: PaddedScores) -> Scores:
    """Bring what the head says of some tokens to the host, without its padding."""
    ids = padded.ids.cpu().numpy()
    is_entry = ids >= 0
    counts = is_entry.sum(axis=1)
    return Scores(
        padded.sampled.float().cpu().numpy(),
        Ragged.cut(ids[is_entry].astype(np.int32), counts),
        Ragged.cut(padded.logprobs.float().cpu().numpy()[is_entry], counts),
        padded.own.cpu().numpy().astype(np.uint16),
        padded.tail.float().cpu().numpy(),
        None if padded.entropy is None else padded.entropy.float().cpu().numpy(),
    )
