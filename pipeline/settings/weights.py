"""What a recipe may say of token weights: each a factor of what a token counts for.

A class says what it reads; `pipeline/objectives/weights.py` says which formula it stands for.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.settings.reading import Name, NonNegativeFloat, Positive, PositiveFloat, Schedule, Settings, Share


class TokenWeight(Settings):
    """A factor of what a token counts for, and what has to be known to compute it: by default nothing."""

    is_live: ClassVar[bool] = False
    """Whether it depends on the student as it is, so that it is known after the forward pass alone."""
    has_known_sum: ClassVar[bool] = False
    """Whether a live one's sum over each rollout is known before the forward pass."""
    needs_entropy: ClassVar[bool] = False
    """Whether it reads the student's entropy."""
    needs_target_entropy: ClassVar[bool] = False
    """Whether it reads the entropy of the term's view."""

    @property
    def needs_ids(self) -> bool:
        """Whether it reads the divergence from the term's target, so that the student is asked at the target's ids."""
        return False

    @property
    def reads(self) -> frozenset[str]:
        """The facts of rows and tokens that it reads (names of `Inputs.facts`), derived columns left out."""
        return frozenset()

    @property
    def derived_columns(self) -> frozenset[str]:
        """The derived columns of the recipe that it reads."""
        return frozenset()

    @property
    def views(self) -> frozenset[str]:
        """The views of which it asks whether they have scored a row."""
        return frozenset()

    @property
    def gated_views(self) -> frozenset[str]:
        """The views that may leave rows unscored: such a row counts for nothing."""
        return frozenset()


class Where(TokenWeight):
    """1 for rows with this fact, else 0: routing."""

    kind: Literal["where"]
    fact: Literal["correct", "wrong", "finished"]

    @property
    def reads(self) -> frozenset[str]:
        """`correct`, also where wrong rows are asked for; or `finished`."""
        return frozenset({"finished" if self.fact == "finished" else "correct"})


class InDomain(TokenWeight):
    """1 for rows of these domains, else 0."""

    kind: Literal["domain"]
    names: Annotated[tuple[str, ...], Field(min_length=1)]

    @property
    def reads(self) -> frozenset[str]:
        """A fact for each domain."""
        return frozenset(f"domain={name}" for name in self.names)


class HasView(TokenWeight):
    """1 for rows that a view has a score of (`lacks_view`: has none of), else 0: there may then be others."""

    kind: Literal["has_view", "lacks_view"]
    view: Name

    @property
    def reads(self) -> frozenset[str]:
        """Whether the view has scored a row."""
        return frozenset({f"has={self.view}"})

    @property
    def views(self) -> frozenset[str]:
        """The view that it names."""
        return frozenset({self.view})

    @property
    def gated_views(self) -> frozenset[str]:
        """The view that it names, unless it asks for the rows without."""
        return self.views if self.kind == "has_view" else frozenset()


class ColumnWeight(TokenWeight):
    """A derived column of the recipe; with `at_least` or `at_most`, 1 where it is, else 0."""

    kind: Literal["column"]
    name: Name
    at_least: float | Schedule | None = None
    at_most: float | Schedule | None = None

    @property
    def derived_columns(self) -> frozenset[str]:
        """The column that it names."""
        return frozenset({self.name})


class NotSpecial(TokenWeight):
    """0 for special tokens of the tokenizer, else 1."""

    kind: Literal["not_special"]

    @property
    def reads(self) -> frozenset[str]:
        """Whether a token is special."""
        return frozenset({"special"})


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

    @property
    def reads(self) -> frozenset[str]:
        """What the student that wrote a token gave it, at temperature 1."""
        return frozenset({"behaviour_logprobs"})


class StepRatio(TokenWeight):
    """Disagreement of the teacher in a token's step, as a multiple of that in the first."""

    kind: Literal["step_ratio"]
    cap: NonNegativeFloat

    @property
    def reads(self) -> frozenset[str]:
        """The step of each token, and what the student that wrote it gave it."""
        return frozenset({"segments", "behaviour_logprobs"})


class FirstSegments(TokenWeight):
    """1 in the first turns, one more every so many optimiser steps, else 0."""

    kind: Literal["first_segments"]
    every: Positive
    most: Positive

    @property
    def reads(self) -> frozenset[str]:
        """The turn of each token."""
        return frozenset({"segments"})


class FirstTokens(TokenWeight):
    """1 in the first tokens of a response, else 0."""

    kind: Literal["prefix"]
    tokens: Positive | Schedule


class Confidence(TokenWeight):
    """exp(−rate · entropy of the target)."""

    kind: Literal["confidence"]
    rate: PositiveFloat
    needs_target_entropy: ClassVar[bool] = True


class EntropyGate(TokenWeight):
    """1 where the target's entropy is above so many nats, else 0."""

    kind: Literal["entropy_gate"]
    above: NonNegativeFloat
    needs_target_entropy: ClassVar[bool] = True


class TopFraction(TokenWeight):
    """1 for this share of each rollout's tokens, those that score highest, else 0."""

    kind: Literal["top_fraction"]
    by: Literal["entropy", "soft_or"]
    """The student's entropy, or its soft or with the reverse KL to the target."""
    share: Share
    is_live: ClassVar[bool] = True
    has_known_sum: ClassVar[bool] = True
    needs_entropy: ClassVar[bool] = True

    @property
    def needs_ids(self) -> bool:
        """For the soft or."""
        return self.by == "soft_or"


class Zone(TokenWeight):
    """1 where the target is uncertain (`target`), or where of the rest the student alone is (`student`), else 0."""

    kind: Literal["zone"]
    which: Literal["target", "student"]
    target_share: Share
    student_share: Share
    is_live: ClassVar[bool] = True
    has_known_sum: ClassVar[bool] = True
    needs_entropy: ClassVar[bool] = True
    needs_target_entropy: ClassVar[bool] = True


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

    @property
    def reads(self) -> frozenset[str]:
        """What the student that wrote a token gave it, at temperature 1."""
        return frozenset({"behaviour_logprobs"})


AnyWeight = Annotated[
    Where | InDomain | HasView | ColumnWeight | NotSpecial | SigmoidPosition | Earliness | StepRatio | FirstSegments
    | FirstTokens | Confidence | EntropyGate | TopFraction | Zone | LogRatioWithin | Freshness,
    Field(discriminator="kind"),
]  # fmt: skip
