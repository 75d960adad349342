"""What a recipe may say of token weights: each a factor of what a token counts for."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.settings.reading import Name, NonNegativeFloat, Positive, PositiveFloat, Schedule, Settings, Share


class TokenWeight(Settings):
    """A factor of what a token counts for."""

    is_live: ClassVar[bool] = False
    """Whether it depends on the student as it is, so that only its expected sum is known before the forward pass."""


class Where(TokenWeight):
    """1 for rows with this fact, else 0: routing."""

    kind: Literal["where"]
    fact: Literal["correct", "wrong", "finished"]


class InDomain(TokenWeight):
    """1 for rows of these domains, else 0."""

    kind: Literal["domain"]
    names: Annotated[tuple[str, ...], Field(min_length=1)]


class HasView(TokenWeight):
    """1 for rows that a view has a score of (`lacks_view`: has none of), else 0: there may then be others."""

    kind: Literal["has_view", "lacks_view"]
    view: Name


class ColumnWeight(TokenWeight):
    """A derived column of the recipe; with `at_least` or `at_most`, 1 where it is, else 0."""

    kind: Literal["column"]
    name: Name
    at_least: float | Schedule | None = None
    at_most: float | Schedule | None = None


class NotSpecial(TokenWeight):
    """0 for special tokens of the tokenizer, else 1."""

    kind: Literal["not_special"]


class SigmoidPosition(TokenWeight):
    """From `lowest` early in the response to 1 late in it."""

    kind: Literal["position"]
    lowest: Share
    turn: Share
    width: PositiveFloat


class Earliness(TokenWeight):
    """From `highest` to 1 as the discrepancy of teacher and behaviour adds up."""

    kind: Literal["earliness"]
    highest: Annotated[float, Field(ge=1)]


class StepRatio(TokenWeight):
    """By how much the teacher disagrees in a token's step, against the first."""

    kind: Literal["step_ratio"]
    cap: NonNegativeFloat


class FirstSegments(TokenWeight):
    """1 in the first turns, one more every so many optimiser steps, else 0."""

    kind: Literal["first_segments"]
    every: Positive
    most: Positive


class FirstTokens(TokenWeight):
    """1 in the first tokens of a response, else 0."""

    kind: Literal["prefix"]
    tokens: Positive | Schedule


class Confidence(TokenWeight):
    """exp(−rate · entropy of the target)."""

    kind: Literal["confidence"]
    rate: PositiveFloat


class EntropyGate(TokenWeight):
    """1 where the target's entropy is above so many nats, else 0."""

    kind: Literal["entropy_gate"]
    above: NonNegativeFloat


class TopFraction(TokenWeight):
    """1 for this share of each rollout's tokens, those that score highest, else 0."""

    kind: Literal["top_fraction"]
    by: Literal["entropy", "soft_or", "confident_disagreement"]
    share: Share
    is_live: ClassVar[bool] = True


class Zone(TokenWeight):
    """1 where the target is uncertain (`target`), or where of the rest the student alone is (`student`), else 0."""

    kind: Literal["zone"]
    which: Literal["target", "student"]
    target_share: Share
    student_share: Share
    is_live: ClassVar[bool] = True


class LogRatioWithin(TokenWeight):
    """1 where log target − log student of the token is in [low, high] nats, else 0."""

    kind: Literal["log_ratio_within"]
    low: float | None = None
    high: float | None = None
    is_live: ClassVar[bool] = True


class Freshness(TokenWeight):
    """Less for rollouts that the student has moved away from."""

    kind: Literal["freshness"]
    rate: PositiveFloat
    threshold: NonNegativeFloat
    is_live: ClassVar[bool] = True


AnyWeight = Annotated[
    Where | InDomain | HasView | ColumnWeight | NotSpecial | SigmoidPosition | Earliness | StepRatio | FirstSegments
    | FirstTokens | Confidence | EntropyGate | TopFraction | Zone | LogRatioWithin | Freshness,
    Field(discriminator="kind"),
]  # fmt: skip
