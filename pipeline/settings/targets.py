"""What a recipe may say of targets that several views make together.

A class says what it reads; `pipeline/objectives/targets.py` says which formula it stands for.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.settings.reading import Name, PositiveFloat, Settings


class ComposedTarget(Settings):
    """A target that is not one view as it stands, and what has to be known to compute it."""

    shares_ids: ClassVar[bool] = True
    """Whether its views are put together id by id, for which they keep the same ids."""
    needs_ids: ClassVar[bool] = False
    """Whether even its sampled token is a sum over the ids of its views."""
    is_of_sampled: ClassVar[bool] = False
    """Whether it is known at the sampled token alone."""

    @property
    @abstractmethod
    def view_names(self) -> tuple[str, ...]:
        """The views that it is made of, each once."""

    @property
    def learned_views(self) -> tuple[str, ...]:
        """The views that a student learns towards: of `view_names` not those that it is only compared with."""
        return self.view_names

    @property
    def by_domain(self) -> Mapping[str, str]:
        """The view of each domain, where a row's domain chooses it."""
        return {}

    @property
    def reads(self) -> frozenset[str]:
        """The facts of rows and tokens that it reads (names of `Inputs.facts`), derived columns left out."""
        return frozenset(f"domain={domain}" for domain in self.by_domain)

    @property
    def derived_columns(self) -> frozenset[str]:
        """The derived columns of the recipe that it reads."""
        return frozenset()


class Route(ComposedTarget):
    """One view for each domain; rows of other domains have no target."""

    kind: Literal["route"]
    views: dict[str, Name]
    shares_ids: ClassVar[bool] = False

    @model_validator(mode="after")
    def _has_a_choice(self) -> Self:
        if len(set(self.views.values())) < 2:
            raise ValueError("a route chooses between views: of one alone say `view`, with a `domain` weight")
        return self

    @property
    def view_names(self) -> tuple[str, ...]:
        """The views that it chooses between."""
        return tuple(dict.fromkeys(self.views.values()))

    @property
    def by_domain(self) -> Mapping[str, str]:
        """The view of each domain."""
        return self.views


class Mixture(ComposedTarget):
    """A mean of views, by weights that sum to 1: their product to these powers, normalised."""

    kind: Literal["geometric"]
    views: Annotated[dict[Name, PositiveFloat], Field(min_length=2)]
    needs_ids: ClassVar[bool] = True

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        if abs(sum(self.views.values()) - 1) > 1e-6:
            raise ValueError(f"the weights of a {self.kind} mean sum to 1, found {sum(self.views.values()):g}")
        return self

    @property
    def view_names(self) -> tuple[str, ...]:
        """The views that it is the mean of."""
        return tuple(self.views)


class ReferencedTarget(ComposedTarget):
    """A view, and the reference that it is moved away from."""

    view: Name
    reference: Name

    @property
    def view_names(self) -> tuple[str, ...]:
        """The view and the reference."""
        return self.view, self.reference

    @property
    def learned_views(self) -> tuple[str, ...]:
        """The view."""
        return (self.view,)


class Extrapolation(ReferencedTarget):
    """View^factor · reference^(1 − factor): past the view, away from the reference, where the factor is over 1."""

    kind: Literal["extrapolate"]
    factor: PositiveFloat


class Contrast(ReferencedTarget):
    """View · (view / reference)^α with α = scale · Σ|view − reference| + 1e-3; the loss is divided by α."""

    kind: Literal["contrast"]
    scale: PositiveFloat
    needs_ids: ClassVar[bool] = True


class Corrected(ComposedTarget):
    """A view less a derived column of nats per token: sampled tokens only."""

    kind: Literal["corrected"]
    view: Name
    column: Name
    is_of_sampled: ClassVar[bool] = True

    @property
    def view_names(self) -> tuple[str, ...]:
        """The view that it names."""
        return (self.view,)

    @property
    def derived_columns(self) -> frozenset[str]:
        """The column that it names."""
        return frozenset({self.column})


AnyTarget = Annotated[Route | Mixture | Extrapolation | Contrast | Corrected, Field(discriminator="kind")]
