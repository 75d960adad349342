"""Derived columns against slow loops over groups and rows, written from the definitions."""

import math

import numpy as np
import pytest

from pipeline.settings.derived import (
    AgreementCut,
    Balance,
    CrossFittedBias,
    GroupAdvantage,
    GroupTotal,
    Margin,
    Perplexity,
)
from pipeline.training import derived
from pipeline.training.derived import Stored

NAN = math.nan


@pytest.fixture
def stored() -> Stored:
    """Nine rows of four prompts, not sorted; one prompt is all correct, one all wrong, one grade is missing."""
    random = np.random.default_rng(0)
    lengths = np.array([3, 5, 2, 4, 6, 1, 3, 2, 4])
    count = int(lengths.sum())
    return Stored(
        group=np.array([0, 1, 0, 2, 1, 0, 3, 3, 1]),
        lengths=lengths,
        correct=np.array([1.0, 0, 0, 1, 1, 1, 0, 0, NAN]),
        reward=random.normal(size=9),
        tokens=random.integers(0, 5, count),
        behaviour=-random.exponential(2, count),
        views={"teacher": -random.exponential(2, count)},
    )


def rows_of(stored: Stored, values: np.ndarray) -> list[list[float]]:
    return [part.tolist() for part in np.split(values, np.cumsum(stored.lengths)[:-1])]


def groups_of(stored: Stored) -> dict[int, list[int]]:
    return {int(number): [row for row in range(9) if stored.group[row] == number] for number in set(stored.group)}


@pytest.mark.parametrize(("scaled", "deviation"), [(True, "population"), (True, "sample"), (False, "population")])
def test_a_group_advantage_is_the_reward_less_the_groups_mean(stored, scaled, deviation):
    assert stored.reward is not None
    expected = [0.0] * 9
    for rows in groups_of(stored).values():
        mean = sum(stored.reward[row] for row in rows) / len(rows)
        free = max(1, len(rows) - (deviation == "sample"))
        spread = math.sqrt(sum((stored.reward[row] - mean) ** 2 for row in rows) / free)
        for row in rows:
            expected[row] = (stored.reward[row] - mean) / (spread + 1e-4 if scaled else 1)
    found = derived.compute_column(GroupAdvantage(kind="group_advantage", scaled=scaled, deviation=deviation), stored)
    assert found.tolist() == pytest.approx(expected)


def test_a_missing_grade_is_neither_correct_nor_wrong(stored):
    found = derived.compute_column(GroupAdvantage(kind="group_advantage", of="correct", scaled=False), stored)
    assert found.tolist() == pytest.approx([1 / 3, -0.5, -2 / 3, 0, 0.5, 1 / 3, 0, 0, 0])
    total = derived.compute_column(GroupTotal(kind="group_total", of="correct"), stored)
    assert total.tolist() == [2, 1, 2, 1, 1, 2, 0, 0, 1]
    rate = derived.compute_column(GroupTotal(kind="group_mean", of="correct"), stored)
    assert rate.tolist() == pytest.approx([2 / 3, 0.5, 2 / 3, 1, 0.5, 2 / 3, 0, 0, 0.5])


@pytest.mark.parametrize(("among", "favour", "of"), [("wrong", "low", "teacher"), ("correct", "high", "behaviour")])
def test_perplexity_weights_sum_to_one_over_the_alike_rows_of_a_prompt(stored, among, favour, of):
    """SCOPE's w = PPL^(±1/τ) / Σ PPL^(±1/τ)."""
    spec = Perplexity(kind="perplexity", of=of, among=among, favour=favour, temperature=2.0)
    values = rows_of(stored, stored.views["teacher"] if of == "teacher" else stored.behaviour)
    perplexity = [math.exp(-sum(row) / len(row)) ** ((1 if favour == "high" else -1) / 2.0) for row in values]
    wanted = 1.0 if among == "correct" else 0.0
    expected = [0.0] * 9
    for rows in groups_of(stored).values():
        alike = [row for row in rows if stored.correct[row] == wanted]
        for row in alike:
            expected[row] = perplexity[row] / sum(perplexity[other] for other in alike)
    assert derived.compute_column(spec, stored).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("margin", [0.4, 50.0])
