"""What a recipe may say of derived columns: statistics of stored columns, made before the first step.

A class says what it reads; `pipeline/training/derived.py` says which formula it stands for.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.settings.reading import Name, NonNegative, NonNegativeFloat, Positive, PositiveFloat, Settings, Share


class DerivedColumn(Settings):
    """A column made from stored ones before the first step, and what has to be known to compute it."""

    is_of_tokens: ClassVar[bool] = False
    """Whether it has a value for each token, and not for each row."""
    needs_groups: ClassVar[bool] = False
    """Whether it says nothing where a prompt has one response."""

    @property
    def reads(self) -> frozenset[str]:
        """The facts of rows and tokens that it reads: names of `Inputs.facts`, and `reward`."""
        return frozenset()

    @property
    def views(self) -> tuple[str, ...]:
        """The views that it reads."""
        return ()


class GroupAdvantage(DerivedColumn):
    """Reward less its mean over the group, per row; with `scaled` over its standard deviation."""

    kind: Literal["group_advantage"]
    of: Literal["reward", "correct"] = "reward"
    scaled: bool = True
    deviation: Literal["population", "sample"] = "population"
    """Of a group of n: the root of the mean square, as GRPO has it; or by n − 1, as PyTorch's `std` in most codes."""
    needs_groups: ClassVar[bool] = True

    @property
    def reads(self) -> frozenset[str]:
        """The grade that it names."""
        return frozenset({self.of})


class GroupTotal(DerivedColumn):
    """Sum or mean over the rows of the group, per row: a `mean` of `correct` is the pass rate."""

    kind: Literal["group_total", "group_mean"]
    of: Literal["reward", "correct"]

    @property
    def reads(self) -> frozenset[str]:
        """The grade that it names."""
        return frozenset({self.of})


class Perplexity(DerivedColumn):
    """Softmax of the mean log-probability over the rows of a group that are all correct, or all wrong, per row."""

    kind: Literal["perplexity"]
    of: Name
    """A view, or `behaviour`: the student that wrote the row."""
    among: Literal["correct", "wrong"]
    favour: Literal["high", "low"]
    """Which perplexity weighs more."""
    temperature: PositiveFloat = 1.0
    needs_groups: ClassVar[bool] = True

    @property
    def reads(self) -> frozenset[str]:
        """Which rows are alike, and what their student gave their tokens."""
        return frozenset({"correct", "behaviour_logprobs"})

    @property
    def views(self) -> tuple[str, ...]:
        """The view that it names, unless it is the student's own."""
        return () if self.of == "behaviour" else (self.of,)


class ComparedColumn(DerivedColumn):
    """A derived column that compares what a view gave tokens with what the student that wrote them did."""

    view: Name

    @property
    def reads(self) -> frozenset[str]:
        """What the student that wrote a token gave it, at temperature 1."""
        return frozenset({"behaviour_logprobs"})

    @property
    def views(self) -> tuple[str, ...]:
        """The view that it names."""
        return (self.view,)


class Margin(ComparedColumn):
    """What must be added to the advantages of a row for correct ones to rank above wrong ones, nats per token."""

    kind: Literal["margin"]
    margin: NonNegativeFloat
    needs_groups: ClassVar[bool] = True

    @property
    def reads(self) -> frozenset[str]:
        """Which rows are to rank above which, and what their student gave their tokens."""
        return frozenset({"correct", "behaviour_logprobs"})


class Balance(DerivedColumn):
    """1 for as many correct as wrong rows of each group, drawn by the seed, else 0; 1 where all are alike."""

    kind: Literal["balance"]
    seed: NonNegative = 0
    needs_groups: ClassVar[bool] = True

    @property
    def reads(self) -> frozenset[str]:
        """Which rows are correct."""
        return frozenset({"correct"})


class AgreementCut(ComparedColumn):
    """0 from the start of the first long run of agreement between view and behaviour on, else 1, per token."""

    kind: Literal["agreement_cut"]
    window: Positive
    runs: Positive
    quantile: Share
    exempt: NonNegative = 0
    is_of_tokens: ClassVar[bool] = True


class CrossFittedBias(ComparedColumn):
    """What of log view − log behaviour other prompts predict from token, position and surprisal, per token."""

    kind: Literal["cross_fitted_bias"]
    folds: Annotated[int, Field(ge=2)] = 5
    shrink: NonNegativeFloat = 10.0
    seed: NonNegative = 0
    is_of_tokens: ClassVar[bool] = True


AnyDerived = Annotated[
    GroupAdvantage | GroupTotal | Perplexity | Margin | Balance | AgreementCut | CrossFittedBias,
    Field(discriminator="kind"),
]
