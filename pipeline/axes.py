"""The axes of a term that are more than a word: schedules, ratios, weights, composed targets."""

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.settings import Name, NonNegativeFloat, Positive, PositiveFloat, Settings, Share


class Schedule(Settings):
    """A number that changes with the optimiser step."""

    start: NonNegativeFloat
    end: NonNegativeFloat
    steps: Positive
    shape: Literal["linear", "cosine", "step"] = "linear"


class Ratio(Settings):
    """Student now over the distribution that the token was drawn from."""

    kind: Literal["importance", "two_sided", "proximal"]
    """`importance`: at most `high`. `two_sided`: 0 outside [low, high]. `proximal`: PPO's clip, 1 − low to 1 + high."""
    low: NonNegativeFloat | None = None
    high: PositiveFloat | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest ratio that counts as it is."""
        low, high = self.low or 0.0, math.inf if self.high is None else self.high
        return (1 - low, 1 + high) if self.kind == "proximal" else (low, high)

    @model_validator(mode="after")
    def _has_bounds(self) -> Self:
        if self.kind == "importance" and self.low is not None:
            raise ValueError("an `importance` ratio has no `low`")
        if self.kind != "importance" and (self.low is None or self.high is None):
            raise ValueError(f"a `{self.kind}` ratio needs `low` and `high`")
        return self


class Weight(Settings):
    """A factor of what a token counts for."""

    is_live: ClassVar[bool] = False
    """Whether it depends on the student as it is, so that only its expected sum is known before the forward pass."""


class Where(Weight):
    """1 for rows with this fact, else 0: routing."""

    kind: Literal["where"]
    fact: Literal["correct", "wrong", "finished"]


class InDomain(Weight):
    """1 for rows of these domains, else 0."""

    kind: Literal["domain"]
    names: Annotated[tuple[str, ...], Field(min_length=1)]


class HasView(Weight):
    """1 for rows that a view has a score of (`lacks_view`: has none of), else 0: there may then be others."""

    kind: Literal["has_view", "lacks_view"]
    view: Name


class Derived(Weight):
    """A derived column of the recipe; with `at_least` or `at_most`, 1 where it is, else 0."""

    kind: Literal["column"]
    name: Name
    at_least: float | Schedule | None = None
    at_most: float | Schedule | None = None


class NotSpecial(Weight):
    """0 for special tokens of the tokenizer, else 1."""

    kind: Literal["not_special"]


class SigmoidPosition(Weight):
    """From `lowest` early in the response to 1 late in it."""

    kind: Literal["position"]
    lowest: Share
    turn: Share
    width: PositiveFloat


class Earliness(Weight):
    """From `highest` to 1 as the discrepancy of teacher and behaviour adds up."""

    kind: Literal["earliness"]
    highest: Annotated[float, Field(ge=1)]


class StepRatio(Weight):
    """By how much the teacher disagrees in a token's step, against the first."""

    kind: Literal["step_ratio"]
    cap: NonNegativeFloat


class FirstSegments(Weight):
    """1 in the first turns, one more every so many optimiser steps, else 0."""

    kind: Literal["first_segments"]
    every: Positive
    most: Positive


class Prefix(Weight):
    """1 in the first tokens of a response, else 0."""

    kind: Literal["prefix"]
    tokens: Positive | Schedule


class Confidence(Weight):
    """exp(−rate · entropy of the target)."""

    kind: Literal["confidence"]
    rate: PositiveFloat


class EntropyGate(Weight):
    """1 where the target's entropy is above so many nats, else 0."""

    kind: Literal["entropy_gate"]
    above: NonNegativeFloat


class TopFraction(Weight):
    """1 for this share of each rollout's tokens, those that score highest, else 0."""

    kind: Literal["top_fraction"]
    by: Literal["entropy", "soft_or", "confident_disagreement"]
    share: Share
    is_live: ClassVar[bool] = True


class Zone(Weight):
    """1 where the target is uncertain (`target`), or where of the rest the student alone is (`student`), else 0."""

    kind: Literal["zone"]
    which: Literal["target", "student"]
    target_share: Share
    student_share: Share
    is_live: ClassVar[bool] = True


class LogRatioWithin(Weight):
    """1 where log target − log student of the token is in [low, high] nats, else 0."""

    kind: Literal["log_ratio_within"]
    low: float | None = None
    high: float | None = None
    is_live: ClassVar[bool] = True


class Freshness(Weight):
    """Less for rollouts that the student has moved away from."""

    kind: Literal["freshness"]
    rate: PositiveFloat
    threshold: NonNegativeFloat
    is_live: ClassVar[bool] = True


AnyWeight = Annotated[
    Where | InDomain | HasView | Derived | NotSpecial | SigmoidPosition | Earliness | StepRatio | FirstSegments | Prefix
    | Confidence | EntropyGate | TopFraction | Zone | LogRatioWithin | Freshness,
    Field(discriminator="kind"),
]  # fmt: skip


class Route(Settings):
    """One view for each domain; rows of other domains have no target."""

    kind: Literal["route"]
    views: dict[str, Name]

    @model_validator(mode="after")
    def _has_a_choice(self) -> Self:
        if len(set(self.views.values())) < 2:
            raise ValueError("a route chooses between views: of one alone say `view`, with an `in_domain` weight")
        return self


class Mixture(Settings):
    """A mean of views, by weights that sum to 1."""

    kind: Literal["geometric", "arithmetic"]
    views: Annotated[dict[Name, PositiveFloat], Field(min_length=2)]

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        if abs(sum(self.views.values()) - 1) > 1e-6:
            raise ValueError(f"the weights of a {self.kind} mean sum to 1, found {sum(self.views.values()):g}")
        return self


class Extrapolation(Settings):
    """View^factor · reference^(1 − factor): past the view, away from the reference, where the factor is over 1."""

    kind: Literal["extrapolate"]
    view: Name
    reference: Name
    factor: PositiveFloat


class Contrast(Settings):
    """View · (view / reference)^α with α = scale · Σ|view − reference| + 1e-3; the loss is divided by α."""

    kind: Literal["contrast"]
    view: Name
    reference: Name
    scale: PositiveFloat


class Corrected(Settings):
    """A view less a derived column of nats per token: sampled tokens only."""

    kind: Literal["corrected"]
    view: Name
    column: Name


AnyTarget = Annotated[Route | Mixture | Extrapolation | Contrast | Corrected, Field(discriminator="kind")]
