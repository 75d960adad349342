"""What a token counts for: one factor for each, of its place, of what was stored, or of the student as it is.

Tokens are end to end, rollout after rollout; `lengths` says how many belong to each. A statistic of live values is of
one rollout, never of a batch, whose other rows would then decide what a token is worth.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

QUANTILE = 0.98
"""Where values are cut before they are scaled, so that a single one does not squeeze the others."""

SMALLEST = 1e-6
"""Nats, against division by zero."""


def sigmoid_position(
    share: Float[Tensor, " token"], lowest: float, turn: float, width: float
) -> Float[Tensor, " token"]:
    """From `lowest` early in the response to 1 late in it: lowest + (1 − lowest) · σ((f − turn) / width).

    Args:
        share: f, where the middle of the token is in its response, from 0 to 1.
        lowest: between 0 and 1.
        turn: the share at which the weight is halfway.
        width: share of the response over which it rises.

    Source: PW-OPSD (arXiv:2605.21606).
    """
    return lowest + (1 - lowest) * torch.sigmoid((share - turn) / width)


def earliness(
    discrepancy: Float[Tensor, " token"], lengths: Int[Tensor, " rollout"], highest: float
) -> Float[Tensor, " token"]:
    """From `highest` at the first token to 1, by the share of the response's discrepancy that came before.

    Args:
        discrepancy: |log teacher − log behaviour| of each token, nats.
        lengths: tokens of each rollout.
        highest: weight of a token that nothing precedes.

    Source: IW-OPD (arXiv:2606.22600).
    """
    rows = by_rollout(discrepancy, lengths).nan_to_num(0.0)
    before = rows.cumsum(dim=-1) - rows
    share = before / (rows.sum(dim=-1, keepdim=True) + 1e-8)
    return flat(1 + (highest - 1) * (1 - share), lengths)


def step_ratio(
    discrepancy: Float[Tensor, " token"],
    segments: Float[Tensor, " token"],
    lengths: Int[Tensor, " rollout"],
    cap: float,
) -> Float[Tensor, " token"]:
    """How much closer teacher and behaviour are in a token's step than in the rollout's first, at most 1 + cap.

    Args:
        discrepancy: |log teacher − log behaviour| of each token, nats.
        segments: the step of each token, rising within a rollout.
        lengths: tokens of each rollout.
        cap: how far above 1 a step may count.

    Source: SOD (arXiv:2605.07725): the product of the ratios of neighbouring steps telescopes to this.
    """
    rollout = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    _, step = torch.unique(torch.stack([rollout, segments.long()]), dim=1, return_inverse=True)
    count = torch.bincount(step).to(discrepancy.dtype)
    mean = torch.zeros_like(count).scatter_add(0, step, discrepancy) / count
    first = step[lengths.cumsum(0) - lengths].repeat_interleave(lengths)
    ratio = (mean[first] + SMALLEST) / (mean[step] + SMALLEST)
    return torch.where(step == first, torch.ones_like(ratio), ratio.clamp_max(1 + cap))


def first_segments(segments: Float[Tensor, " token"], count: int) -> Float[Tensor, " token"]:
    """1 in the first `count` turns or steps of a rollout, then 0. Source: TCOD (arXiv:2604.24005), front to back."""
    return (segments < count).to(segments.dtype)


def first_tokens(position: Float[Tensor, " token"], tokens: float) -> Float[Tensor, " token"]:
    """1 in the first `tokens` of a response, then 0. Source: arXiv:2602.15260."""
    return (position < tokens).to(position.dtype)


def confidence(entropy: Float[Tensor, " token"], rate: float) -> Float[Tensor, " token"]:
    """exp(−rate · H) of the target's entropy H, nats: 1 where the target is sure. Source: SRPO (arXiv:2604.02288)."""
    return torch.exp(-rate * entropy)


def top_fraction(
    score: Float[Tensor, " token"], lengths: Int[Tensor, " rollout"], share: float
) -> Float[Tensor, " token"]:
    """1 for the tokens of highest score, `share` of each rollout and at least one; of equal ones the earlier."""
    rows = by_rollout(score.detach(), lengths).nan_to_num(-torch.inf)
    rank = rows.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return flat((rank < kept(lengths, share).unsqueeze(-1)).to(score.dtype), lengths)


