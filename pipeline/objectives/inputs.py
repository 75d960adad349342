"""What an objective may read of the tokens of a pack, besides the student: targets, facts, shares of the mean."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.objectives.outcomes import Outcomes


@dataclass(frozen=True)
class Target:
    """What the T response tokens of a pack are to be learned from: one view, or several put together.

    Attributes:
        ids: int64 [T, k], padded with −1 behind the last.
        outcomes: log-probabilities at them and outside them, a distribution again after rounding.
        sampled: [T], log-probability of the response tokens.
        own: int64 [T], how many of the ids are the model's own likeliest; they come first. 0 where not read; None where
            nobody made it.
        entropy: [T] of the view over the whole vocabulary, nats. 0 where not read, or None likewise.
        divisor: [T], what a loss towards it is divided by; 1 but for a `contrast`.
    """

    ids: Int[Tensor, "token k"]
    outcomes: Outcomes
    sampled: Float[Tensor, " token"]
    own: Int[Tensor, " token"] | None = None
    entropy: Float[Tensor, " token"] | None = None
    divisor: Float[Tensor, " token"] | float = 1.0

    @property
    def is_scored(self) -> Bool[Tensor, " token"]:
        """Whether the view has scored the row that a token belongs to."""
        return (self.ids >= 0).any(dim=-1) | (self.outcomes.tail < 0) | (self.sampled < 0)

    @property
    def without_ids(self) -> "Target":
        """A view of which the sampled token alone is known."""
        nothing = Outcomes(self.outcomes.logprobs[:, :0], torch.zeros_like(self.outcomes.tail))
        return replace(self, ids=self.ids[:, :0], outcomes=nothing)

    def to(self, device: torch.device) -> "Target":
        """A copy on another device."""
        outcomes = Outcomes(self.outcomes.logprobs.to(device), self.outcomes.tail.to(device))
        own = None if self.own is None else self.own.to(device)
        entropy = None if self.entropy is None else self.entropy.to(device)
        sampled, divisor = self.sampled.to(device), self.divisor
        divisor = divisor.to(device) if isinstance(divisor, Tensor) else divisor
        return Target(self.ids.to(device), outcomes, sampled, own, entropy, divisor)


@dataclass(frozen=True)
class Inputs:
    """What a term may read of the T response tokens of a pack, besides the student.

    Attributes:
        targets: the views by name. A row that a view has not scored has no ids and a tail of probability 1 there.
        lengths: int64 [rollout], tokens of each rollout of the pack, in the order of the tokens. For a recipe with
            pairs, every second rollout is the student's response to the prompt of the teacher's before it.
        sampled_ids: int64 [T], the response tokens.
        shares: [T] of each reduction over all rows of the step: what a token counts for; they sum to 1 over the step.
        facts: [T] by name, of the token or of the row that it belongs to: `position`, `correct`, `domain=math`,
            `sampling_logprobs`, a derived column, …; the recipe says which.
        factors: of each term that counts otherwise than a reduction's shares (by its place in the recipe), what a
            token counts for there.
        step: the optimiser step, from 0.
    """

    targets: Mapping[str, Target]
    lengths: Int[Tensor, " rollout"]
    sampled_ids: Int[Tensor, " token"]
    shares: Mapping[str, Float[Tensor, " token"]]
    facts: Mapping[str, Float[Tensor, " token"]] = field(default_factory=dict)
    factors: Mapping[int, Float[Tensor, " token"]] = field(default_factory=dict)
    step: int = 0

    @property
    def position(self) -> Float[Tensor, " token"]:
        """Place of each token in its response, from 0."""
        starts = (self.lengths.cumsum(0) - self.lengths).repeat_interleave(self.lengths)
        return (torch.arange(len(starts), device=self.lengths.device) - starts).float()

    @property
    def share_of_response(self) -> Float[Tensor, " token"]:
        """Where the middle of each token is in its response, from 0 to 1."""
        return (self.position + 0.5) / self.lengths.repeat_interleave(self.lengths)

    def to(self, device: torch.device) -> "Inputs":
        """A copy on another device."""
        return replace(
            self,
            targets={name: target.to(device) for name, target in self.targets.items()},
            lengths=self.lengths.to(device),
            sampled_ids=self.sampled_ids.to(device),
            shares={name: share.to(device) for name, share in self.shares.items()},
            facts={name: fact.to(device) for name, fact in self.facts.items()},
            factors={place: factor.to(device) for place, factor in self.factors.items()},
        )
