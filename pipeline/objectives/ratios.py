"""Importance ratios: student now over the distribution that the token was drawn from, as constants.

They belong to the sampled token and are taken per token: over a sequence of thousands they are useless.
"""

import torch
from jaxtyping import Float
from torch import Tensor

LARGEST_LOG_RATIO = 20.0
"""Nats; beyond it the exponential means nothing more (TRL's bound, too)."""


def importance(
    student: Float[Tensor, " token"], sampling: Float[Tensor, " token"], cap: float | None
) -> Float[Tensor, " token"]:
    """Student / sampling distribution, at most `cap`; None does not cap."""
    ratio = (student - sampling).detach().clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    return ratio if cap is None else ratio.clamp_max(cap)


def two_sided(
    student: Float[Tensor, " token"], sampling: Float[Tensor, " token"], low: float, high: float
) -> Float[Tensor, " token"]:
    """The ratio, and 0 where it is outside [low, high]: such tokens are too stale to learn from.

    Source: MiMo-V2-Flash (arXiv:2601.02780); Nemotron-Cascade 2 (arXiv:2603.19220) has 0.5 and 2.
    """
    ratio = importance(student, sampling, None)
    return torch.where((ratio >= low) & (ratio <= high), ratio, torch.zeros_like(ratio))
