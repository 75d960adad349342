"""What a student learns from when it is not one view as it stands: means of views, and extrapolations.

Views that are put together have the same ids at every token (`same_as` in `score.views`). A composed target is
normalised over the outcomes, so it is the distribution that its term is at rest at.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.objectives.outcomes import Outcomes, logsumexp

RATIO_CLIP = 5.0
"""Bound of the importance ratio at which the extrapolation cliff is told: that of ExOPD's code."""


def geometric(views: Sequence[Outcomes], powers: Sequence[float]) -> tuple[Outcomes, Float[Tensor, " token"]]:
    """Π qᵢ^wᵢ / Z over the same outcomes, and log Z (nats): powers above 1 and below 0 extrapolate.

    Args:
        views: q, each [token, k] with a tail; the ids of all stand in one order.
        powers: w, one of each view.

    Returns:
        The normalised product, and log Z of each token, at most 0 for powers that are positive and sum to 1.

    Source: the consensus of ProteinOPD (arXiv:2605.10189) for powers that sum to 1; ExOPD's optimum
    (arXiv:2602.12125) for (λ, 1 − λ).
    """
    return _normalised(_log_product(views, [torch.as_tensor(power) for power in powers]))


def contrast(positive: Outcomes, negative: Outcomes, scale: float) -> tuple[Outcomes, Float[Tensor, " token"]]:
    """Log positive + α (log positive − log negative), normalised, where α = scale · Σ|positive − negative| + 1e-3.

    Args:
        positive: [token, k] with a tail.
        negative: over the same ids, in the same order.
        scale: what an absolute difference of 1 in probability adds to α.

    Returns:
        The target, and α of each token: from 1e-3 where both agree to 2 · scale + 1e-3.

    Source: AlignDistil (arXiv:2503.02832) as its code has it: the sum of differences is not halved.
    """
    distance = (positive.all.exp() - negative.all.exp()).abs().sum(dim=-1)
    alpha = scale * distance + 1e-3
    return _normalised(_log_product([positive, negative], [1 + alpha, -alpha]))[0], alpha


def extrapolation_bound(target: Float[Tensor, " token"], reference: Float[Tensor, " token"]) -> Float[Tensor, " token"]:
    """The largest factor λ at which q^λ r^(1−λ) keeps its other ids within what a ratio clip can hold.

    Of two outcomes, the target's likeliest id and all others: at the bound the others have 1 / `RATIO_CLIP` of what the
    target gives them. Infinite where the reference is as sure as the target, so that extrapolation does not sharpen.

    Args:
        target: log-probability of its likeliest id, p.
        reference: log-probability that the reference gives that id, b.

    Source: the extrapolation cliff (arXiv:2605.08737): λ* = [log((1−p)/(c−1+p)) − log((1−b)/b)] / [log((1−p)/p) −
    log((1−b)/b)], c = `RATIO_CLIP`. Stored rollouts without a ratio have no clip, so read its trend: the surer the
    teacher, the lower.
    """
    p, b = (logprob.double().exp().clamp(1e-12, 1 - 1e-12) for logprob in (target, reference))
    from_reference = ((1 - b) / b).log()
    bound = (((1 - p) / (RATIO_CLIP - 1 + p)).log() - from_reference) / (((1 - p) / p).log() - from_reference)
    return torch.where(p > b, bound, torch.full_like(bound, torch.inf)).to(target.dtype)


def aligned(view: Outcomes, ids: Int[Tensor, "token k"], like: Int[Tensor, "token k"]) -> Outcomes:
    """A view's outcomes in another order of its ids.

    Args:
        view: [token, k] in the order of `ids`.
        ids: distinct at every token.
        like: the same ids in the order that is wanted.
    """
    place_of_rank = like.argsort(dim=-1).argsort(dim=-1)
    return Outcomes(view.logprobs.gather(-1, ids.argsort(dim=-1).gather(-1, place_of_rank)), view.tail)


def _log_product(views: Sequence[Outcomes], powers: Sequence[Float[Tensor, " token"] | Tensor]) -> Tensor:
    """Σ wᵢ log qᵢ of every outcome; one that no view has stays −inf."""
    exists = ~torch.stack([torch.isneginf(view.all) for view in views]).any(dim=0)
    total = torch.zeros_like(views[0].all)
    for view, power in zip(views, powers, strict=True):
        factor = power.to(total).unsqueeze(-1) if power.dim() else power.to(total)
        total = total + factor * view.all.masked_fill(~exists, 0.0)
    return total.masked_fill(~exists, -torch.inf)


def _normalised(logs: Tensor) -> tuple[Outcomes, Float[Tensor, " token"]]:
    total = logsumexp(logs)
    return _split(logs - total.unsqueeze(-1)), total


def _split(logs: Tensor) -> Outcomes:
    return Outcomes(logs[:, :-1], logs[:, -1])
