"""Token weights, targets and derived columns: each class has its formula, and reads what it says that it reads.

Weights and targets that a recipe has are compared with slow loops in test_formulas.py; here are the others.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import get_args

import pytest
import torch

from pipeline.objectives.inputs import Inputs, Target
from pipeline.objectives.outcomes import Outcomes
from pipeline.objectives.targets import compose_views, find_target
from pipeline.objectives.weights import compute_weight, count_kept
from pipeline.settings.derived import AnyDerived
from pipeline.settings.recipe import Recipe, list_recipes, load_recipe
from pipeline.settings.targets import AnyTarget
from pipeline.settings.weights import AnyWeight
from pipeline.training.derived import compute_column
from tests import formulas
from tests.cases import Case, Token


def classes(union: object) -> tuple[type, ...]:
    """Of a union that `kind` tells apart."""
    return get_args(get_args(union)[0])


def kinds(union: object) -> set[str]:
    return {kind for one in classes(union) for kind in get_args(one.model_fields["kind"].annotation)}  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("union", "formula"),
    [(AnyWeight, compute_weight), (AnyTarget, compose_views), (AnyDerived, compute_column)],
    ids=["weights", "targets", "derived columns"],
)
def test_every_class_of_an_axis_has_a_formula(union, formula):
    assert {one for one in classes(union) if formula.dispatch(one) is formula.dispatch(object)} == set()


def test_a_sum_that_is_known_beforehand_has_a_formula():
    known = {one for one in classes(AnyWeight) if one.has_known_sum}  # pyright: ignore[reportAttributeAccessIssue]
    assert known == {one for one in count_kept.registry if one is not object}


RATE = {"rate": {"kind": "group_mean", "of": "correct"}}
WRITTEN_OUT: dict[str, tuple[dict, Callable[[Token], float]]] = {
    "domain": ({"kind": "domain", "names": ["code"]}, lambda k: k.facts["domain=code"]),
    "domains": ({"kind": "domain", "names": ["code", "math"]}, lambda _: 1.0),
    "finished": ({"kind": "where", "fact": "finished"}, lambda k: k.facts["finished"]),
    "at most": ({"kind": "column", "name": "rate", "at_most": 1.0}, lambda k: float(k.facts["rate"] <= 1.0)),
    "at least and at most": (
        {"kind": "column", "name": "rate", "at_least": 0.7, "at_most": {"start": 0.7, "end": 1.3, "steps": 60}},
        lambda k: float(0.7 <= k.facts["rate"] <= 1.0),
    ),
}
"""Token weights as a user may write them and no recipe does, with what a token counts for at step 30."""


def weighed(weight: dict) -> Recipe:
    """Reverse KL with one weight."""
    term = {"estimator": "analytic", "divergence": "reverse_kl", "support": "view", "weights": [weight]}
    return load_recipe({"terms": [term], "derived": RATE if weight["kind"] == "column" else {}})


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_a_weight_that_no_recipe_has_is_what_a_slow_loop_says(name):
    weight, slow = WRITTEN_OUT[name]
    case = Case(weighed(weight), seed=0)
    tokens = case.tokens()
    expected = formulas.token_mean(tokens, formulas.reverse, slow)
    assert case.loss(case.logits).item() == pytest.approx(expected, rel=1e-6)
    assert {slow(k) for k in tokens} == ({1.0} if name in ("domains", "finished") else {0.0, 1.0})


def test_every_kind_of_weight_and_target_is_compared_with_a_slow_loop():
    terms = [term for name in list_recipes() for term in load_recipe(name).terms]
    of_recipes = {weight.kind for term in terms for weight in term.weights}
    assert of_recipes | {weight["kind"] for weight, _ in WRITTEN_OUT.values()} == kinds(AnyWeight)
    assert {term.target.kind for term in terms if term.target is not None} == kinds(AnyTarget)


class Watched(dict):
    """Facts by name, which remembers those that were asked for."""

    def __init__(self, facts: Mapping[str, torch.Tensor]):
        super().__init__(facts)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.read.add(name)
        return super().__getitem__(name)


class Lean(Case):
    """A case that has of facts and views what its recipe says that it reads, and nothing else."""

    def inputs(self, rows=None, step=30) -> Inputs:
        inputs, recipe = super().inputs(rows, step), self.recipe
        named = recipe.reads | set(recipe.derived)
        named |= {f"source={source}" for source in recipe.sources} if len(recipe.sources) > 1 else set()
        self.watched = Watched({name: fact for name, fact in inputs.facts.items() if name in named})
        targets = {
            view: replace(
                inputs.targets[view],
                own=inputs.targets[view].own if view in recipe.own_views else None,
                entropy=inputs.targets[view].entropy if view in recipe.entropy_views else None,
            )
            for view in recipe.views
        }
        return replace(inputs, facts=self.watched, targets=targets)


@pytest.mark.parametrize(
    "recipe", [*map(load_recipe, list_recipes()), *(weighed(weight) for weight, _ in WRITTEN_OUT.values())],
    ids=[*list_recipes(), *WRITTEN_OUT],
)  # fmt: skip
def test_a_recipe_reads_the_facts_that_its_terms_name_and_no_others(recipe):
    whole, lean = Case(recipe, seed=0), Lean(recipe, seed=0)
    assert lean.loss(lean.logits).item() == whole.loss(whole.logits).item()
    named = {fact for term in recipe.terms for fact in term.reads | term.derived_columns}
    assert {name for name in lean.watched.read if not name.startswith("source=")} == named


def test_a_routed_target_has_each_views_own_ids_and_entropy():
    """So that a weight by entropy, and `support: own`, read what the view of a token's domain says."""
    one, other = (
        Target(
            torch.tensor([[1], [2]]), Outcomes(torch.full((2, 1), -0.5), torch.full((2,), -0.9)), torch.zeros(2),
            own=torch.tensor([number, number]), entropy=torch.tensor([number / 2, number / 2]),
        )
        for number in (1, 3)
    )  # fmt: skip
    facts = {"domain=math": torch.tensor([1.0, 0.0]), "domain=code": torch.tensor([0.0, 1.0])}
    inputs = Inputs({"one": one, "other": other}, torch.tensor([2]), torch.tensor([0, 0]), {}, facts)
    route = {"kind": "route", "views": {"math": "one", "code": "other"}}
    term = {"estimator": "analytic", "divergence": "reverse_kl", "support": "own", "view": None, "target": route}
    target = find_target(load_recipe({"terms": [term]}).terms[0], inputs)
    assert target is not None
    assert target.own is not None
    assert target.own.tolist() == [1, 3]
    assert target.entropy is not None
    assert target.entropy.tolist() == [0.5, 1.5]
