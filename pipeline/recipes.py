"""Recipes: a published method as a page of YAML over the same shards, compiled to one function of small tensors.

A recipe is a sum of terms, each a choice on the axes of source, view, support, divergence and estimator. It says
what it needs; what is missing is refused before a model loads.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any, Literal, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML
from torch import Tensor

from pipeline import head, objectives
from pipeline.errors import SettingsError
from pipeline.objectives import Outcomes
from pipeline.params import PositiveFloat, Settings


class Fidelity(Settings):
    """How much of the paper a recipe is."""

    level: Literal["full", "adapted", "partial"]
    note: str


class Term(Settings):
    """One summand of the loss."""

    estimator: Literal["analytic", "policy_gradient", "nll"]
    """`analytic`: the divergence itself. `policy_gradient`: the sampled token's log-ratio as advantage. `nll`: SFT."""
    divergence: Literal["reverse_kl", "forward_kl"] | None = None
    source: Literal["student", "teacher", "gold"] = "student"
    """Whose responses it is taken on."""
    view: str | None = "teacher"
    """Whose log-probabilities are the target."""
    support: Literal["sampled", "view"]
    """`sampled`: the response token alone. `view`: the ids that the view kept, and the tail outside them."""
    advantage_clip: PositiveFloat | None = None
    """Nats; `policy_gradient` only."""
    coefficient: PositiveFloat = 1.0
    reduction: Literal["token_mean", "sequence_mean"] = "token_mean"
    """`token_mean`: over all response tokens of a step. `sequence_mean`: over each response, then over responses."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        match self.estimator:
            case "analytic" if self.support != "view" or self.divergence is None:
                raise ValueError("`analytic` needs `support: view` and a divergence: one token has no divergence")
            case "policy_gradient" if self.support != "sampled" or self.divergence != "reverse_kl":
                # A top-K divergence does not depend on the action: as an advantage its expected gradient is zero.
                raise ValueError("`policy_gradient` needs `support: sampled` and `divergence: reverse_kl`")
            case "nll" if self.view is not None or self.divergence is not None or self.support != "sampled":
                raise ValueError("`nll` has no target: `support: sampled`, `view: null` and no divergence")
        if self.advantage_clip is not None and self.estimator != "policy_gradient":
            raise ValueError(f"`advantage_clip` goes with `policy_gradient`, found `{self.estimator}`")
        if self.estimator != "nll" and self.view is None:
            raise ValueError(f"`{self.estimator}` needs a view as target")
        return self


class Recipe(Settings):
    """A method by name."""

    name: str
    paper: str
    description: str
    fidelity: Fidelity
    terms: Annotated[tuple[Term, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_support(self) -> Self:
        if len(self.exact_views) > 1:
            raise ValueError(f"terms over the supports of {' and '.join(self.exact_views)}: one view at a time")
        return self

    @property
    def views(self) -> tuple[str, ...]:
        """The views that its terms learn from."""
        return tuple(sorted({term.view for term in self.terms if term.view is not None}))

    @property
    def exact_views(self) -> tuple[str, ...]:
        """The views whose tails it reads as numbers, so that they may not be derived from a rounded sum."""
        return tuple(sorted({term.view for term in self.terms if term.view and term.support == "view"}))

    @property
    def sources(self) -> tuple[str, ...]:
        """Whose responses it trains on."""
        return tuple(sorted({term.source for term in self.terms}))


def names() -> list[str]:
    """Every recipe that comes with Potstill."""
    folder = resources.files("pipeline") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def load(objective: str | Mapping[str, Any]) -> Recipe:
    """A recipe by name, or one that the settings write out.

    Raises:
        SettingsError: there is none of this name, or its terms do not fit together.
    """
    if isinstance(objective, str):
        if objective not in names():
            raise SettingsError(f"train.objective: no recipe `{objective}`; there are {', '.join(names())}.")
        text = (resources.files("pipeline") / "recipes" / f"{objective}.yaml").read_text()
        facts = {"name": objective, **YAML(typ="safe", pure=True).load(text)}
    else:
        own = {"name": "own", "paper": "", "description": "", "fidelity": {"level": "full", "note": "written out"}}
        facts = {**own, **objective}
    try:
        return Recipe.model_validate_json(json.dumps(facts))  # by way of JSON, as params does
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, mistake['loc']))}: {mistake['msg']}" for mistake in error.errors()]
        raise SettingsError(f"train.objective `{facts['name']}`:\n" + "\n".join(lines)) from None


@dataclass(frozen=True)
class Target:
    """What one view says of the T response tokens of a pack.

    Attributes:
        ids: int64 [T, k], padded with −1 behind the last.
        outcomes: the view's log-probabilities at them and outside them, a distribution again after rounding.
        sampled: [T], of the response tokens.
    """

    ids: Int[Tensor, "token k"]
    outcomes: Outcomes
    sampled: Float[Tensor, " token"]


@dataclass(frozen=True)
class Columns:
    """What a term may read of the tokens of a pack, besides the student.

    Attributes:
        targets: the views by name.
        weights: of each reduction, what a token counts for; the weights of a whole optimiser step sum to 1.
    """

    targets: Mapping[str, Target]
    weights: Mapping[str, Float[Tensor, " token"]]


@dataclass(frozen=True)
class Objective:
    """A compiled recipe: what to ask of the student, and the loss of its answer."""

    recipe: Recipe

    def ask(self, sampled_ids: Tensor, columns: Columns) -> head.Ask:
        """All that the terms need to know of the student."""
        entries = [columns.targets[view].ids for view in self.recipe.exact_views]
        ids = entries[0] if entries else sampled_ids.new_empty(len(sampled_ids), 0)
        return head.Ask(sampled_ids, ids)

    def loss(self, student: head.Answer, columns: Columns) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """This pack's share of the step's loss (nats), and per-token diagnostics.

        Packs of one step add up: the weights already divide by the tokens of the whole step.
        """
        total = student.sampled.new_zeros(())
        for term in self.recipe.terms:
            per_token = _value(term, student, columns)
            total = total + term.coefficient * (per_token * columns.weights[term.reduction]).sum()
        return total, _diagnostics(student, columns)


def _value(term: Term, student: head.Answer, columns: Columns) -> Float[Tensor, " token"]:
    if term.view is None:
        return objectives.nll(student.sampled)
    target = columns.targets[term.view]
    if term.estimator == "policy_gradient":
        advantage = objectives.log_ratio_advantage(student.sampled, target.sampled, term.advantage_clip)
        return objectives.policy_gradient(student.sampled, advantage)
    divergence = {"reverse_kl": objectives.reverse_kl, "forward_kl": objectives.forward_kl}[str(term.divergence)]
    return divergence(Outcomes(student.logprobs, student.tail), target.outcomes)


@torch.no_grad()
def _diagnostics(student: head.Answer, columns: Columns) -> dict[str, Tensor]:
    """What the step already knows: how far student and target are apart, and how much of each the support holds."""
    found = {"nll": -student.sampled}
    for view, target in columns.targets.items():
        name = "" if view == "teacher" else f"{view}_"
        found[f"{name}log_ratio"] = student.sampled - target.sampled
        if target.ids.shape[-1] and student.logprobs.shape == target.ids.shape:
            outcomes = Outcomes(student.logprobs, student.tail)
            found[f"{name}kl"] = objectives.reverse_kl(outcomes, target.outcomes)
            found[f"{name}support_mass"] = outcomes.mass
            found[f"{name}target_mass"] = target.outcomes.mass
    return found
