"""The head: what objectives and shards need of a model, from last hidden states, never as [tokens × vocabulary].

Every objective here is a function of a few numbers per token: log-probabilities at given ids, at the sampled token,
at the live top k, the tail outside them, the entropy. They are computed in chunks of tokens, and the backward pass
computes each chunk again, so memory is O(tokens × k + chunk × vocabulary). The scorer uses the forward half.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import register_dataclass

from pipeline.head_gradient import Chunks, answer_chunk

VERSION = 1  # raise it when a log-probability would change; scores and checkpoints are then made again

CHUNK = 2**25
"""Logits that are held at once: chunk × vocabulary."""


@dataclass(frozen=True)
class LowRank:
    """What LoRA adds to an output layer: its matrix becomes W + up · down, which nobody needs to hold.

    Attributes:
        down: [rank, hidden], with the adapter's scaling.
        up: [vocabulary, rank].
    """

    down: Float[Tensor, "rank hidden"]
    up: Float[Tensor, "vocabulary rank"]

    def inner(self, hidden: Float[Tensor, "token hidden"]) -> Float[Tensor, "token rank"]:
        """Between the two matrices; in their precision, as peft does."""
        return functional.linear(hidden.to(self.down.dtype), self.down)


@dataclass(frozen=True)
class Output:
    """A model's output layer: logits = softcap · tanh(scale · (h Wᵀ + b) / softcap).

    Attributes:
        weight: [vocabulary, hidden].
        bias: [vocabulary], or None.
        scale: factor of the logits (1 for most architectures).
        softcap: bound of the logits, as in Gemma 2; None for most.
        adapter: what is added to W, or None.
    """

    weight: Float[Tensor, "vocabulary hidden"]
    bias: Float[Tensor, " vocabulary"] | None = None
    scale: float = 1.0
    softcap: float | None = None
    adapter: LowRank | None = None

    @property
    def chunk(self) -> int:
        """Tokens that are computed at once, at most."""
        return max(1, CHUNK // len(self.weight))

    def to(self, dtype: torch.dtype) -> "Output":
        """The same layer with other matrices; gradient flows back to these."""
        bias = None if self.bias is None else self.bias.to(dtype)
        adapter = None if self.adapter is None else LowRank(self.adapter.down.to(dtype), self.adapter.up.to(dtype))
        return replace(self, weight=self.weight.to(dtype), bias=bias, adapter=adapter)

    def chunks(
        self, hidden: Float[Tensor, "token hidden"], temperature: float = 1.0
    ) -> Iterator[tuple[slice, Float[Tensor, "piece vocabulary"]]]:
        """The logits of a few tokens at a time, each chunk in the memory of the one before; no tokens are one chunk.

        In the precision of the matrices; everything that sums over the vocabulary is at least fp32. They have no
        gradient, and the caller may write over them.
        """
        # Even chunks, in memory that is had once: to be given new pages costs as much as the product that fills them.
        tokens = max(1, len(hidden))
        size = math.ceil(tokens / math.ceil(tokens / self.chunk))
        room = hidden.new_empty(size, len(self.weight))
        for start in range(0, tokens, size):
            piece = slice(start, start + size)
            part = hidden[piece]
            yield piece, self._logits(part, temperature, room[: len(part)])

    def _logits(self, hidden: Tensor, temperature: float, room: Tensor) -> Tensor:
        matrix = self.weight.T
        if self.bias is None:
            torch.mm(hidden, matrix, out=room)
        else:
            torch.addmm(self.bias, hidden, matrix, out=room)
        logits = room if room.dtype == torch.float64 else room.float()
        if self.adapter is not None:
            logits.add_(functional.linear(self.adapter.inner(hidden), self.adapter.up))
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits if temperature == 1.0 else logits.div_(temperature)

    def slope(
        self, logits: Float[Tensor, "token vocabulary"], temperature: float
    ) -> Float[Tensor, "token vocabulary"] | None:
        """Derivative of the soft cap at `logits`, which it is given capped and divided; None without one."""
        return None if self.softcap is None else 1 - (logits * (temperature / self.softcap)).square_()


def logit_scale(config: Any) -> float:
    """The factor that an architecture puts on its logits, from its text configuration in transformers."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):  # Cohere, Muse Glimmer, Falcon-H1
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = float(getattr(config, "logits_scaling", None) or 1.0)
    # Granite divides by it, HyperCLOVA X multiplies.
    return scaling if config.model_type.startswith("hyperclovax") else 1.0 / scaling


