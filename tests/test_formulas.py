"""Every recipe against its paper: value and gradient of a step, with slow loops written from the formula (formulas.py).

Gradients are central differences of the slow formula in its live student, so a gradient that is stopped elsewhere than
in the paper is noticed.
"""

import math
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from pipeline.settings.recipe import list_recipes, load_recipe
from tests import formulas, reference
from tests.cases import STEP, Case, Token

README = Path(__file__).parent.parent / "README.md"

STEPS = {0: STEP, 1: 0, 2: 60}
"""By seed: on the way of every schedule, before its first step, and behind the turn of those that have one."""


def test_every_recipe_has_a_formula_of_its_own():
    assert sorted(formulas.BY_NAME) == list_recipes()


@pytest.mark.parametrize("seed", STEPS)
@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_has_the_value_of_its_formula(name, seed):
    case, step = Case(load_recipe(name), seed), STEPS[seed]
    expected = formulas.BY_NAME[name](case.tokens(step=step))
    assert case.loss(case.logits, step=step).item() == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_has_the_gradient_of_its_formula(name):
    _compare_gradients(name, STEP)


def test_the_second_phase_of_reopold_has_the_gradient_of_its_formula():
    _compare_gradients("reopold", 60)


def _compare_gradients(name: str, step: int) -> None:
    case = Case(load_recipe(name), seed=2)
    expected = case.slow_gradient(formulas.BY_NAME[name], step=step)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(case.gradient(step=step), expected, rtol=1e-5, atol=1e-7)


def test_the_readmes_own_combination_needs_no_python():
    """Its terms, written out in the README, against a slow loop."""
    block = next(part for part in README.read_text().split("```yaml\n") if part.startswith("train:\n  objective:"))
    objective = YAML(typ="safe", pure=True).load(block.split("```")[0])["train"]["objective"]

    def value(k: Token) -> float:
        ids = [id_ for id_ in k.ids["teacher"] if id_ in formulas.likeliest(k, 3)]
        return formulas.jsd(reference.outcomes(k.p, ids), reference.outcomes(k.q["teacher"], ids), 0.3)

    def formula(tokens: list[Token]) -> float:
        sure = {id(k): math.exp(-reference.entropy(k.q["teacher"])) * (k.facts["correct"] == 0) for k in tokens}
        return formulas.selected_mean(tokens, value, lambda k: sure[id(k)])

    case = Case(load_recipe(objective), seed=0)
    assert case.loss(case.logits).item() == pytest.approx(formula(case.tokens()), rel=1e-6)
    torch.testing.assert_close(case.gradient(), case.slow_gradient(formula), rtol=1e-5, atol=1e-7)
