"""Shards of rollouts: a row for each response, with the log-probabilities that it was drawn with."""

import pyarrow as pa

from pipeline.storage.shards import IDS, NATS, SMALL, WORD

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
