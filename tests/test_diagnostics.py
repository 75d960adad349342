"""Diagnostics against their definitions, and alarms against histories that must and must not raise them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import head, recipes
from pipeline.objectives import diagnostics
from pipeline.objectives.compiled import Objective
from pipeline.objectives.targets import extrapolation_bound
from tests import reference
from tests.cases import VOCABULARY, Case


def seen(name: str, seed: int = 0) -> tuple[Case, dict[str, list[float]]]:
    """A case of a recipe, and what it says of each token."""
    case = Case(recipes.load(name), seed)
    objective, columns = Objective(case.recipe), case.columns()
    assert columns.sampled_ids is not None
    output = head.Output(torch.eye(VOCABULARY, dtype=torch.float64))
    ((_, weighed),) = objective.weigh([(None, columns)], step=0)  # pyright: ignore[reportArgumentType]
    answer = head.answer(case.logits, output, objective.ask(columns.sampled_ids, columns))
    return case, {name: values.tolist() for name, values in objective.loss(answer, weighed)[1].items()}


def test_kl_of_each_quarter_adds_up_to_the_whole():
    _, found = seen("topk_reverse_kl")
    quarters = [found[f"kl_quarter_{number}"] for number in (1, 2, 3, 4)]
    assert [sum(each) / 4 for each in zip(*quarters, strict=True)] == pytest.approx(found["kl"])
    assert [[value > 0 for value in each[:4]] for each in quarters] == torch.eye(4).bool().tolist()


def test_overlap_is_of_the_students_likeliest_ids():
    case, found = seen("many_faces")
    for token, (overlap, mass) in enumerate(zip(found["overlap"], found["overlap_mass"], strict=True)):
        p = reference.log_softmax(case.logits[token].tolist())
        top = sorted(range(VOCABULARY), key=lambda id_: -p[id_])[:3]
        shared = [id_ for id_ in top if id_ in case.ids["teacher"][token]]
        assert overlap == pytest.approx(len(shared) / 3)
        assert mass == pytest.approx(sum(math.exp(p[id_]) for id_ in shared))


def test_every_view_is_told_of_by_its_name():
    case, found = seen("mad_opd")
    assert {"kl", "log_ratio", "teacher_b_kl", "teacher_b_log_ratio"} <= set(found)
    for token in range(len(case.row_of)):
        p = reference.log_softmax(case.logits[token].tolist())
        expected = reference.reverse_kl(p, case.q["teacher_b"][token], case.ids["teacher_b"][token])
        assert found["teacher_b_kl"][token] == pytest.approx(expected)


def test_a_step_knows_its_effective_sample_size_and_what_is_far_out():
    ratio, square = [0.5, 2.0, 1.0, 0.1], [1.0, 36.0, 0.0, 49.0]
    means = {"ratio": sum(ratio) / 4, "ratio_squared": sum(r**2 for r in ratio) / 4,
             "square": sum(square) / 4, "far_square": 85.0 / 4}  # fmt: skip
    found = diagnostics.of_step(means)
    assert found["effective_share"] == pytest.approx(sum(ratio) ** 2 / (4 * sum(r**2 for r in ratio)))
    assert found["far_share"] == pytest.approx(85 / 86)


GOOD = {"effective_share": 0.9, "support_mass": 0.95, "target_mass": 0.97, "kl_quarter_1": 0.1, "kl_quarter_4": 0.2}


@pytest.mark.parametrize(
    ("name", "change", "alarm"),
    [
        ("vopd", {"effective_share": 0.4}, "stale"),
        ("topk_reverse_kl", {"support_mass": 0.5}, "mass"),
        ("topk_reverse_kl", {"kl_quarter_4": 0.5}, "suffix"),
        ("exopd", {"past_cliff": 0.05}, "cliff"),
        ("lightning", {"far_share": 0.97}, "far"),
    ],
)
def test_a_sign_of_a_collapse_raises_its_alarm_alone(name, change, alarm):
    recipe = recipes.load(name)
    assert diagnostics.alarms(recipe, GOOD) == []
    assert [found.name for found in diagnostics.alarms(recipe, GOOD | change)] == [alarm]


def test_a_sign_is_told_of_the_first_step_that_shows_it():
    bad = {"effective_share": 0.4}
    history = [{"step": 1, **GOOD}, {"step": 2, **GOOD, **bad}, {"step": 3, **GOOD, **bad, "support_mass": 0.5}]
    found = diagnostics.first_alarms(recipes.load("vopd"), history)
    assert [(step, alarm.name) for step, alarm in found] == [(2, "stale"), (3, "mass")]
    assert "leave 40% of the tokens" in found[0][1].text
    assert diagnostics.first_alarms(recipes.load("vopd"), history[:1]) == []


def test_far_tokens_are_no_alarm_where_a_ratio_holds_them():
    assert diagnostics.alarms(recipes.load("lightning_ratio"), {"far_share": 0.99}) == []


@given(surplus=st.floats(1e-6, 0.3), reference_=st.floats(0.05, 0.6))
def test_at_the_extrapolation_bound_the_tail_is_what_the_clip_can_hold(surplus, reference_):
    p, b, clip = 1 - surplus, reference_, 5.0
    target, base = (torch.tensor([each], dtype=torch.float64).log() for each in (p, b))
    found = extrapolation_bound(target, base, clip)
    logit = float(found) * math.log(p / (1 - p)) + (1 - float(found)) * math.log(b / (1 - b))
    assert 1 / (1 + math.exp(logit)) == pytest.approx(surplus / clip, rel=1e-6)


def test_the_published_bound_and_a_reference_that_is_surer():
    """Its neutral case (arXiv:2605.08737): λ* = 1.22 where the teacher leaves 6.6e-4 and the reference a half."""
    p, b = torch.tensor([1 - 6.6e-4, 0.5]).double().log(), torch.tensor([0.5, 0.9]).double().log()
    found = extrapolation_bound(p, b)
    assert found[0].item() == pytest.approx(1.22, abs=0.005)
    assert found[1].item() == math.inf
