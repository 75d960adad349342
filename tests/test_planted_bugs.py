"""The list of planted bugs against the code: each has one place in it. `python -m tests.planted_bugs` plants them.

How a place is found is held against small functions: layout does not matter, and what is not there is named.
"""

import ast
from pathlib import Path

import pytest

from tests.planting import Plant, UnplantableError, change
from tests.plants import PLANTS

SOURCE = """
class Loss:
    def mean(self, α, n):
        total = (  # β
            α.sum()  -  1
        )
        return total / n

    def twice(self):
        return 1 + 1
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "loss.py").write_text(SOURCE)
    (tmp_path / "pipeline" / "recipe.yaml").write_text("terms:\n  - {beta: 0.5, share: 0.5}\n")
    return tmp_path


def bug(was: str, now: str, where: str = "pipeline.loss:Loss.mean") -> Plant:
    return Plant("a bug", where, was, now, ())


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_bug_can_be_planted(plant):
    changed = change(plant)
    if plant.path.suffix == ".py":
        ast.parse(changed)


def test_there_are_enough_of_them_and_each_once():
    assert len({plant.name for plant in PLANTS}) == len(PLANTS) >= 50


@pytest.mark.parametrize(
    ("was", "now", "expected"),
    [
        ("α.sum() - 1", "α.mean()", SOURCE.replace("α.sum()  -  1", "(α.mean())")),
        ("return total/n", "return n", SOURCE.replace("return total / n", "return n")),
    ],
)
def test_an_expression_is_found_whatever_its_layout(root, was, now, expected):
    assert change(bug(was, now), root) == expected


def test_a_value_of_a_recipe_is_changed_alone(root):
    found = change(bug("0.5", "0.7", "pipeline/recipe.yaml:terms.0.share"), root)
    assert found == "terms:\n  - {beta: 0.5, share: 0.7}\n"


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (bug("α.sum() + 1", "α"), r"occurs 0 times there; there is `α.sum\(\) - 1`"),
        (bug("1", "α", "pipeline.loss:Loss.twice"), "occurs 2 times"),
        (bug("α.sum() - 1", "α.sum()-1"), "what the code says already"),
        (bug("α", "n", "pipeline.loss:Loss.means"), "`means` is defined 0 times; there is `mean`"),
        (bug("α", "n", "pipeline.losses:Loss.mean"), "there is no pipeline/losses.py"),
        (bug("0.4", "0.7", "pipeline/recipe.yaml:terms.0.share"), "0.4 is expected; there is 0.5"),
    ],
)
def test_what_has_no_place_says_why(root, plant, reason):
    with pytest.raises(UnplantableError, match=f"^a bug: .*{reason}"):
        change(plant, root)
