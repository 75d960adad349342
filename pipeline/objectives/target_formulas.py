"""What a student learns from when it is not one view as it stands: means of views, and extrapolations.

Views that are put together have the same ids at every token (`same_as` in `score.views`). A composed target is
normalised over the outcomes, so it is the distribution that its term is at rest at.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.objectives.outcomes import Outcomes, logsumexp


def geometric(views: Sequence[Outcomes], weights: Sequence[float]) -> tuple[Outcomes, Float[Tensor, " token"]]:
    """Π qᵢ^wᵢ / Z over the same outcomes, and log Z: weights above 1 and below 0 extrapolate.

    Source: the consensus of ProteinOPD (arXiv:2605.10189) for weights that sum to 1; ExOPD's optimum
    (arXiv:2602.12125) for (λ, 1 − λ).
    """
    return _normalised(_sum(views, [torch.as_tensor(weight) for weight in weights]))


def arithmetic(views: Sequence[Outcomes], weights: Sequence[float]) -> Outcomes:
    """Σ wᵢ qᵢ over the same outcomes, with positive weights that sum to 1."""
    log_weights = torch.tensor(weights, dtype=views[0].tail.dtype, device=views[0].tail.device).log()
    stacked = torch.stack([view.all for view in views], dim=-1) + log_weights
    return _split(logsumexp(stacked))


def contrast(positive: Outcomes, negative: Outcomes, scale: float) -> tuple[Outcomes, Float[Tensor, " token"]]:
    """Log positive + α (log positive − log negative), normalised, where α = scale · Σ|positive − negative| + 1e-3.

    Returns:
        The target, and α of each token.

    Source: AlignDistil (arXiv:2503.02832) as its code has it: the sum of differences is not halved.
    """
    distance = (positive.all.exp() - negative.all.exp()).abs().sum(dim=-1)
    alpha = scale * distance + 1e-3
    return _normalised(_sum([positive, negative], [1 + alpha, -alpha]))[0], alpha


def extrapolation_bound(
    target: Float[Tensor, " token"], reference: Float[Tensor, " token"], clip: float = 5.0
) -> Float[Tensor, " token"]:
    """The largest factor λ at which q^λ r^(1−λ) keeps its other ids within what a ratio clip can hold.

    Of two outcomes, the target's likeliest id and all others: at the bound the others have 1/clip of what the target
    gives them. Infinite where the reference is as sure as the target, so that extrapolation does not sharpen.

    Args:
        target: log-probability of its likeliest id, p.
        reference: log-probability that the reference gives that id, b.
        clip: c, bound of the importance ratio.

    Source: the extrapolation cliff (arXiv:2605.08737): λ* = [log((1−p)/(c−1+p)) − log((1−b)/b)] / [log((1−p)/p) −
    log((1−b)/b)]. Stored rollouts without a ratio have no clip, so read its trend: the surer the teacher, the lower.
    """
    p, b = (logprob.double().exp().clamp(1e-12, 1 - 1e-12) for logprob in (target, reference))
    from_reference = ((1 - b) / b).log()
    bound = (((1 - p) / (clip - 1 + p)).log() - from_reference) / (((1 - p) / p).log() - from_reference)
    return torch.where(p > b, bound, torch.full_like(bound, torch.inf)).to(target.dtype)


def aligned(view: Outcomes, ids: Int[Tensor, "token k"], like: Int[Tensor, "token k"]) -> Outcomes:
    """A view in the order of other ids, which are the same at every token."""
    place_of_rank = like.argsort(dim=-1).argsort(dim=-1)
    return Outcomes(view.logprobs.gather(-1, ids.argsort(dim=-1).gather(-1, place_of_rank)), view.tail)


def _sum(views: Sequence[Outcomes], weights: Sequence[Float[Tensor, " token"] | Tensor]) -> Tensor:
    """Σ wᵢ log qᵢ of every outcome; one that no view has stays −inf."""
    exists = torch.stack([torch.isfinite(view.all) for view in views]).all(dim=0)
    total = torch.zeros_like(views[0].all)
    for view, weight in zip(views, weights, strict=True):
        factor = weight.to(total).unsqueeze(-1) if weight.dim() else weight.to(total)
        total = total + factor * view.all.masked_fill(~exists, 0.0)
    return total.masked_fill(~exists, -torch.inf)


def _normalised(logs: Tensor) -> tuple[Outcomes, Float[Tensor, " token"]]:
    total = logsumexp(logs)
    return _split(logs - total.unsqueeze(-1)), total


def _split(logs: Tensor) -> Outcomes:
    return Outcomes(logs[:, :-1], logs[:, -1])
