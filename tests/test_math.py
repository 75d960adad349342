"""The `math` grader against a table of gold answers as data sets write them, and responses that are right or wrong."""

import pytest

from pipeline.grading.graders import open_grader
from pipeline.settings.params import GradeSettings
from tests.math_pairs import PAIRS


@pytest.fixture(scope="module")
def found():
    with open_grader(GradeSettings(grader="math"), workers=1) as grader:
        grades = grader.grade([response for _, response, _ in PAIRS], [gold for gold, _, _ in PAIRS])
    return [grade.correct for grade in grades]


def test_the_table_is_as_large_as_it_says():
    assert len(PAIRS) >= 200
    assert 80 < sum(is_right for *_, is_right in PAIRS) < len(PAIRS) - 80


@pytest.mark.slow
def test_every_pair_of_the_table_is_graded_as_it_says(found):
    wrong = [(*pair, grade) for pair, grade in zip(PAIRS, found, strict=True) if grade is not pair[2]]
    assert wrong == []