@dataclass(frozen=True)
class Ask:
    """What is wanted of each of T tokens.

    Attributes:
        sampled_ids: int64 [T], the response tokens.
        ids: int64 [T, k], distinct in each row, padded with −1 behind the last; k may be 0.
        temperature: divides the logits.
        top_k: so many of the student's own likeliest ids; 0 for none.
        entropy: whether the entropy is wanted.
    """

    sampled_ids: Int[Tensor, " token"]
    ids: Int[Tensor, "token k"]
    temperature: float = 1.0
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


@dataclass(frozen=True)
class Scored:
    """One chunk-free score of T tokens, entries padded with id −1 behind the last.

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


def answer(hidden: Float[Tensor, "token hidden"], output: Output, ask: Ask) -> Answer:
    """Compute what is asked, with a backward pass that holds one chunk of logits at a time.

    Args:
        hidden: last hidden states, after the final norm, of the positions that predict the sampled tokens.
        output: the output layer; gradient flows to it and to `hidden`.
        ask: what is wanted.
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        hidden, output = hidden.to(dtype), output.to(dtype)
    low = output.adapter
    matrices = output.weight, output.bias, *((None, None) if low is None else (low.down, low.up))
    return Answer(*Chunks.apply(hidden, *matrices, output, ask))  # pyright: ignore[reportGeneralTypeIssues]


@torch.no_grad()
def score(
    hidden: Float[Tensor, "token hidden"],
    output: Output,
    sampled_ids: Int[Tensor, " token"],
    asked_ids: Int[Tensor, "token asked"] | None,
    top_k: int,
    mass: float | None = None,
    min_k: int = 1,
    entropies: bool = True,
) -> Scored:
    """Compute a score shard's columns.

    Args:
        hidden: last hidden states of the positions that predict the sampled tokens.
        output: the output layer.
        sampled_ids: the response tokens.
        asked_ids: ids to score besides the model's own, padded with −1; repeated ids count once.
        top_k: so many of the model's likeliest ids; 0 for none.
        mass: of these, only the shortest prefix that holds this probability of the whole vocabulary.
        min_k: with `mass`, at least so many.
        entropies: also give the entropy.
    """
    asked = sampled_ids.new_empty(len(sampled_ids), 0) if asked_ids is None else asked_ids.sort(dim=-1).values
    parts = []
    for piece, logits in output.chunks(hidden):
        parts.append(_score_chunk(logits, sampled_ids[piece], asked[piece], top_k, mass, min_k, entropies))
    joined = [None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)]
    return Scored(*joined)  # pyright: ignore[reportArgumentType]


def _score_chunk(
    logits: Tensor, sampled_ids: Tensor, asked: Tensor, top_k: int, mass: float | None, min_k: int, entropies: bool
) -> tuple[Tensor | None, ...]:
    """The columns of one chunk, whose logits are used up: only what is outside all entries is summed over."""
    likeliest = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    at_asked = logits.gather(-1, asked.clamp_min(0))
    every = _entries_first(torch.cat([likeliest.indices, _without(asked, likeliest.indices)], dim=-1))[0]
    ask = Ask(sampled_ids, every, entropy=entropies)
    total, sampled, _, tail, _, _, entropy = answer_chunk(logits, sampled_ids, every, ask)
    own_ids, own = _by_falling_probability(likeliest.indices, likeliest.values - total.unsqueeze(-1))
    if mass is not None:
        probabilities = own.double().exp()
        before = probabilities.cumsum(dim=-1) - probabilities
        is_kept = (before < mass) | (torch.arange(own_ids.shape[-1], device=own_ids.device) < min_k)
        is_asked = (own_ids.unsqueeze(-1) == asked.unsqueeze(-2)).any(dim=-1)
        dropped = own.masked_fill(is_kept | is_asked, -torch.inf)
        tail = torch.cat([tail.unsqueeze(-1), dropped], dim=-1).logsumexp(dim=-1)
        own_ids = own_ids.masked_fill(~is_kept, -1)
    others_ids, others = _by_falling_probability(_without(asked, own_ids), at_asked - total.unsqueeze(-1))
    ids, order = _entries_first(torch.cat([own_ids, others_ids], dim=-1))
    logprobs = torch.cat([own, others], dim=-1).gather(-1, order).masked_fill(ids < 0, -torch.inf)
    return sampled, ids, logprobs, (own_ids >= 0).sum(dim=-1), tail, entropy


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
