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

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.head.answer import Answer, Ask, concatenate_fields
from pipeline.head.layer import OutputLayer

BLOCK = 2**18
"""Logits that a CPU holds twice."""


def answer_tokens(hidden: Float[Tensor, "token hidden"], output: OutputLayer, ask: Ask) -> Answer:
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


class Chunks(torch.autograd.Function):
    """From hidden states and the output layer to the fields of `Answer`, in their order."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor | None,
        up: Tensor | None,
        output: OutputLayer,
        ask: Ask,
    ) -> tuple[Tensor | None, ...]:
        """Compute every chunk once; the matrices are those of `output`, named for the gradient's sake."""
        totals, answers = [], []
        for piece, logits in output.chunks(hidden):
            part = replace(ask, sampled_ids=ask.sampled_ids[piece], ids=ask.ids[piece])
            total, answer = answer_chunk(logits, part)
            totals.append(total)
            answers.append(answer)
        total = torch.cat(totals)
        sampled, logprobs, tail, top_ids, top_logprobs, entropy = concatenate_fields(answers)
        ctx.output, ctx.ask = output, ask
        ctx.save_for_backward(hidden, weight, bias, down, up, total, logprobs, tail, top_ids)
        ctx.mark_non_differentiable(top_ids, *([] if entropy is None else [entropy]))
        return sampled, logprobs, tail, top_ids, top_logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Compute every chunk again, and what its logits pass on."""
        hidden, weight, bias, down, up, *kept = ctx.saved_tensors
        output, ask, precision = ctx.output, ctx.ask, kept[0].dtype
        needed = ctx.needs_input_grad
        for_hidden = torch.empty_like(hidden) if needed[0] else None
        for_weight, for_bias, for_down, for_up = (
            _sum_like(matrix, is_needed, precision)
            for matrix, is_needed in zip((weight, bias, down, up), needed[1:5], strict=True)
        )
        sampled, logprobs, tail, _, top_logprobs, _ = gradients
        # Far smaller than the logits that they are multiplied into, so what scales those scales them.
        scaled = [one * output.scale for one in (sampled, logprobs, tail, top_logprobs)]  # pyright: ignore[reportOptionalOperand]
        for piece, logits in output.chunks(hidden):
            slope = output.slope(logits)
            here, back = ([one[piece] for one in tensors] for tensors in (kept, scaled))
            passed_on = _backward(logits, ask.sampled_ids[piece], ask.ids[piece], here, back)
            if slope is not None:
                passed_on.mul_(slope)
            rounded = passed_on.to(weight.dtype)
            if for_hidden is not None:
                torch.mm(rounded, weight, out=for_hidden[piece])
            _add_product(for_weight, rounded.T, hidden[piece])
            if for_bias is not None:
                for_bias += rounded.sum(dim=0, dtype=for_bias.dtype)
            if output.adapter is not None:
                rounded = passed_on.to(up.dtype)
                inner = rounded @ up
                _add_product(for_up, rounded.T, output.adapter.inner(hidden[piece]))
                _add_product(for_down, inner.T, hidden[piece].to(down.dtype))
                if for_hidden is not None:
                    for_hidden[piece] += (inner @ down).to(hidden.dtype)
        of_matrices = zip((weight, bias, down, up), (for_weight, for_bias, for_down, for_up), strict=True)
        return for_hidden, *(None if found is None else found.to(one.dtype) for one, found in of_matrices), None, None


def _sum_like(matrix: Tensor | None, is_needed: bool, precision: torch.dtype) -> Tensor | None:
    """Room for a sum over all tokens: in the precision of the small tensors, however the matrices are rounded."""
    return torch.zeros_like(matrix, dtype=precision) if is_needed and matrix is not None else None


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> None:
    """Add left · right to a sum over all tokens, where it is wanted."""
    if total is None:
        return
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def answer_chunk(logits: Tensor, ask: Ask) -> tuple[Tensor, Answer]:
    """Give each token's normaliser, and the answer to what is asked of one chunk, whose logits are used up."""
    sampled_ids, ids = ask.sampled_ids, ask.ids
    at_sampled = logits.gather(-1, sampled_ids.unsqueeze(-1)).squeeze(-1)
    at_ids = logits.gather(-1, ids.clamp_min(0)).masked_fill_(ids < 0, -torch.inf)
    top = logits.topk(min(ask.top_k, logits.shape[-1]), dim=-1)
    put(logits, ids, torch.full_like(at_ids, -torch.inf))
    largest = logits.amax(dim=-1, keepdim=True).clamp_min_(torch.finfo(logits.dtype).min)
    distance = logits.sub_(largest)
    mass, weighted = _moments(distance) if ask.entropy else (distance.exp_().sum(dim=-1), None)
    outside = mass.log() + largest.squeeze(-1)
    total = torch.cat([at_ids, outside.unsqueeze(-1)], dim=-1).logsumexp(dim=-1)
    logprobs, tail = at_ids - total.unsqueeze(-1), outside - total
    entropy = None
    if weighted is not None:
        # −Σ p log p over the ids and over the rest; 0 · log 0 is 0.
        smallest = torch.finfo(logits.dtype).min
        mean = weighted / mass.clamp_min(torch.finfo(mass.dtype).tiny)
        of_rest = tail.exp() * (mean + largest.squeeze(-1) - total)
        entropy = -(of_rest + (logprobs.exp() * logprobs.clamp_min(smallest)).sum(dim=-1))
    top_logprobs = top.values - total.unsqueeze(-1)
    return total, Answer(at_sampled - total, logprobs, tail, top.indices, top_logprobs, entropy)


def _moments(distance: Tensor) -> tuple[Tensor, Tensor]:
    """Σ e^d and Σ d e^d of each row; `distance` is used up."""
    # On a CPU row by row, or a few short ones: what is held twice then stays in its cache (a third of the time).
    rows = len(distance) if distance.is_cuda else BLOCK // distance.shape[-1]
    smallest, parts = torch.finfo(distance.dtype).min, []
    for part in distance.split(max(1, rows)):
        powers = part.exp()
        parts.append((powers.sum(dim=-1), part.clamp_min_(smallest).mul_(powers).sum(dim=-1)))
    mass, weighted = (torch.cat(column) for column in zip(*parts, strict=True))
    return mass, weighted


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
