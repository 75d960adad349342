"""From one value per token to one number per optimiser step: a factor for each token, known before the forward pass.

The factors of all packs of a step, on all ranks, belong together, so the loss does not depend on how a step is cut.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

VERSION = 1  # raise it when a factor would change

Reduction = Literal["token_mean", "sequence_mean", "selected_mean", "selected_sequence_mean", "rescaled_mean"]


def factors(
    reduction: Reduction,
    token_weights: Sequence[Float[Tensor, " token"]],
    expected: Sequence[Float[Tensor, " token"]],
    is_own: Sequence[Float[Tensor, " token"]],
    lengths: Sequence[Int[Tensor, " rollout"]],
) -> list[Float[Tensor, " token"]]:
    """What each token of each pack counts for, float32; without weights they sum to 1 over all packs.

    Args:
        reduction: `token_mean` divides by the tokens of the term's rows, before selection; `sequence_mean` by each
            response's length and by the number of rows; `selected_mean` by the sum of the weights;
            `selected_sequence_mean` by their sum over each response and by the number of rows; `rescaled_mean` by
            their mean over the tokens that they leave and by all tokens of the term's rows.
        token_weights: float64 of each pack, the product of the term's weights that are not live.
        expected: of each pack, the mean over the rollout of what live weights will say.
        is_own: of each pack, 1 for the tokens of rows of the term's source, else 0.
        lengths: of each pack, the tokens of each of its responses, end to end.
    """
    own = [weight * mine for weight, mine in zip(token_weights, is_own, strict=True)]
    tokens = sum(float(mine.sum()) for mine in is_own)
    rows = sum(float((mine / _over_response(torch.ones_like(mine), length)).sum())
               for mine, length in zip(is_own, lengths, strict=True))  # fmt: skip
    will_count = [weight * share for weight, share in zip(own, expected, strict=True)]
    counted = sum(float(weight.sum()) for weight in will_count)
    match reduction:
        case "token_mean":
            total = tokens
        case "sequence_mean":
            own = [weight / _over_response(torch.ones_like(weight), length)
                   for weight, length in zip(own, lengths, strict=True)]  # fmt: skip
            total = rows
        case "selected_mean":
            total = counted
        case "selected_sequence_mean":
            of_response = [_over_response(weight, length) for weight, length in zip(will_count, lengths, strict=True)]
            own = [torch.where(of > 0, weight / of, 0.0) for weight, of in zip(own, of_response, strict=True)]
            total = rows
        case "rescaled_mean":
            left = sum(int((weight > 0).sum()) for weight in own)
            total = tokens * counted / left if left else 0.0
    return [(weight / total if total else torch.zeros_like(weight)).float() for weight in own]


def _over_response(values: Float[Tensor, " token"], lengths: Int[Tensor, " rollout"]) -> Float[Tensor, " token"]:
    """Sum of the values over the response that each token belongs to."""
    response = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    return values.new_zeros(len(lengths)).index_add(0, response, values)[response]
