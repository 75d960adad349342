"""Every recipe against its paper: value and gradient of a step, with slow loops written from the formula (formulas.py).

Gradients are central differences of the slow formula in its live student, so a gradient that is stopped elsewhere than
in the paper is noticed.
"""

import pytest
import torch

from pipeline import recipes
from tests import formulas
from tests.cases import Case

SEEDS = (0, 1)


def test_every_recipe_has_a_formula_of_its_own():
    assert sorted(formulas.BY_NAME) == recipes.names()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_has_the_value_of_its_formula(name, seed):
    case = Case(recipes.load(name), seed)
    assert case.loss(case.logits).item() == pytest.approx(formulas.BY_NAME[name](case.tokens()), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_has_the_gradient_of_its_formula(name):
    case = Case(recipes.load(name), seed=2)
    expected = case.slow_gradient(formulas.BY_NAME[name])
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(case.gradient(), expected, rtol=1e-5, atol=1e-7)
