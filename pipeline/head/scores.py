"""Scoring tokens: log-probabilities at the model's own likeliest ids and at those asked for, and the tail."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.head.answer import Ask, concatenate_fields
from pipeline.head.gradient import answer_chunk
from pipeline.head.layer import OutputLayer
from pipeline.head.support import Support


@dataclass(frozen=True)
class PaddedScores:
    """The scores of T tokens, in nats; entries are padded with id −1 behind the last.

    Attributes:
        sampled: [T] log-probability of the response tokens.
        ids: int64 [T, e]: the model's own by falling probability (ties by id), then those asked for, likewise.
        logprobs: [T, e], −inf at padding.
        own: int64 [T], how many entries are the model's own.
        tail: [T], log of the probability outside all entries.
        entropy: [T], or None.
    """

    sampled: Float[Tensor, " token"]
    ids: Int[Tensor, "token entry"]
    logprobs: Float[Tensor, "token entry"]
    own: Int[Tensor, " token"]
    tail: Float[Tensor, " token"]
    entropy: Float[Tensor, " token"] | None


@torch.no_grad()
def score_tokens(
    hidden: Float[Tensor, "token hidden"],
    output: OutputLayer,
    sampled_ids: Int[Tensor, " token"],
    asked_ids: Int[Tensor, "token asked"] | None,
    support: Support,
) -> PaddedScores:
    """Score tokens: at the model's own likeliest ids, at those asked for, and the tail.

    Args:
        hidden: last hidden states of the positions that predict the sampled tokens.
        output: the output layer.
        sampled_ids: the response tokens.
        asked_ids: ids to score besides the model's own, padded with −1; repeated ids count once.
        support: which of the model's own ids are kept, and whether entropies are.
    """
    asked = sampled_ids.new_empty(len(sampled_ids), 0) if asked_ids is None else asked_ids.sort(dim=-1).values
    chunks = [
        _score_chunk(logits, sampled_ids[piece], asked[piece], support) for piece, logits in output.chunks(hidden)
    ]
    return PaddedScores(*concatenate_fields(chunks))


def _score_chunk(logits: Tensor, sampled_ids: Tensor, asked: Tensor, support: Support) -> PaddedScores:
    """The scores of one chunk, whose logits are used up: only what is outside all entries is summed over."""
    likeliest = logits.topk(min(support.top_k, logits.shape[-1]), dim=-1)
    at_asked = logits.gather(-1, asked.clamp_min(0))
    every = _entries_first(torch.cat([likeliest.indices, _without(asked, likeliest.indices)], dim=-1))[0]
    total, answer = answer_chunk(logits, Ask(sampled_ids, every, entropy=support.entropies))
    own_ids, own = _by_falling_probability(likeliest.indices, likeliest.values - total.unsqueeze(-1))
    tail = answer.tail
    if support.mass is not None:
        probabilities = own.double().exp()
        before = probabilities.cumsum(dim=-1) - probabilities
        is_first = torch.arange(own_ids.shape[-1], device=own_ids.device) < support.min_k
        is_kept = (before < support.mass) | is_first
        is_asked = (own_ids.unsqueeze(-1) == asked.unsqueeze(-2)).any(dim=-1)
        dropped = own.masked_fill(is_kept | is_asked, -torch.inf)
        tail = torch.cat([tail.unsqueeze(-1), dropped], dim=-1).logsumexp(dim=-1)
        own_ids = own_ids.masked_fill(~is_kept, -1)
    others_ids, others = _by_falling_probability(_without(asked, own_ids), at_asked - total.unsqueeze(-1))
    ids, order = _entries_first(torch.cat([own_ids, others_ids], dim=-1))
    logprobs = torch.cat([own, others], dim=-1).gather(-1, order).masked_fill(ids < 0, -torch.inf)
    return PaddedScores(answer.sampled, ids, logprobs, (own_ids >= 0).sum(dim=-1), tail, answer.entropy)


def _entries_first(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's ids in their order with the padding behind them, and where they stood."""
    order = (ids < 0).to(torch.uint8).argsort(dim=-1, stable=True)
    return ids.gather(-1, order), order


def _by_falling_probability(ids: Tensor, logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """Sort each row's ids by falling probability, ties by id, padding last; and what belongs to them."""
    ids, by_id = ids.sort(dim=-1)
    logprobs = logprobs.gather(-1, by_id)
    # Padding sorts behind an id of probability zero.
    key = torch.where(ids < 0, -torch.inf, logprobs.clamp_min(torch.finfo(logprobs.dtype).min))
    order = key.argsort(dim=-1, descending=True, stable=True)
    return ids.gather(-1, order), logprobs.gather(-1, order)


def _without(asked: Tensor, own: Tensor) -> Tensor:
    """The asked ids, which rise, that the model's own do not have, each once; the others become padding."""
    repeated = torch.zeros_like(asked, dtype=torch.bool)
    repeated[:, 1:] = asked[:, 1:] == asked[:, :-1]
    known = (asked.unsqueeze(-1) == own.unsqueeze(-2)).any(dim=-1)
    return asked.masked_fill(repeated | known, -1)
