"""What an objective may read of the tokens of a pack, besides the student: targets, facts, factors."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.objectives.outcomes import Outcomes


@dataclass(frozen=True)
class Target:
    """What one view says of the T response tokens of a pack.

    Attributes:
        ids: int64 [T, k], padded with −1 behind the last.
        outcomes: the view's log-probabilities at them and outside them, a distribution again after rounding.
        sampled: [T], of the response tokens.
        own: int64 [T], how many of the ids are the model's own likeliest; they come first. None where not read.
        entropy: [T] of the view over the whole vocabulary, nats. None where not read.
    """

    ids: Int[Tensor, "token k"]
    outcomes: Outcomes
    sampled: Float[Tensor, " token"]
    own: Int[Tensor, " token"] | None = None
    entropy: Float[Tensor, " token"] | None = None

    @property
    def is_scored(self) -> Bool[Tensor, " token"]:
        """Whether the view has a score of the row that a token is of."""
        return (self.ids >= 0).any(dim=-1) | (self.outcomes.tail < 0) | (self.sampled < 0)

    def to(self, device: torch.device) -> "Target":
        """The same on another device."""
        outcomes = Outcomes(self.outcomes.logprobs.to(device), self.outcomes.tail.to(device))
        own = None if self.own is None else self.own.to(device)
        entropy = None if self.entropy is None else self.entropy.to(device)
        return Target(self.ids.to(device), outcomes, self.sampled.to(device), own, entropy)


@dataclass(frozen=True)
class Inputs:
    """What a term may read of the tokens of a pack, besides the student.

    Attributes:
        targets: the views by name. A row that a view has not scored has no ids and a tail of probability 1 there.
        weights: of each reduction over all rows of the step, what a token counts for; they sum to 1 over the step.
        factors: of each term that counts otherwise (by its place in the recipe), the same.
        facts: [T] by name, of the token or of the row that it belongs to: `position`, `correct`, `domain=math`,
            `sampling_logprobs`, a derived column, …; the recipe says which.
        lengths: int64 [rollout], tokens of each rollout of the pack, in the order of the tokens. For a recipe with
            pairs, every second rollout is the student's response to the prompt of the teacher's before it.
        sampled_ids: int64 [T], the response tokens.
        step: the optimiser step, from 0.
    """

    targets: Mapping[str, Target]
    weights: Mapping[str, Float[Tensor, " token"]]
    factors: Mapping[int, Float[Tensor, " token"]] = field(default_factory=dict)
    facts: Mapping[str, Float[Tensor, " token"]] = field(default_factory=dict)
    lengths: Int[Tensor, " rollout"] | None = None
    sampled_ids: Int[Tensor, " token"] | None = None
    step: int = 0

    def to(self, device: torch.device) -> "Inputs":
        """The same on another device."""
        return replace(
            self,
            targets={name: target.to(device) for name, target in self.targets.items()},
            weights={name: weight.to(device) for name, weight in self.weights.items()},
            factors={place: factor.to(device) for place, factor in self.factors.items()},
            facts={name: fact.to(device) for name, fact in self.facts.items()},
            lengths=None if self.lengths is None else self.lengths.to(device),
            sampled_ids=None if self.sampled_ids is None else self.sampled_ids.to(device),
        )
