"""vLLM's own prompt log-probabilities as a score: straight from its flat lists to arrays.

With K ids asked, a position's entry is K + 1 long: the actual token, then the likeliest K by rank. The first position
of a prompt has none, so the row of position i is i − 1.
"""

from typing import Any

import numpy as np

from pipeline.head.support import Support
from pipeline.storage.ragged import Ragged
from pipeline.storage.scores import Scores

SMALLEST_TAIL = -11.0
"""Log of the mass that 1 − Σ of fp32 probabilities can still tell from none."""


def read_scores(flat: Any, prompt: int, vocabulary: int, support: Support) -> Scores:
    """Read the scores of one response.

    Args:
        flat: `vllm.logprobs.FlatLogprobs` of the prompt and the response as one prompt, with `support.top_k` ids.
        prompt: tokens before the response.
        vocabulary: ids that the probabilities are over.
        support: which of the likeliest ids are kept.

    Returns:
        Tails derived from the values that are kept; no entropies.
    """
    ids = np.array(flat.token_ids, np.int32).reshape(-1, support.top_k + 1)[prompt - 1 :]
    logprobs = np.array(flat.logprobs, np.float32).reshape(-1, support.top_k + 1)[prompt - 1 :]
    sampled = logprobs[:, 0]
    order = np.lexsort((ids[:, 1:], -logprobs[:, 1:]), axis=1)
    ids = np.take_along_axis(ids[:, 1:], order, axis=1)
    logprobs = np.take_along_axis(logprobs[:, 1:], order, axis=1)
    probabilities = np.exp(logprobs.astype(np.float64))
    is_kept = np.ones(ids.shape, dtype=bool)
    if support.mass is not None:
        before = probabilities.cumsum(axis=1) - probabilities
        is_kept = (before < support.mass) | (np.arange(ids.shape[1]) < support.min_k)
    own = is_kept.sum(axis=1)
    return Scores(
        sampled.copy(),
        Ragged.cut(ids[is_kept], own),
        Ragged.cut(logprobs[is_kept], own),
        own.astype(np.uint16),
        _tails((probabilities * is_kept).sum(axis=1), own == vocabulary),
        None,
    )


def _tails(held: np.ndarray, is_everything: np.ndarray) -> np.ndarray:
    """log(1 − held), floored; −inf where no id is left."""
    tails = np.log1p(-np.minimum(held, 1 - np.exp(SMALLEST_TAIL)))
    return np.where(is_everything, -np.inf, tails).astype(np.float32)
