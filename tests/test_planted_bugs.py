"""The list of planted bugs against the code: each can still be planted. `python -m tests.planted_bugs` does it."""

import pytest

from tests.planted_bugs import PLANTS, ROOT


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_bug_can_be_planted(plant):
    assert (ROOT / "pipeline" / plant.file).read_text().count(plant.was) == 1
    assert plant.now != plant.was


def test_there_are_enough_of_them_and_each_once():
    assert len({plant.name for plant in PLANTS}) == len(PLANTS) >= 20
