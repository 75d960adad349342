"""From one value per token to one number per optimiser step: a factor for each token, known before the forward pass.

The factors of all packs of a step, on all ranks, belong together, so the loss does not depend on how a step is cut.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Reduction = Literal["token_mean", "sequence_mean", "selected_mean"]


def factors(
    reduction: Reduction,
    token_weights: Sequence[Float[Tensor, " token"]],
    expected: Sequence[Float[Tensor, " token"]],
    is_own: Sequence[Float[Tensor, " token"]],
    lengths: Sequence[Float[Tensor, " token"]],
) -> list[Float[Tensor, " token"]]:
    """What each token of each pack counts for, float32; without weights they sum to 1 over all packs.

    Args:
        reduction: `token_mean` divides by the tokens of the term's rows, before selection; `sequence_mean` by each
            response's length and by the number of rows; `selected_mean` by the sum of the weights.
        token_weights: float64 of each pack, the product of the term's weights that are not live.
        expected: of each pack, the mean over the rollout of what live weights will say.
        is_own: of each pack, 1 for the tokens of rows of the term's source, else 0.
        lengths: of each pack, the tokens of the response that each token belongs to.
    """
    own = [weight * mine for weight, mine in zip(token_weights, is_own, strict=True)]
    match reduction:
        case "token_mean":
            total = sum(float(mine.sum()) for mine in is_own)
        case "sequence_mean":
            own = [weight / length for weight, length in zip(own, lengths, strict=True)]
            total = sum(float((mine / length).sum()) for mine, length in zip(is_own, lengths, strict=True))
        case "selected_mean":
            total = sum(float((weight * share).sum()) for weight, share in zip(own, expected, strict=True))
    return [(weight / total if total else torch.zeros_like(weight)).float() for weight in own]
