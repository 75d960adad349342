"""Diagnostics against their definitions, and alarms against histories that must and must not raise them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.head.gradient import answer_tokens
from pipeline.head.layer import OutputLayer
from pipeline.objectives import diagnostics
from pipeline.objectives.objective import Objective
from pipeline.objectives.target_formulas import extrapolation_bound
from pipeline.settings.recipe import load_recipe
from tests import reference
from tests.cases import VOCABULARY, Case
from tests.formulas import log_ratio


def seen(name: str | dict, seed: int = 0) -> tuple[Case, dict[str, list[float]]]:
    """A case of a recipe, and what it says of each token."""
    case = Case(load_recipe(name), seed)
    objective, inputs = Objective(case.recipe), case.inputs()
    output = OutputLayer(torch.eye(VOCABULARY, dtype=torch.float64))
    ((_, weighed),) = objective.weigh([(None, inputs)], step=0)  # pyright: ignore[reportArgumentType]
    answer = answer_tokens(case.logits, output, objective.ask(inputs))
    return case, {name: values.tolist() for name, values in objective.loss(answer, weighed)[1].items()}


def test_each_token_is_in_one_quarter_of_its_response():
    _, found = seen("topk_reverse_kl")
    quarters = torch.tensor([found[f"kl_quarter_{number}"] for number in (1, 2, 3, 4)])
    assert quarters.nansum(dim=0).tolist() == pytest.approx(found["kl"])
    assert torch.equal(~quarters[:, :4].isnan(), torch.eye(4).bool())


def test_overlap_is_of_as_many_likeliest_ids_of_both():
    case, found = seen("many_faces")
    for token, (overlap, mass) in enumerate(zip(found["overlap"], found["overlap_mass"], strict=True)):
        p = reference.log_softmax(case.logits[token].tolist())
        top = sorted(range(VOCABULARY), key=lambda id_: -p[id_])[:3]
        shared = [id_ for id_ in top if id_ in case.ids["teacher"][token][:3]]
        assert overlap == pytest.approx(len(shared) / 3)
        assert mass == pytest.approx(sum(math.exp(p[id_]) for id_ in shared))


def test_every_view_is_told_of_by_its_name():
    case, found = seen("mad_opd")
    assert {"kl", "log_ratio", "teacher_b_kl", "teacher_b_log_ratio"} <= set(found)
    for token in range(len(case.row_of)):
        p = reference.log_softmax(case.logits[token].tolist())
        expected = reference.reverse_kl(p, case.q["teacher_b"][token], case.ids["teacher_b"][token])
        assert found["teacher_b_kl"][token] == pytest.approx(expected)


def test_the_main_view_is_the_teacher_or_what_is_learned_from():
    assert load_recipe("mad_opd").main_view == "teacher"
    assert load_recipe("opsd").main_view == "hinted"
    assert load_recipe("sft").main_view is None
    assert "kl" in seen("opsd")[1]


def test_a_view_says_nothing_of_rows_that_it_has_not_scored():
    case, found = seen("sdpo")
    is_scored = [case.is_scored("hinted", token) for token in range(len(case.row_of))]
    assert not all(is_scored)
    for name in ("kl", "log_ratio", "support_mass"):
        assert [not math.isnan(value) for value in found[name]] == is_scored
    assert not any(math.isnan(value) for value in found["nll"])


def test_ratios_are_of_the_students_own_responses():
    case, found = seen("stable_opd")
    assert [math.isnan(value) for value in found["ratio"]] == [row == 2 for row in case.row_of]


@pytest.mark.parametrize(
    ("term", "is_held"),
    [
        ({"ratio": {"kind": "importance", "high": 1.1}}, lambda ratio, _: ratio > 1.1),
        ({"ratio": {"kind": "two_sided", "low": 0.9, "high": 1.2}}, lambda ratio, _: not 0.9 <= ratio <= 1.2),
        ({"ratio": {"kind": "proximal", "low": 0.1, "high": 0.2}}, lambda ratio, _: not 0.9 <= ratio <= 1.2),
        ({"advantage_clip": 2.0}, lambda _, advantage: abs(advantage) > 2),
        ({"advantage_clip": 3.0, "advantage_floor": -1.0}, lambda _, advantage: not -1 <= advantage <= 3),
    ],
)
def test_the_clip_rate_is_of_tokens_that_a_bound_holds_back(term, is_held):
    """But of the student's alone: the third row is the teacher's. A trust region is around who wrote, not who drew."""
    of_drawn = term.get("ratio", {}).get("kind") == "importance"
    plain = {"estimator": "policy_gradient", "divergence": "reverse_kl", "support": "sampled"}
    case, found = seen({"terms": [{**plain, **term}]})
    expected = [
        float(
            token.row != 2
            and is_held(math.exp(token.s[token.y] - (token.mu if of_drawn else token.behaviour)), log_ratio(token))
        )
        for token in case.tokens()
    ]
    assert 0 < sum(expected) < len(expected)
    assert found["clip_rate"] == expected


def test_a_recipe_without_bounds_has_no_clip_rate():
    assert "clip_rate" not in seen("topk_reverse_kl")[1]


def test_means_are_over_the_tokens_that_have_a_number_however_a_step_is_cut():
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    values = {"kl": torch.tensor([1.0, math.nan, 3.0, math.nan]), "nll": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    whole = diagnostics.sum_over_tokens(values, weights)
    cuts = [slice(0, 1), slice(1, 4)]
    parts = [
        diagnostics.sum_over_tokens({name: row[cut] for name, row in values.items()}, weights[cut]) for cut in cuts
    ]
    for totals in (whole, {name: parts[0][name] + parts[1][name] for name in values}):
        found = diagnostics.average_over_step(totals)
        assert found == pytest.approx({"kl": (0.1 * 1 + 0.3 * 3) / 0.4, "nll": 3.0})
    assert (
        diagnostics.average_over_step(diagnostics.sum_over_tokens({"kl": torch.tensor([math.nan])}, torch.ones(1)))
        == {}
    )


def test_a_step_knows_its_effective_sample_size_and_what_is_far_out():
    ratio, square = torch.tensor([0.5, 2.0, 1.0, 0.1]), torch.tensor([1.0, 36.0, 0.0, 49.0])
    values = {"ratio": ratio, "ratio_squared": ratio**2, "square": square, "far_square": square * (square > 25)}
    found = diagnostics.average_over_step(diagnostics.sum_over_tokens(values, torch.full((4,), 0.25)))
    assert found["effective_share"] == pytest.approx(float(ratio.sum() ** 2 / (4 * (ratio**2).sum())))
    assert found["far_share"] == pytest.approx(85 / 86)


GOOD = {"effective_share": 0.9, "support_mass": 0.95, "target_mass": 0.97, "kl": 0.1, "kl_quarter_4": 0.4}


def history(*changes: dict[str, float]) -> list[dict[str, float]]:
    """Ten good steps, then ten steps of each change."""
    rows = [GOOD] * diagnostics.SPAN + [GOOD | change for change in changes for _ in range(diagnostics.SPAN)]
    return [{"step": number, **row} for number, row in enumerate(rows, start=1)]


@pytest.mark.parametrize(
    ("name", "change", "step", "alarm"),
    [
        ("vopd", {"effective_share": 0.4}, 11, "stale"),
        ("topk_reverse_kl", {"support_mass": 0.5}, 11, "mass"),
        ("topk_reverse_kl", {"kl_quarter_4": 0.85}, 20, "suffix"),
        ("opsd", {"kl": 0.3}, 20, "rising"),
        ("exopd", {"past_cliff": 0.05}, 11, "cliff"),
        ("lightning", {"far_share": 0.97}, 11, "far"),
    ],
)
def test_a_sign_of_a_collapse_raises_its_alarm_alone(name, change, step, alarm):
    """`suffix` and `rising` compare ten steps with the first ten."""
    recipe = load_recipe(name)
    assert diagnostics.find_first_alarms(recipe, history({})) == []
    assert [(at, found.name) for at, found in diagnostics.find_first_alarms(recipe, history(change))] == [(step, alarm)]


def test_a_response_that_ends_worse_than_it_begins_is_no_alarm():
    """That is the task's; only what grows in training is, and is more than elsewhere."""
    recipe = load_recipe("topk_reverse_kl")
    assert diagnostics.find_first_alarms(recipe, history({"kl": 0.05, "kl_quarter_4": 0.4})) == []
    small = [row | {"kl_quarter_4": 0.03 if row["step"] <= diagnostics.SPAN else 0.09} for row in history({})]
    assert diagnostics.find_first_alarms(recipe, small) == []


