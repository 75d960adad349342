"""How far a token counts whose probability has moved since the student wrote it: around the student, not the sampler.

Around a sampling distribution with a temperature or a top-p, tokens would be outside before the first step.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.objectives import ratios

VERSION = 1  # raise it when a clip or a cut would change


def two_sided(
    student: Float[Tensor, " token"], behaviour: Float[Tensor, " token"], low: float, high: float
) -> Float[Tensor, " token"]:
    """The ratio, and 0 where it is outside [low, high]: such tokens are too stale to learn from.

    Source: MiMo-V2-Flash (arXiv:2601.02780); Nemotron-Cascade 2 (arXiv:2603.19220) has 0.5 and 2.
    """
    ratio = ratios.importance(student, behaviour, None)
    return torch.where((ratio >= low) & (ratio <= high), ratio, torch.zeros_like(ratio))


def proximal(
    student: Float[Tensor, " token"],
    behaviour: Float[Tensor, " token"],
    advantage: Float[Tensor, " token"],
    below: float,
    above: float,
) -> Float[Tensor, " token"]:
    """−min(r A, clip(r, 1 − below, 1 + above) A) with the ratio r = student / the student that wrote the token.

    Args:
        student: of the sampled token.
        behaviour: under the student that wrote it, whole and at temperature 1: at the first step on fresh rollouts
            every ratio is 1.
        advantage: A, a constant.
        below: how far under 1 the ratio counts.
        above: how far over 1 it counts.

    Source: PPO's clipped surrogate (arXiv:1707.06347), as sampled-token methods use it.
    """
    ratio = (student - behaviour).exp()
    clipped = ratio.clamp(1 - below, 1 + above)
    return -torch.minimum(ratio * advantage.detach(), clipped * advantage.detach())
