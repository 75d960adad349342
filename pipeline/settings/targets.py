"""What a recipe may say of targets that several views make together; `pipeline/objectives/targets.py` computes them."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.settings.reading import Name, PositiveFloat, Settings


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
