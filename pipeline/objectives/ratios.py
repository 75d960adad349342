"""Importance ratios: student now over an earlier distribution, that the token was drawn from, as constants.

They belong to the sampled token and are taken per token: over a sequence of thousands they are useless.
"""

from jaxtyping import Float
from torch import Tensor

VERSION = 1  # raise it when an importance ratio would change

LARGEST_LOG_RATIO = 20.0
"""Nats; beyond it the exponential means nothing more (TRL's bound, too)."""


def importance(
    student: Float[Tensor, " token"], sampling: Float[Tensor, " token"], cap: float | None
) -> Float[Tensor, " token"]:
    """Student / sampling distribution, at most `cap`; None does not cap."""
    ratio = (student - sampling).detach().clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    return ratio if cap is None else ratio.clamp_max(cap)
