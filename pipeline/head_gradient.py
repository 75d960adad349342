"""The head's arithmetic: small tensors out of chunks of logits, and their gradient in closed form.

Let z be a token's logits, S the ids asked for, Z the logsumexp over the vocabulary and O that over the ids outside S.
Every output is linear in z, Z and O: log p_i = z_i − Z, and the tail is O − Z. With g the gradient that comes back to
an output, and c = −Σ g over the outputs of the token,

    dz_i = c · p_i + g_i                                  for i in S,
    dz_i = (c · e^tail + g_tail) · e^(z_i − O)            for the others,

plus g of the sampled token and of the live top k at theirs. So a chunk costs one matrix product and one exponential
forward, three products and one exponential backward, all in the buffer that the first product filled. No exponent is
above 0, and nothing of a chunk outlives it.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from pipeline.head import Ask, Output


class Chunks(torch.autograd.Function):
    """From hidden states and the output layer to the fields of `head.Answer`, in their order."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, output: "Output", ask: "Ask"
    ) -> tuple[Tensor | None, ...]:
        """Compute every chunk once; `weight` and `bias` are those of `output`, named for the gradient's sake."""
        parts = [
            answer_chunk(output.logits(hidden[piece], ask.temperature), ask.sampled_ids[piece], ask.ids[piece], ask)
            for piece in output.pieces(len(hidden))
        ]
        columns = [None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)]
        total, sampled, logprobs, tail, top_ids, top_logprobs, entropy = columns
        ctx.output, ctx.ask = output, ask
        ctx.save_for_backward(hidden, weight, bias, total, logprobs, tail, top_ids)
        ctx.mark_non_differentiable(top_ids, *([] if entropy is None else [entropy]))
        return sampled, logprobs, tail, top_ids, top_logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Compute every chunk again, and what its logits pass on."""
        hidden, weight, bias, *kept = ctx.saved_tensors
        output, ask = ctx.output, ctx.ask
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        for_hidden = torch.empty_like(hidden) if wants_hidden else None
        # A sum over all tokens: in the precision of the small tensors, however the matrices are rounded.
        for_weight = torch.zeros_like(weight, dtype=kept[0].dtype) if wants_weight else None
        for_bias = torch.zeros_like(bias, dtype=kept[0].dtype) if wants_bias else None
        sampled, logprobs, tail, _, top_logprobs, _ = gradients
        for piece in output.pieces(len(hidden)):
            logits = output.logits(hidden[piece], ask.temperature)
            slope = output.slope(logits, ask.temperature)
            back = [one[piece] for one in (sampled, logprobs, tail, top_logprobs)]  # pyright: ignore[reportOptionalSubscript]
            passed_on = _backward(logits, ask.sampled_ids[piece], ask.ids[piece], [one[piece] for one in kept], back)
            passed_on = passed_on.mul_(slope).to(weight.dtype)
            if for_hidden is not None:
                torch.mm(passed_on, weight, out=for_hidden[piece])
            if for_weight is not None and for_weight.dtype == weight.dtype:
                for_weight.addmm_(passed_on.T, hidden[piece])
            elif for_weight is not None:
                for_weight += passed_on.T @ hidden[piece]
            if for_bias is not None:
                for_bias += passed_on.sum(dim=0, dtype=for_bias.dtype)
        return (
            for_hidden,
            None if for_weight is None else for_weight.to(weight.dtype),
            None if for_bias is None else for_bias.to(bias.dtype),
            None,
            None,
        )


def answer_chunk(
    logits: Tensor, sampled_ids: Tensor, ids: Tensor, ask: "Ask"
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """The normaliser, then the answer's fields, of one chunk; `logits` is used up."""
    at_sampled = logits.gather(-1, sampled_ids.unsqueeze(-1)).squeeze(-1)
    at_ids = logits.gather(-1, ids.clamp_min(0)).masked_fill_(ids < 0, -torch.inf)
    top = logits.topk(min(ask.top_k, logits.shape[-1]), dim=-1)
    put(logits, ids, torch.full_like(at_ids, -torch.inf))
    largest = logits.amax(dim=-1, keepdim=True).clamp_min_(torch.finfo(logits.dtype).min)
    distance = logits.sub_(largest)
    powers = distance.exp() if ask.entropy else distance.exp_()
    mass = powers.sum(dim=-1)
    outside = mass.log() + largest.squeeze(-1)
    total = torch.cat([at_ids, outside.unsqueeze(-1)], dim=-1).logsumexp(dim=-1)
    logprobs, tail = at_ids - total.unsqueeze(-1), outside - total
    entropy = None
    if ask.entropy:
        # −Σ p log p over the ids and over the rest; 0 · log 0 is 0.
        smallest = torch.finfo(logits.dtype).min
        mean = torch.linalg.vecdot(powers, distance.clamp_min_(smallest)) / mass.clamp_min(torch.finfo(mass.dtype).tiny)
        of_rest = tail.exp() * (mean + largest.squeeze(-1) - total)
        entropy = -(of_rest + (logprobs.exp() * logprobs.clamp_min(smallest)).sum(dim=-1))
    top_logprobs = top.values - total.unsqueeze(-1)
    return total, at_sampled - total, logprobs, tail, top.indices, top_logprobs, entropy


def _backward(logits: Tensor, sampled_ids: Tensor, ids: Tensor, kept: list[Tensor], back: list[Tensor]) -> Tensor:
    """The gradient of one chunk's logits, in their own memory."""
    total, logprobs, tail, top_ids = kept
    for_sampled, for_logprobs, for_tail, for_top = back
    for_logprobs = for_logprobs.masked_fill(ids < 0, 0.0)
    has_tail = tail > -torch.inf
    for_tail = for_tail.masked_fill(~has_tail, 0.0)
    normaliser = -(for_sampled + for_logprobs.sum(dim=-1) + for_tail + for_top.sum(dim=-1))
    outside = (total + tail).masked_fill(~has_tail, 0.0)
    factor = normaliser * tail.exp() + for_tail
    logits.sub_(outside.unsqueeze(-1)).exp_().mul_(factor.unsqueeze(-1))
    put(logits, ids, normaliser.unsqueeze(-1) * logprobs.exp() + for_logprobs)
    logits.scatter_add_(-1, sampled_ids.unsqueeze(-1), for_sampled.unsqueeze(-1))
    return logits.scatter_add_(-1, top_ids, for_top)


def put(logits: Tensor, ids: Tensor, values: Tensor) -> None:
    """Write each row's values at its ids; the padding, behind them, writes nothing."""
    if ids.shape[-1] == 0:
        return
    # Padding writes again what stands first; where all is padding, what is there already.
    is_empty = ids[:, :1] < 0
    first = torch.where(is_empty, logits[:, :1], values[:, :1])
    places = torch.where(ids < 0, ids[:, :1].clamp_min(0), ids)
    logits.scatter_(-1, places, torch.where(ids < 0, first, values))
