"""Metrics against counts made by hand and by slow loops."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import GradeError
from pipeline.grading.metrics import (
    Answered,
    compute_metrics,
    find_change,
    find_degeneration,
    find_interval,
    repetition,
)


def answered(correct, lengths=None, reasons=None) -> Answered:
    lengths = lengths or [4] * len(correct)
    return Answered(correct, np.array(lengths), reasons or ["stop"] * len(correct), [n / 28 for n in lengths])


def test_the_record_of_three_prompts_with_two_samples_each():
    sampled = answered(
        [True, False, None, False, True, True],
        [2, 4, 6, 8, 10, 12],
        ["stop", "length", "stop", "length", "stop", "stop"],
    )
    found = compute_metrics("r1", answered([True, False, True]), sampled, k=2)
    averages = [0.5, 0.0, 1.0]  # of the second prompt, one of two responses has a grade
    assert found == {
        "checkpoint": "r1",
        "greedy": pytest.approx(2 / 3),
        "greedy_se": pytest.approx(statistics.stdev([1, 0, 1]) / math.sqrt(3)),
        "avg_at_k": pytest.approx(0.5),
        "avg_at_k_se": pytest.approx(statistics.stdev(averages) / math.sqrt(3)),
        "pass_at_k": pytest.approx(2 / 3),
        "k": 2,
        "prompts": 3,
        "graded": 3,
        "mean_length": pytest.approx(7.0),
        "truncated": pytest.approx(1 / 3),
        "repetition": pytest.approx(0.25),
    }


def test_one_prompt_has_no_standard_error():
    assert compute_metrics("r0", answered([True]), answered([True, False]), k=2)["avg_at_k_se"] == 0.0


def test_a_prompt_without_a_grade_says_nothing_of_a_checkpoint():
    greedy, sampled = answered([True, None, None]), answered([True, True, None, None, False, None])
    found = compute_metrics("r1", greedy, sampled, k=2)
    assert (found["greedy"], found["avg_at_k"], found["pass_at_k"]) == (1.0, 0.5, 0.5)
    assert (found["graded"], found["prompts"]) == (1, 3)


def test_answers_that_nobody_can_grade_are_refused():
    with pytest.raises(GradeError, match=r"prompts\.sources\.\*\.fields\.answer"):
        compute_metrics("r0", answered([None, None]), answered([True, True]), k=1)


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(1, 4))
def test_repetition_is_the_share_of_ngrams_that_stood_there_before(ids, n):
    grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    repeated = sum(gram in grams[:place] for place, gram in enumerate(grams))
    expected = repeated / len(grams) if len(grams) > 1 else 0.0
    assert repetition(np.array(ids, np.int32), n) == pytest.approx(expected)


def test_a_response_that_says_one_thing_repeats_nearly_all_of_it():
    assert repetition(np.zeros(102, np.int32)) == pytest.approx(0.99)


METRICS = {"mean_length": 20.0, "truncated": 0.01, "repetition": 0.02}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mean_length": 31.0}, "responses are 31.0 tokens long, 20.0 before"),
        ({"truncated": 0.12}, "12% of the responses are cut off, 1% before"),
        ({"repetition": 0.5}, "50% of the 3-grams are repeats, 2% before"),
    ],
)
def test_a_sign_of_a_collapse_is_told_alone(change, told):
    (found,) = find_degeneration(METRICS, METRICS | change)
    assert found.startswith(told)


def test_small_changes_are_no_sign():
    assert find_degeneration(METRICS, {"mean_length": 29.0, "truncated": 0.1, "repetition": 0.1}) == []


def measured(right: int, count: int) -> dict[str, float]:
    share = right / count
    return {"greedy": share, "greedy_se": (share * (1 - share) / count) ** 0.5, "graded": count}


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_of_an_accuracy_is_wilsons(right: int, count: int, low: float, high: float) -> None:
    """The examples of Newcombe, Statistics in Medicine 17 (1998), 857-872, table I."""
    found = measured(right, count)
    assert find_interval(found["greedy"], found["greedy_se"], count) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(
    ("after", "before", "low", "high"),
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090)],
)
def test_the_interval_of_a_change_is_newcombes(after, before, low: float, high: float) -> None:
    """The examples of Newcombe, Statistics in Medicine 17 (1998), 873-890, table II, method 10."""
    found = find_change(measured(*before), measured(*after), "greedy")
    assert found == pytest.approx((low, high), abs=6e-5)


def test_samples_of_one_prompt_count_as_less_than_prompts() -> None:
    narrow, wide = (find_interval(0.5, error, 100) for error in (0.02, 0.05))
    assert narrow[1] - narrow[0] < wide[1] - wide[0]
