"""Recipes: a published method as a page of YAML over the same shards.

A recipe is a sum of terms (`term.py`). It says what it needs; what is missing is refused before a model loads.
`pipeline/objectives/objective.py` makes one function of it.
"""

from collections.abc import Mapping
from importlib import resources
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.errors import SettingsError, suggest
from pipeline.settings.derived import AnyDerived
from pipeline.settings.reading import Name, Settings, parse, read_yaml
from pipeline.settings.term import Term


class Fidelity(Settings):
    """How much of the paper a recipe is."""

    level: Literal["full", "adapted", "partial"]
    note: str


class Recipe(Settings):
    """A method by name."""

    name: str
    paper: str
    equation: str = ""
    """The loss in a line, for people."""
    description: str
    fidelity: Fidelity
    needs: dict[Name, str] = Field(default_factory=dict)
    """What each view besides `teacher` has to be, for people: `score.views` says it to the machine."""
    derived: dict[Name, AnyDerived] = Field(default_factory=dict)
    terms: Annotated[tuple[Term, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _columns_exist(self) -> Self:
        asked = {column for term in self.terms for column in term.derived_columns}
        if asked != set(self.derived):
            raise ValueError(f"derived columns: its terms read {sorted(asked)}, it defines {sorted(self.derived)}")
        is_of_student = any("behaviour_logprobs" in spec.reads for spec in self.derived.values())
        if is_of_student and len(self.sources) > 1:
            raise ValueError("derived columns that read a view are of the student's responses: use one source")
        return self

    @property
    def views(self) -> tuple[str, ...]:
        """The views that its terms and derived columns read."""
        named = {view for spec in self.derived.values() for view in spec.views}
        asked = {view for term in self.terms for weight in term.weights for view in weight.views}
        return tuple(sorted({view for term in self.terms for view in term.views} | named | asked))

    @property
    def learned_views(self) -> tuple[str, ...]:
        """The views that a term learns towards, references left out."""
        return tuple(sorted({view for term in self.terms for view in term.learned_views}))

    @property
    def main_view(self) -> str | None:
        """The view that the student is compared with first: `teacher`, or else another that a term learns towards."""
        return "teacher" if "teacher" in self.learned_views else next(iter(self.learned_views), None)

    @property
    def exact_views(self) -> tuple[str, ...]:
        """The views whose ids and tails it reads, as numbers: tails may not be derived from a rounded sum."""
        return tuple(sorted({view for term in self.terms if term.reads_ids for view in term.views}))

    @property
    def fixed_k_views(self) -> tuple[str, ...]:
        """The views whose ids may not have been cut by mass: it takes so many of them, or renormalises over them."""
        fixed = [
            term for term in self.terms
            if term.own_top_k is not None or (term.tail.startswith("renormalise") and term.support != "intersection")
        ]  # fmt: skip
        return tuple(sorted({view for term in fixed for view in term.views}))

    @property
    def own_views(self) -> tuple[str, ...]:
        """The views whose own likeliest ids it tells from those that other views asked them for."""
        return tuple(sorted({view for term in self.terms if term.reads_own for view in term.views}))

    @property
    def entropy_views(self) -> tuple[str, ...]:
        """The views whose entropies it reads."""
        return tuple(sorted({view for term in self.terms if term.reads_target_entropy for view in term.views}))

    @property
    def optional_views(self) -> tuple[str, ...]:
        """The views that may leave rows unscored: every term on one gates it (`has_view`) or routes rows to it.

        Not those that a derived column reads: a missing number would be in all of it.
        """
        gated = {view for term in self.terms for view in term.gated_views}
        ungated = {view for term in self.terms for view in set(term.views) - term.gated_views}
        ungated |= {view for spec in self.derived.values() for view in spec.views}
        return tuple(sorted(gated - ungated))

    @property
    def sources(self) -> tuple[str, ...]:
        """Whose responses it trains on."""
        return tuple(sorted({source for term in self.terms for source in term.sources}))

    @property
    def teacher_views(self) -> tuple[str, ...]:
        """The views that it reads over the teacher's own responses."""
        return tuple(sorted({view for term in self.terms if "teacher" in term.sources for view in term.views}))

    @property
    def is_paired(self) -> bool:
        """Whether each of the student's responses needs one of the teacher's to the same prompt beside it."""
        return any(term.estimator == "preference" for term in self.terms)

    def describe_view(self, view: str) -> str:
        """Say which view and what it has to be, for errors."""
        return f"the view `{view}`" + (f" ({self.needs[view]})" if view in self.needs else "")

    @property
    def reads(self) -> frozenset[str]:
        """The facts of rows and tokens that it reads: names of `Inputs.facts`, and what derived columns are of."""
        of_terms = frozenset[str]().union(*(term.reads for term in self.terms))
        return of_terms.union(*(spec.reads for spec in self.derived.values()))

    @property
    def identity(self) -> dict[str, Any]:
        """The part of it that decides numbers, without its prose; axes that a term does not use do not enter."""
        terms = [term.model_dump(mode="json", exclude_defaults=True, exclude={"fixed_point"}) for term in self.terms]
        derived = {name: spec.model_dump(mode="json") for name, spec in sorted(self.derived.items())}
        return {"terms": terms} | ({"derived": derived} if derived else {})


def list_recipes() -> list[str]:
    """List the recipes that come with Potstill."""
    folder = resources.files("pipeline") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def load_recipe(objective: str | Mapping[str, Any]) -> Recipe:
    """Load a recipe by name, or make one that the settings write out.

    Raises:
        SettingsError: there is none of this name, or its terms do not fit together.
    """
    if isinstance(objective, str):
        if objective not in list_recipes():
            raise SettingsError(f"no recipe `{objective}`; {suggest(objective, list_recipes())}")
        with resources.as_file(resources.files("pipeline") / "recipes" / f"{objective}.yaml") as path:
            written = {"name": objective, **read_yaml(path)}
    else:
        own = {"name": "own", "paper": "", "description": "", "fidelity": {"level": "full", "note": "written out"}}
        written = {**own, **objective}
    return parse(Recipe, f"recipe `{written['name']}`", written)
