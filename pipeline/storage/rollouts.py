"""Shards of rollouts: a row for each response, with the log-probabilities that it was drawn with."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from pipeline.storage.ragged import to_lists
from pipeline.storage.shards import IDS, NATS, SMALL, WORD, make_table

VERSION = 1  # raise it when a column's meaning changes; shards of rollouts are then made again

ROLLOUTS = pa.schema(
    [
        pa.field("rollout_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("source", WORD, nullable=False),
        pa.field("behaviour", WORD, nullable=False),
        pa.field("written_in", WORD, nullable=False),
        pa.field("prompt_ids", IDS, nullable=False),
        pa.field("response_ids", IDS, nullable=False),
        pa.field("behaviour_logprobs", NATS, nullable=False),
        pa.field("sampling_logprobs", NATS),
        pa.field("behaviour_topk_ids", pa.list_(IDS)),
        pa.field("segments", SMALL),
        pa.field("finish_reason", WORD, nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ]
)

TOKEN_COLUMNS = ("rollout_id", "prompt_ids", "response_ids")
"""Which tokens a row has, and nothing else: what scoring and training always read."""


@dataclass(frozen=True)
class Rollout:
    """One response of T tokens, with the names and types of the columns that a writer fills.

    Attributes:
        rollout_id: hash of the writer, the prompt, the sample's number and the response's ids.
        prompt_id: hash of the prompt's messages.
        sample: which of the responses to this prompt, from 0.
        source: `student` or `teacher`.
        behaviour: hash of the writer's weights.
        written_in: the round, or '' where there is none.
        prompt_ids: what the model read, ids in and ids out: text is never tokenised again.
        response_ids: int32 [T], the end-of-sequence token included where the model wrote it.
        behaviour_logprobs: float32 [T], nats at temperature 1 over the whole vocabulary.
        finish_reason: `stop` (the model ended it) or `length` (the limit did).
        text: of the response, for people and graders.
        sampling_logprobs: float32 [T] under the distribution sampled from; None where that is the same, or unknown.
        behaviour_topk_ids: int32 [T, k], the writer's own likeliest ids; None where none were asked for.
    """

    rollout_id: str
    prompt_id: str
    sample: int
    source: str
    behaviour: str
    written_in: str
    prompt_ids: Sequence[int]
    response_ids: np.ndarray
    behaviour_logprobs: np.ndarray
    finish_reason: str
    text: str
    sampling_logprobs: np.ndarray | None = None
    behaviour_topk_ids: np.ndarray | None = None


def make_rollout_table(rollouts: Sequence[Rollout]) -> pa.Table:
    """Make the rows of a shard of rollouts; a column that `Rollout` does not have (`segments`) is null."""
    columns = {}
    for field in fields(Rollout):
        values = [getattr(rollout, field.name) for rollout in rollouts]
        kind = ROLLOUTS.field(field.name).type
        columns[field.name] = to_lists(values, kind) if pa.types.is_list(kind) else pa.array(values, kind)
    return make_table(columns, ROLLOUTS)
