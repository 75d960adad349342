"""Log-probabilities in 16 bits: how they are stored, and how what is read is made a distribution again."""

from pathlib import Path

import numpy as np

from pipeline.errors import damaged
from pipeline.storage.ragged import Ragged


def round_to_half(logprobs: np.ndarray) -> np.ndarray:
    """Round fp32 to the precision of fp16, keeping its range: bytes of the mantissa become zero and compress away."""
    bits = np.ascontiguousarray(logprobs, dtype=np.float32).view(np.uint32)
    finite = np.isfinite(logprobs)
    rounded = ((bits + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(finite, rounded, logprobs).astype(np.float32)


def normalise(logprobs: Ragged, tails: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Make stored values a distribution again, which rounding to fp16 had undone.

    Args:
        logprobs: of each token's entries, as stored, nats.
        tails: [T], log of the mass outside them, nats; −inf where nothing is left.
        path: of the shard, for the error.

    Returns:
        The entries' values and the tails, less the log of their sum.

    Raises:
        ShardError: some token's log-sum is further from 0 than 1e-3 nats, and than rounding can have moved it (each
            value by 2^-11 of itself: 2e-3 nats for 64 ids of equal probability).
    """
    # A damaged shard may hold anything, and is told of below.
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        room = np.exp(logprobs.values)
        totals = np.log(_sums(room, logprobs.offsets) + np.exp(tails))
    if not (np.abs(totals) <= 1e-3).all():
        _refuse_more_than_rounding(totals, logprobs, path)
    return np.subtract(logprobs.values, np.repeat(totals, logprobs.lengths), out=room), tails - totals


def _refuse_more_than_rounding(totals: np.ndarray, logprobs: Ragged, path: Path) -> None:
    """Refuse a sum that is off by over 1e-3 and by more than rounding to 16 bits (2^-11 of each value) explains."""
    values = np.maximum(logprobs.values.astype(np.float64), -700.0)  # 0 · −inf would be no number
    rounding = 2**-11 * _sums(-np.exp(values) * values, logprobs.offsets)
    excess = np.abs(totals) - np.maximum(rounding, 1e-3)
    worst = int(np.argmax(excess))
    if not excess[worst] <= 0:
        total = np.exp(totals[worst])
        raise damaged(path, f"is damaged: the probabilities kept at one token sum to {total:.4f}, not to 1")


def _sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Sum each row, of fp32 to a few units in its last place; 0 for an empty row."""
    starts, is_filled = offsets[:-1], offsets[1:] > offsets[:-1]
    if is_filled.all() and len(starts):
        return np.add.reduceat(values, starts)
    sums = np.zeros(len(starts), values.dtype)
    if is_filled.any():  # `reduceat` gives an empty row the next one's first value
        sums[is_filled] = np.add.reduceat(values, starts[is_filled])
    return sums
