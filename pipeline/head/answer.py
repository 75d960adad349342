"""Ask and Answer: what training wants to know of each token, as small tensors with gradient."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import register_dataclass


@dataclass(frozen=True)
class Ask:
    """The question about each of T tokens.

    Attributes:
        sampled_ids: int64 [T], the response tokens.
        ids: int64 [T, k], distinct in each row, padded with −1 behind the last; k may be 0.
        top_k: so many of the student's own likeliest ids; 0 for none.
        entropy: whether the entropy is wanted.
    """

    sampled_ids: Int[Tensor, " token"]
    ids: Int[Tensor, "token k"]
    top_k: int = 0
    entropy: bool = False


@dataclass(frozen=True)
class Answer:
    """The model's small tensors, in nats, at least fp32, normalised over the whole vocabulary.

    Attributes:
        sampled: [T], with gradient.
        logprobs: [T, k] at the ids asked for, with gradient; −inf where they are padding.
        tail: [T], log of the probability outside those ids, with gradient; −inf where nothing is left.
        top_ids: [T, top_k] by falling probability.
        top_logprobs: [T, top_k], with gradient.
        entropy: [T] without gradient, or None.
    """

    sampled: Float[Tensor, " token"]
    logprobs: Float[Tensor, "token k"]
    tail: Float[Tensor, " token"]
    top_ids: Int[Tensor, "token top"]
    top_logprobs: Float[Tensor, "token top"]
    entropy: Float[Tensor, " token"] | None


# FSDP2 finds the tensors that a forward gives by way of pytrees, to gather the parameters again before their backward.
register_dataclass(Answer)


def concatenate_fields(chunks: Sequence[Any]) -> list[Any]:
    """Lay the tensors of a dataclass end to end: of each field those of all chunks, or None where they have none."""
    columns = [[getattr(chunk, field.name) for chunk in chunks] for field in fields(chunks[0])]
    return [None if column[0] is None else torch.cat(column) for column in columns]
