"""Shards of scores: what one view says of each response token, in the order of the rollouts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.storage.ragged import Ragged, from_lists, from_nested_lists, to_list_array
from pipeline.storage.rounding import normalise, round_to_half
from pipeline.storage.shards import IDS, NATS, SMALL, make_table

VERSION = 1  # raise it when a column's meaning changes; shards of scores are then made again

SCORES = pa.schema(
    [
        pa.field("rollout_id", pa.string(), nullable=False),
        pa.field("sampled_logprobs", NATS),
        pa.field("support_ids", pa.list_(IDS)),
        pa.field("support_logprobs", pa.list_(NATS)),
        pa.field("own", SMALL),
        pa.field("tail_logprobs", NATS),
        pa.field("entropies", NATS),
        pa.field("context_hash", pa.string()),
        pa.field("skipped", pa.string()),
    ]
)


@dataclass(frozen=True)
class Scores:
    """One view of some responses, laid end to end: T tokens, each with its own number of entries.

    Engines give it, score shards hold it, and training and the comparison of views read it back.

    Attributes:
        sampled_logprobs: float32 [T] in nats, of the response tokens.
        ids: int32 ragged [T][...], the model's own ids by falling probability, then those asked for.
        logprobs: float32 ragged [T][...] in nats, normalised over the whole vocabulary; cut as `ids` are.
        own: uint16 [T], how many of the entries are the model's own; None where they were not read.
        tail_logprobs: float32 [T], log of the probability outside all entries.
        entropies: float32 [T] in nats over the whole vocabulary; None where there are none, or they were not read.
    """

    sampled_logprobs: np.ndarray
    ids: Ragged
    logprobs: Ragged
    own: np.ndarray | None
    tail_logprobs: np.ndarray
    entropies: np.ndarray | None

    def slice_tokens(self, start: int, stop: int) -> "Scores":
        """The scores of some tokens that stand side by side; nothing is copied."""
        offsets = self.ids.offsets[start : stop + 1]
        entries = slice(offsets[0], offsets[-1])
        return Scores(
            self.sampled_logprobs[start:stop],
            Ragged(self.ids.values[entries], offsets - offsets[0]),
            Ragged(self.logprobs.values[entries], offsets - offsets[0]),
            None if self.own is None else self.own[start:stop],
            self.tail_logprobs[start:stop],
            None if self.entropies is None else self.entropies[start:stop],
        )

    def cut(self, lengths: Sequence[int] | np.ndarray) -> "list[Scores]":
        """Cut the tokens into responses of these lengths."""
        ends = np.cumsum(lengths)
        return [self.slice_tokens(int(end - length), int(end)) for end, length in zip(ends, lengths, strict=True)]

    @staticmethod
    def concatenate(parts: "Sequence[Scores]") -> "Scores":
        """Lay the responses' scores end to end, in this order; the parts have the same columns."""
        if not parts:
            return NOTHING
        own = [part.own for part in parts if part.own is not None]
        entropies = [part.entropies for part in parts if part.entropies is not None]
        counts = np.concatenate([part.ids.lengths for part in parts])
        return Scores(
            np.concatenate([part.sampled_logprobs for part in parts]),
            Ragged.cut(np.concatenate([part.ids.values for part in parts]), counts),
            Ragged.cut(np.concatenate([part.logprobs.values for part in parts]), counts),
            np.concatenate(own) if own else None,
            np.concatenate([part.tail_logprobs for part in parts]),
            np.concatenate(entropies) if entropies else None,
        )


NOTHING = Scores(
    np.empty(0, np.float32),
    Ragged.from_rows([], np.int32),
    Ragged.from_rows([], np.float32),
    np.empty(0, np.uint16),
    np.empty(0, np.float32),
    None,
)
"""The scores of no response."""


def make_score_table(
    rollout_ids: Sequence[str], lengths: np.ndarray, scores: Scores, context_hashes: Sequence[str]
) -> pa.Table:
    """Make the rows of a score shard, from one array per column; no Python object per token.

    Args:
        rollout_ids: of the rows, in the order of the rollout shard.
        lengths: response tokens of each row; they add up to the tokens of `scores`.
        scores: of all rows, end to end.
        context_hashes: of each row, the hash of the prompt ids that the model really saw.
    """

    def per_row(values: pa.Array) -> pa.Array:
        return to_list_array(lengths, values)

    def per_entry(values: pa.Array) -> pa.Array:
        return per_row(to_list_array(scores.ids.lengths, values))

    columns = {
        "rollout_id": pa.array(rollout_ids, pa.string()),
        "sampled_logprobs": per_row(pa.array(scores.sampled_logprobs, pa.float32())),
        "support_ids": per_entry(pa.array(scores.ids.values, pa.int32())),
        "support_logprobs": per_entry(pa.array(round_to_half(scores.logprobs.values), pa.float32())),
        "own": per_row(pa.array(scores.own, pa.uint16())),
        "tail_logprobs": per_row(pa.array(scores.tail_logprobs, pa.float32())),
        "context_hash": pa.array(context_hashes, pa.string()),
    }
    if scores.entropies is not None:
        columns["entropies"] = per_row(pa.array(scores.entropies, pa.float32()))
    return make_table(columns, SCORES)


def make_skipped_table(rollout_ids: Sequence[str], reasons: Sequence[str]) -> pa.Table:
    """Make the rows of a score shard that have no score, and say why."""
    return make_table({"rollout_id": rollout_ids, "skipped": reasons}, SCORES)


def decode_scores(rows: pa.Table, path: Path) -> tuple[np.ndarray, Scores]:
    """Read rows of a score shard back, as distributions again: rounding to 16 bits had undone that they sum to 1.

    Args:
        rows: all of which have a score (`skipped` is null); `own` and `entropies` may be left out.
        path: of the shard, for the error.

    Returns:
        The rows' lengths in tokens, and their scores.

    Raises:
        ShardError: the probabilities of some token do not sum to 1.
    """

    def read(name: str) -> np.ndarray | None:
        return from_lists(rows.column(name)).values if name in rows.column_names else None

    lengths, ids = from_nested_lists(rows.column("support_ids"))
    _, stored = from_nested_lists(rows.column("support_logprobs"))
    logprobs, tails = normalise(stored, from_lists(rows.column("tail_logprobs")).values, path)
    sampled = from_lists(rows.column("sampled_logprobs")).values
    return lengths, Scores(sampled, ids, Ragged(logprobs, ids.offsets), read("own"), tails, read("entropies"))