def kept(lengths: Int[Tensor, " rollout"], share: float) -> Int[Tensor, " rollout"]:
    """How many tokens of each rollout a share of it is, at least one."""
    return (lengths * share).round().long().clamp_min(1)


def soft_or(
    entropy: Float[Tensor, " token"], divergence: Float[Tensor, " token"], lengths: Int[Tensor, " rollout"]
) -> Float[Tensor, " token"]:
    """Soft or, h + d − h·d, of both scaled within the rollout: high where the student is uncertain, or disagrees.

    Args:
        entropy: of the student, nats.
        divergence: of the student from the target, nats.
        lengths: tokens of each rollout.

    Returns:
        From 0 to 1 per token.

    Source: TIP (arXiv:2604.14084), which scales within the batch.
    """
    h, d = scaled(entropy, lengths), scaled(divergence, lengths)
    return h + d - h * d


def scaled(values: Float[Tensor, " token"], lengths: Int[Tensor, " rollout"]) -> Float[Tensor, " token"]:
    """Values cut at their `QUANTILE` and mapped to [0, 1], within each rollout; 0 where all are equal."""
    rows = by_rollout(values.detach(), lengths)
    rows = rows.minimum(rows.nanquantile(QUANTILE, dim=-1, keepdim=True))
    lowest = rows.nan_to_num(torch.inf).amin(dim=-1, keepdim=True)
    width = rows.nan_to_num(-torch.inf).amax(dim=-1, keepdim=True) - lowest
    return flat((rows - lowest) / width.clamp_min(1e-8), lengths)


def zone(
    target_entropy: Float[Tensor, " token"],
    student_entropy: Float[Tensor, " token"],
    lengths: Int[Tensor, " rollout"],
    target_share: float,
    student_share: float,
) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"]]:
    """Where the target is uncertain, and where of the rest the student alone is: 1 there, else 0.

    Args:
        target_entropy: nats.
        student_entropy: nats.
        lengths: tokens of each rollout.
        target_share: share of each rollout's tokens that is taken as the target's, at least one token.
        student_share: likewise of the student's, of what is left.

    Source: the entropy zones of SEAD (arXiv:2606.28562), there by percentiles over a shard.
    """
    uncertain_target = top_fraction(target_entropy, lengths, target_share)
    others = student_entropy.detach().masked_fill(uncertain_target > 0, -torch.inf)
    return uncertain_target, top_fraction(others, lengths, student_share) * (1 - uncertain_target)


def freshness(
    student: Float[Tensor, " token"],
    behaviour: Float[Tensor, " token"],
    lengths: Int[Tensor, " rollout"],
    rate: float,
    threshold: float,
) -> Float[Tensor, " token"]:
    """max(0, exp(−rate · √D) − threshold) of each rollout, at its tokens, where D is its drift, nats per token.

    D is the mean of e^d − 1 − d over d = log student − log behaviour, never negative.

    Args:
        student: log-probability of the response tokens, as it is now.
        behaviour: under the student that wrote them.
        lengths: tokens of each rollout.
        rate: of the decay.
        threshold: under which a rollout counts for nothing.

    Source: f-OPD (arXiv:2605.17862), without its term for the supervisor's drift, which is 0 for a frozen teacher.
    """
    d = (student.detach() - behaviour).clamp(-20.0, 20.0)
    drift = by_rollout(torch.expm1(d) - d, lengths).nanmean(dim=-1).clamp_min(0.0)
    return ((-rate * drift.sqrt()).exp() - threshold).clamp_min(0.0).repeat_interleave(lengths)


def by_rollout(values: Float[Tensor, " token"], lengths: Int[Tensor, " rollout"]) -> Float[Tensor, "rollout longest"]:
    """A row for each rollout, NaN behind its last token."""
    is_token = _is_token(lengths)
    rows = values.new_full(is_token.shape, torch.nan)
    rows[is_token] = values
    return rows


def flat(rows: Float[Tensor, "rollout longest"], lengths: Int[Tensor, " rollout"]) -> Float[Tensor, " token"]:
    """The rows end to end again."""
    return rows[_is_token(lengths)]


def _is_token(lengths: Int[Tensor, " rollout"]) -> Bool[Tensor, "rollout longest"]:
    longest = int(lengths.max()) if len(lengths) else 0
    return torch.arange(longest, device=lengths.device) < lengths.unsqueeze(-1)