def test_after_the_shift_correct_rows_gain_more_by_the_margin(stored, margin):
    shift = derived.compute_column(Margin(kind="margin", view="teacher", margin=margin), stored)
    d = rows_of(stored, stored.views["teacher"] - stored.behaviour)
    gain = [sum(row) / len(row) for row in d]
    for rows in groups_of(stored).values():
        kinds = [[row for row in rows if stored.correct[row] == kind] for kind in (1, 0)]
        if not all(kinds):
            assert not shift[rows].any()
            continue
        before, after = (
            np.mean([value[row] for row in kinds[0]]) - np.mean([value[row] for row in kinds[1]])
            for value in (gain, [g + s for g, s in zip(gain, shift, strict=True)])
        )
        assert after == pytest.approx(max(before, margin))
        assert all(shift[row] >= 0 for row in kinds[0])
        assert all(shift[row] <= 0 for row in kinds[1])
    assert shift[8] == 0  # it has no grade


def test_balance_leaves_as_many_correct_as_wrong_rows_of_a_mixed_prompt(stored):
    found = [derived.compute_column(Balance(kind="balance", seed=seed), stored) for seed in (0, 0, 1, 2, 3)]
    assert np.array_equal(found[0], found[1])
    assert any(not np.array_equal(found[0], other) for other in found[2:])
    for keep in found:
        assert keep[[3, 6, 7, 8]].all()  # alike, or without a grade
        assert keep[[0, 5]].sum() == keep[2] == 1
        assert keep[1] == keep[4] == 1


def test_a_rollout_is_cut_where_its_first_long_agreement_begins():
    """By hand: windows of 2, two in a row below the quantile; the exempt beginning does not count."""
    d = [3.0, 3, 0, 0, 0, 3, 3, 3, 3, 3, 3, 3, 0, 0, 0, 0]
    stored = Stored(np.array([0, 1]), np.array([8, 8]), None, None, None, np.zeros(16), {"teacher": np.array(d)})
    spec = AgreementCut(kind="agreement_cut", view="teacher", window=2, runs=2, quantile=1.0)
    stored.views["teacher"][0] = 3.0
    cut = derived.compute_column(spec.model_copy(update={"quantile": 0.5}), stored)
    assert cut.tolist() == [1.0] * 16  # both lowest windows are 0, and nothing is below 0
    stored.views["teacher"][2:5] = 0.1
    cut = derived.compute_column(spec, stored)
    assert cut.tolist() == [1.0] * 8 + [1.0] * 4 + [0.0] * 4
    exempt = derived.compute_column(spec.model_copy(update={"exempt": 5}), stored)
    assert exempt.tolist() == [1.0] * 8 + [1.0] * 5 + [0.0] * 3


def test_a_bias_is_estimated_on_other_prompts_alone(stored):
    spec = CrossFittedBias(kind="cross_fitted_bias", view="teacher", folds=2, shrink=0.5)
    found = derived.compute_column(spec, stored)
    changed = Stored(**{**vars(stored), "views": {"teacher": stored.views["teacher"].copy()}})
    mine = np.repeat(stored.group == 1, stored.lengths)
    changed.views["teacher"][mine] += 5.0
    again = derived.compute_column(spec, changed)
    assert np.array_equal(found[mine], again[mine])
    assert not np.allclose(found, again)


def test_a_bias_equals_the_definition(stored):
    spec = CrossFittedBias(kind="cross_fitted_bias", view="teacher", folds=3, shrink=0.5, seed=4)
    fold = np.random.default_rng(4).integers(0, 3, 4)
    rows = zip(
        *(rows_of(stored, v) for v in (stored.tokens, stored.behaviour, stored.views["teacher"] - stored.behaviour)),
        strict=True,
    )
    seen = [
        (fold[stored.group[row]], token, (int(math.log2(t + 1)), min(10, int(-mu))), d, 1 / len(tokens))
        for row, (tokens, behaviour, gaps) in enumerate(rows)
        for t, (token, mu, d) in enumerate(zip(tokens, behaviour, gaps, strict=True))
    ]

    def mean(others: list, key: int, value: object) -> float:
        overall = sum(e[4] * e[3] for e in others) / sum(e[4] for e in others) if others else 0.0
        alike = [e for e in others if e[key] == value]
        return (sum(e[4] * e[3] for e in alike) + 0.5 * overall) / (sum(e[4] for e in alike) + 0.5)

    expected = []
    for mine in seen:
        others = [e for e in seen if e[0] != mine[0]]
        expected.append(0.5 * mean(others, 1, mine[1]) + 0.5 * mean(others, 2, mine[2]))
    assert derived.compute_column(spec, stored).tolist() == pytest.approx(expected)
