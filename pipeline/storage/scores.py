"""Shards of scores: what one view says of each response token, in the order of the rollouts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.storage.ragged import Ragged, to_list_array
from pipeline.storage.rounding import round_to_half
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
    """One view of some responses, laid end to end: T tokens with E entries in all.

    Attributes:
        sampled_logprobs: float32 [T], of the response tokens.
        support: which entries belong to which token: `ids` and `logprobs` are cut alike.
        ids: int32 ragged [T][...], the model's own ids by falling probability, then those asked for.
        logprobs: float32 ragged [T][...], normalised over the whole vocabulary.
        own: uint16 [T], how many of the entries are the model's own.
        tail_logprobs: float32 [T], log of the probability outside all entries.
        entropies: float32 [T] in nats over the whole vocabulary, or None.
    """

    sampled_logprobs: np.ndarray
    ids: Ragged
    logprobs: Ragged
    own: np.ndarray
    tail_logprobs: np.ndarray
    entropies: np.ndarray | None


def score_table(
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


def skipped_table(rollout_ids: Sequence[str], reasons: Sequence[str]) -> pa.Table:
    """Make the rows of a score shard that have no score, and say why."""
    return make_table({"rollout_id": rollout_ids, "skipped": reasons}, SCORES)