def test_a_sign_is_told_once_of_the_first_step_that_shows_it():
    bad = {"effective_share": 0.4}
    found = diagnostics.find_first_alarms(load_recipe("vopd"), history(bad, {**bad, "support_mass": 0.5}))
    assert [(step, alarm.name) for step, alarm in found] == [(11, "stale"), (21, "mass")]
    assert "leave 40% of the tokens" in found[0][1].text


@pytest.mark.parametrize("change", [{"kl": 0.3}, {"kl_quarter_4": 0.85}])
def test_a_rise_that_the_run_recovers_from_is_no_alarm(change):
    """As the demo's healthy runs rise for some hundred steps, and end below where they began."""
    recipe = load_recipe("topk_reverse_kl")
    assert diagnostics.find_first_alarms(recipe, history(change, change, {})) == []
    lasting = diagnostics.find_first_alarms(recipe, history(change, {}, change))
    assert [step for step, _ in lasting] == [20]


def test_far_tokens_are_no_alarm_where_a_ratio_holds_them():
    assert diagnostics.find_first_alarms(load_recipe("lightning_ratio"), [{"step": 1, "far_share": 0.99}]) == []


@given(surplus=st.floats(1e-6, 0.3), reference_=st.floats(0.05, 0.6))
def test_at_the_extrapolation_bound_the_tail_is_what_the_clip_can_hold(surplus, reference_):
    p, b, clip = 1 - surplus, reference_, 5.0
    target, base = (torch.tensor([each], dtype=torch.float64).log() for each in (p, b))
    found = extrapolation_bound(target, base)
    logit = float(found) * math.log(p / (1 - p)) + (1 - float(found)) * math.log(b / (1 - b))
    assert 1 / (1 + math.exp(logit)) == pytest.approx(surplus / clip, rel=1e-6)


def test_the_published_bound_and_a_reference_that_is_surer():
    """Its neutral case (arXiv:2605.08737): λ* = 1.22 where the teacher leaves 6.6e-4 and the reference a half."""
    p, b = torch.tensor([1 - 6.6e-4, 0.5]).double().log(), torch.tensor([0.5, 0.9]).double().log()
    found = extrapolation_bound(p, b)
    assert found[0].item() == pytest.approx(1.22, abs=0.005)
    assert found[1].item() == math.inf
