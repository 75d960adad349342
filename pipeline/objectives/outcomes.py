"""Support and tail: a distribution over the vocabulary, reduced to some ids and "any other id".

Every reduction here keeps what is left out as probability of the tail, but for `renormalised`, which is named so.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Outcomes:
    """A distribution reduced to the ids of a support and the tail outside them.

    Attributes:
        logprobs: [token, k], normalised over the whole vocabulary; −inf at padding.
        tail: [token], log of the probability outside the ids; −inf where nothing is left.
    """

    logprobs: Float[Tensor, "token k"]
    tail: Float[Tensor, " token"]

    @property
    def mass(self) -> Float[Tensor, " token"]:
        """Probability of the support."""
        return self.logprobs.exp().sum(dim=-1)

    @property
    def all(self) -> Float[Tensor, "token outcome"]:
        """The ids and the tail side by side."""
        return torch.cat([self.logprobs, self.tail.unsqueeze(-1)], dim=-1)

    @property
    def detached(self) -> "Outcomes":
        """A copy into which no gradient flows."""
        return Outcomes(self.logprobs.detach(), self.tail.detach())


def restricted(outcomes: Outcomes, is_kept: Bool[Tensor, "token k"]) -> Outcomes:
    """A distribution reduced to fewer ids: what is not kept joins the tail."""
    left_out = outcomes.logprobs.masked_fill(is_kept, -torch.inf)
    tail = logsumexp(torch.cat([left_out, outcomes.tail.unsqueeze(-1)], dim=-1))
    return Outcomes(outcomes.logprobs.masked_fill(~is_kept, -torch.inf), tail)


def gathered(outcomes: Outcomes, places: Int[Tensor, "token k"]) -> Outcomes:
    """A distribution reduced to some of its ids, in another order: the others join the tail.

    Args:
        outcomes: over more ids.
        places: which of them, distinct in each row; −1 is padding.
    """
    is_entry = places >= 0
    chosen = places.clamp_min(0)
    taken = torch.zeros_like(outcomes.logprobs, dtype=torch.int32).scatter_add(-1, chosen, is_entry.int())
    logprobs = outcomes.logprobs.gather(-1, chosen).masked_fill(~is_entry, -torch.inf)
    return Outcomes(logprobs, restricted(outcomes, taken > 0).tail)


def renormalised(outcomes: Outcomes) -> Outcomes:
    """The distribution given that one of the ids comes: no tail is left. A row without ids stays empty."""
    total = logsumexp(outcomes.logprobs)
    total = total.masked_fill(torch.isneginf(total), 0.0)
    return Outcomes(outcomes.logprobs - total.unsqueeze(-1), torch.full_like(outcomes.tail, -torch.inf))


def contains(ids: Int[Tensor, "token k"], others: Int[Tensor, "token other"]) -> Bool[Tensor, "token k"]:
    """Whether each id is among the others of its row; padding is in none."""
    return (ids.unsqueeze(-1) == others.unsqueeze(-2)).any(dim=-1) & (ids >= 0)


def union(supports: list[Int[Tensor, "token k"]]) -> Int[Tensor, "token union"]:
    """Every id that one of the supports has, once, rising, padded with −1 behind the last."""
    if len(supports) == 1:
        return supports[0]
    ids = torch.cat(supports, dim=-1)
    behind = torch.iinfo(ids.dtype).max
    ids = ids.masked_fill(ids < 0, behind).sort(dim=-1).values
    repeats = torch.zeros_like(ids, dtype=torch.bool)
    repeats[:, 1:] = ids[:, 1:] == ids[:, :-1]
    ids = ids.masked_fill(repeats, behind).sort(dim=-1).values
    longest = int((ids < behind).sum(dim=-1).max()) if len(ids) else 0
    return ids[:, :longest].masked_fill(ids[:, :longest] == behind, -1)


def places(ids: Int[Tensor, "token k"], union_ids: Int[Tensor, "token union"]) -> Int[Tensor, "token k"]:
    """Where each id stands in a `union` that has it; −1 for padding."""
    behind = torch.iinfo(ids.dtype).max
    rising = union_ids.masked_fill(union_ids < 0, behind).contiguous()
    found = torch.searchsorted(rising, ids.contiguous()).clamp_max(max(0, rising.shape[-1] - 1))
    return found.masked_fill(ids < 0, -1)


def logsumexp(values: Float[Tensor, "token k"]) -> Float[Tensor, " token"]:
    """−inf, with gradient zero, where every value is −inf: torch's own gradient there is no number."""
    is_empty = torch.isneginf(values).all(dim=-1)
    total = values.masked_fill(is_empty.unsqueeze(-1), 0.0).logsumexp(dim=-1) if values.shape[-1] else is_empty.float()
    return total.masked_fill(is_empty, -torch.inf)
