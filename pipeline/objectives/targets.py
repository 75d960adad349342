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
