"""Trust regions where rollouts are not drawn from the whole distribution: the clip of a step against one without.

The student is the one that wrote the tokens, as at the first step of training; it drew them at another temperature.
"""

import pytest
import torch

from pipeline.settings.recipe import Recipe, list_recipes, load_recipe
from pipeline.settings.term import Ratio
from tests.cases import Case

CLIPPED = [
    name
    for name in list_recipes()
    if any(term.ratio is not None and term.ratio.kind != "importance" for term in load_recipe(name).terms)
]


def unbounded(recipe: Recipe) -> Recipe:
    """The recipe with regions that nothing leaves."""
    widest = {
        "proximal": Ratio(kind="proximal", low=1.0, high=1e9),
        "two_sided": Ratio(kind="two_sided", low=0.0, high=1e9),
    }
    terms = [
        term if term.ratio is None else term.model_copy(update={"ratio": widest.get(term.ratio.kind, term.ratio)})
        for term in recipe.terms
    ]
    return recipe.model_copy(update={"terms": tuple(terms)})


def test_the_recipes_with_a_trust_region_are_known():
    papers = "dgrpo eopd kepo lightning2 mopd sod srpo stable_opd uni_opd"
    assert papers.split() == CLIPPED


@pytest.mark.parametrize("name", CLIPPED)
def test_no_token_is_clipped_before_the_student_has_moved(name):
    found = []
    for recipe in (load_recipe(name), unbounded(load_recipe(name))):
        case = Case(recipe, seed=0)
        case.wrote = [0.0] * len(case.row_of)
        case.mu = [5.0 * mu for mu in case.mu]
        found.append(case.gradient())
    assert found[0].abs().max() > 1e-3
    torch.testing.assert_close(found[0], found[1])
