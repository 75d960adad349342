"""Recipes: what ships loads and says what it is, what cannot be is refused, and a loss is the sum of its terms."""

import re

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from pipeline.errors import SettingsError
from pipeline.head.gradient import answer_tokens
from pipeline.head.layer import OutputLayer
from pipeline.objectives import divergences
from pipeline.objectives.inputs import Inputs, Target
from pipeline.objectives.objective import Objective
from pipeline.objectives.outcomes import Outcomes
from pipeline.settings.reading import parse
from pipeline.settings.recipe import list_recipes, load_recipe
from pipeline.settings.views import View

ANALYTIC = {"estimator": "analytic", "divergence": "reverse_kl", "support": "view"}
SAMPLED = {"estimator": "policy_gradient", "divergence": "reverse_kl", "support": "sampled"}
ROUTE = {"kind": "route", "views": {"math": "teacher", "code": "teacher"}}
MEAN = {"kind": "geometric", "views": {"a": 0.5, "b": 0.5}}
NLL = {"estimator": "nll", "support": "sampled", "view": None}


@pytest.mark.parametrize("name", list_recipes())
def test_every_shipped_recipe_says_what_it_is(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.paper
    assert len(recipe.description) > 40
    assert recipe.fidelity.note
    assert recipe.equation
    assert set(recipe.needs) == set(recipe.views) - {"teacher"}


@pytest.mark.parametrize("name", list_recipes())
def test_the_settings_that_a_recipe_names_exist(name):
    for text in load_recipe(name).needs.values():
        for quoted in re.findall("`(.+?)`", text):
            if ": " in quoted:
                written = YAML(typ="safe", pure=True).load(f"{{{quoted}}}")
                parse(View, quoted, {"support": {"top_k": 1}} | written)


def test_recipes_need_what_their_terms_read():
    def needs(name: str):
        recipe = load_recipe(name)
        return recipe.views, recipe.exact_views, recipe.sources, recipe.reads

    ratio, region = {"sampling_logprobs"}, {"behaviour_logprobs"}
    assert needs("topk_reverse_kl") == (("teacher",), ("teacher",), ("student",), set())
    assert needs("lightning") == (("teacher",), (), ("student",), set())
    assert needs("sft") == ((), (), ("teacher",), set())
    assert needs("exopd") == (("reference", "teacher"), (), ("student",), ratio)
    assert needs("vopd") == (("teacher",), ("teacher",), ("student",), ratio)
    assert needs("mopd") == (("teacher", "teacher_b"), (), ("student",), {"domain=code", "domain=math", *region})
    assert needs("srpo") == (("hinted",), ("hinted",), ("student",), {"correct", "has=hinted", *region})
    assert needs("stable_opd") == (
        ("reference", "teacher"),
        ("reference",),
        ("student", "teacher"),
        {"correct", *region},
    )
    assert load_recipe("srpo").optional_views == ("hinted",)
    assert load_recipe("mopd").optional_views == ("teacher", "teacher_b")
    assert load_recipe("opsd").optional_views == ()
    assert load_recipe("eopd").entropy_views == load_recipe("eopd").fixed_k_views == ("teacher",)
    assert load_recipe("topk_reverse_kl").fixed_k_views == load_recipe("rethinking").fixed_k_views == ()
    assert load_recipe("many_faces").own_views == load_recipe("many_faces").fixed_k_views == ("teacher",)


def test_a_view_whose_every_row_is_looked_at_may_lack_none():
    """By another term, by a derived column, or just where it has no score."""
    of_hinted = {**ANALYTIC, "view": "hinted"}
    gated = of_hinted | {"weights": [{"kind": "has_view", "view": "hinted"}]}
    inverted = of_hinted | {"weights": [{"kind": "lacks_view", "view": "hinted"}]}
    bias = {"shift": {"kind": "margin", "view": "hinted", "margin": 1.0}}
    shifted = {**SAMPLED, "bonus": "shift"}
    assert load_recipe({"terms": [gated]}).optional_views == ("hinted",)
    assert load_recipe({"terms": [gated, of_hinted]}).optional_views == ()
    assert load_recipe({"terms": [inverted]}).optional_views == ()
    assert load_recipe({"terms": [gated, shifted], "derived": bias}).optional_views == ()


def test_the_identity_of_a_recipe_is_what_decides_numbers():
    """Prose and axes at rest do not enter: what was trained before an axis existed keeps its name."""
    assert load_recipe("sft").identity == {
        "terms": [{"estimator": "nll", "support": "sampled", "view": None, "source": "teacher"}]
    }
    assert load_recipe("topk_reverse_kl").identity == {
        "terms": [{"estimator": "analytic", "divergence": "reverse_kl", "support": "view"}]
    }
    told = load_recipe({"terms": [ANALYTIC], "description": "other words"})
    assert told.identity == load_recipe({"terms": [ANALYTIC]}).identity
    assert load_recipe("kat").identity["derived"]["before_agreement"]["window"] == 64


def test_lightning_is_as_published():
    (term,) = load_recipe("lightning").terms
    assert (term.estimator, term.advantage_clip, term.reduction) == ("policy_gradient", 10.0, "sequence_mean")


def test_an_unknown_recipe_lists_those_there_are():
    with pytest.raises(
        SettingsError, match=r"no recipe `topk`; known here: align_distil, .*, topk_reverse_kl, uni_opd, vopd"
    ):
        load_recipe("topk")


@pytest.mark.parametrize(
    ("term", "reason"),
    [
        ({**ANALYTIC, "support": "sampled"}, "one token has no divergence"),
        ({**ANALYTIC, "divergence": None}, "needs `support: view` and a divergence"),
        ({**ANALYTIC, "view": None}, "`analytic` needs a view as target"),
        ({**SAMPLED, "support": "view"}, "`policy_gradient` needs `support: sampled` and `divergence: reverse_kl`"),
        ({**SAMPLED, "divergence": "forward_kl"}, "so its expected gradient is zero"),
        ({**ANALYTIC, "estimator": "residual", "support": "own"}, "stands for all ids that it does not keep"),
        ({**ANALYTIC, "view": None, "target": ROUTE}, "a route chooses between views: of one alone say `view`"),
        ({**SAMPLED, "view": None}, "`policy_gradient` needs a view as target"),
        ({**NLL, "view": "teacher"}, "`nll` has no target"),
        ({**ANALYTIC, "advantage_clip": 1.0}, "`advantage_clip` goes with `policy_gradient`, found `analytic`"),
        ({**ANALYTIC, "coefficient": -1.0}, "greater than 0"),
        ({**ANALYTIC, "tail": "truncate"}, "drives probability out of them (student mass 0.36"),
        ({**SAMPLED, "estimator": "log_ratio"}, "pushes every sampled token down"),
        (
            {**ANALYTIC, "support": "own", "top_k": 1, "tail": "renormalise"},
            "has probability 1 whatever the student says",
        ),
        ({**ANALYTIC, "tail": "renormalise_target"}, "`tail: renormalise_target` goes with `forward_kl`"),
        (
            {**ANALYTIC, "divergence": "forward_kl", "tail": "renormalise_target"},
            "has no fixed point at the view: say `fixed_point",
        ),
        ({**SAMPLED, "tail": "renormalise"}, "`tail` goes with `analytic`, found `policy_gradient`"),
        ({**ANALYTIC, "divergence": "forward_kl", "tail": "stop_gradient"}, "goes with `analytic` and `reverse_kl`"),
        ({**ANALYTIC, "beta": 0.5}, "`beta` goes with `jsd` and `mixture`"),
        ({**ANALYTIC, "divergence": "jsd"}, "`beta` goes with `jsd` and `mixture`, and is needed there"),
        ({**ANALYTIC, "top_k": 4}, "`top_k` goes with `own` and `intersection`"),
        ({**ANALYTIC, "support": "intersection"}, "`intersection` needs `top_k`"),
        ({**ANALYTIC, "baseline": "kl"}, "`advantage` and `baseline` go with `policy_gradient`"),
        ({**ANALYTIC, "ratio": {"kind": "proximal", "low": 0.2, "high": 0.2}}, "a `proximal` ratio goes with"),
        ({**SAMPLED, "ratio": {"kind": "two_sided", "high": 2.0}}, "a `two_sided` ratio needs `low` and `high`"),
        ({**SAMPLED, "ratio": {"kind": "importance", "low": 0.5}}, "an `importance` ratio has no `low`"),
        ({**ANALYTIC, "reduction": "selected_mean"}, "it needs `weights`"),
        (
            {**SAMPLED, "reduction": "selected_mean", "weights": [{"kind": "log_ratio_within", "low": 0.0}]},
            "must be known before the forward pass",
        ),
        ({**ANALYTIC, "view": None, "target": MEAN | {"views": {"a": 0.5, "b": 0.6}}}, "sum to 1, found 1.1"),
        ({**ANALYTIC, "target": MEAN}, "`target` composes views: leave `view` null"),
        ({**ANALYTIC, "fixed_point": "somewhere"}, "should match pattern"),
        ({**SAMPLED, "bonus": "reward"}, "its terms read ['reward'], it defines []"),
        ({**ANALYTIC, "divergense": "reverse_kl"}, "terms.0.divergense: no such setting; did you mean `divergence`"),
    ],
)
def test_terms_that_do_not_fit_together_are_refused_with_a_reason(term, reason):
    with pytest.raises(SettingsError, match=re.escape(reason)):
        load_recipe({"terms": [term]})


@pytest.mark.parametrize(
    ("objective", "reason"),
    [
        ({}, "terms: is missing"),
        ({"terms": []}, "terms: should have 1 or more items, found []"),
        ({"terms": 5}, "terms: expected array, found 5"),
        ({"terms": [{"estimator": "analytc"}]}, "terms.0.estimator: expected 'analytic'"),
        (
            {"terms": [{"weights": [{"kind": "has_view", "veiw": "hint"}]}]},
            "terms.0.weights.0.veiw: no such setting; did you mean `view`?",
        ),
        (
            {"terms": [{"weights": [{"kind": "column", "name": "a", "at_least": {"start": 1, "shap": "linear"}}]}]},
            "terms.0.weights.0.at_least.shap: no such setting; did you mean `shape`?",
        ),
        (
            {"terms": [{**ANALYTIC, "coefficient": {"start": 1, "end": 0.1, "stepz": 100}}]},
            "terms.0.coefficient.steps: is missing\n"
            "  terms.0.coefficient.stepz: no such setting; did you mean `steps`?",
        ),
        ({"terms": [{**ANALYTIC, "coefficient": 0}]}, "terms.0.coefficient: expected greater than 0, found 0"),
        (
            {"terms": [{**ANALYTIC, "target": MEAN | {"viws": {}}}]},
            "terms.0.target.viws: no such setting; did you mean `views`?",
        ),
    ],
)
def test_an_objective_that_is_no_recipe_is_refused(objective, reason):
    with pytest.raises(SettingsError, match=rf"(?s)recipe `own` has .*\n  {re.escape(reason)}") as refused:
        load_recipe(objective)
    assert ("terms: " in str(refused.value)) == reason.startswith("terms: ")  # not of a list of wrong terms as well


@pytest.fixture
def step():
    """A student's answer and the inputs of five tokens, over 6 ids of which the view kept 2."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 6, generator=random, dtype=torch.float64)
    target = torch.randn(5, 6, generator=random, dtype=torch.float64).log_softmax(-1)
    ids, sampled_ids = torch.tensor([[0, 3]] * 5), torch.arange(5)
    tail = target[:, [1, 2, 4, 5]].logsumexp(-1)
    view = Target(ids, Outcomes(target[:, [0, 3]], tail), target[torch.arange(5), sampled_ids])
    shares = {"token_mean": np.full(5, 0.2), "sequence_mean": np.array([0.25, 0.25, 0.5 / 3, 0.5 / 3, 0.5 / 3])}
    as_tensors = {name: torch.from_numpy(values) for name, values in shares.items()}
    inputs = Inputs({"teacher": view}, torch.tensor([2, 3]), sampled_ids, as_tensors)
    output = OutputLayer(torch.eye(6, dtype=torch.float64))
    return lambda objective: answer_tokens(logits, output, objective.ask(inputs)), inputs


def test_a_loss_is_the_weighted_sum_of_its_terms(step):
    answered, inputs = step
    terms = [{**ANALYTIC, "coefficient": 0.5}, {**NLL, "coefficient": 2.0, "reduction": "sequence_mean"}]
    objective = Objective(load_recipe({"terms": terms}))
    answer = answered(objective)
    kl = divergences.reverse_kl(Outcomes(answer.logprobs, answer.tail), inputs.targets["teacher"].outcomes)
    expected = 0.5 * sum(0.2 * float(value) for value in kl)
    expected += 2 * sum(w * -float(v) for w, v in zip(inputs.shares["sequence_mean"], answer.sampled, strict=True))
    assert objective.loss(answer, inputs)[0].item() == pytest.approx(expected)


def test_diagnostics_say_how_far_apart_student_and_teacher_are(step):
    answered, inputs = step
    objective = Objective(load_recipe("topk_forward_kl"))
    answer = answered(objective)
    seen = objective.loss(answer, inputs)[1]
    target = inputs.targets["teacher"]
    torch.testing.assert_close(seen["nll"], -answer.sampled)
    torch.testing.assert_close(seen["log_ratio"], answer.sampled - target.sampled)
    torch.testing.assert_close(seen["support_mass"], answer.logprobs.exp().sum(-1))
    torch.testing.assert_close(seen["target_mass"], target.outcomes.logprobs.exp().sum(-1))
    torch.testing.assert_close(
        seen["kl"], divergences.reverse_kl(Outcomes(answer.logprobs, answer.tail), target.outcomes)
    )


@pytest.mark.parametrize("name", ["sft", "lightning"])
def test_a_recipe_of_sampled_tokens_asks_for_no_ids(step, name):
    answered, _ = step
    answer = answered(Objective(load_recipe(name)))
    assert answer.logprobs.shape == (5, 0)
