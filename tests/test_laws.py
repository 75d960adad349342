"""Laws that every term of every recipe obeys, whatever it is: found by listing the recipes, later files included.

A term declares where it is at rest. There its gradient must be zero (of one that samples: summed over the tokens that
the student may write, with their probabilities), and where it declares nothing, it must not be.
"""

import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pipeline.settings.recipe import Recipe, list_recipes, load_recipe
from pipeline.settings.targets import Contrast, Corrected, Extrapolation, Mixture, Route
from pipeline.settings.term import Term
from tests import reference
from tests.cases import VOCABULARY, Case

ALL = [(name, place) for name in list_recipes() for place in range(len(load_recipe(name).terms))]
each_term = pytest.mark.parametrize(("name", "place"), ALL, ids=[f"{name}-{place}" for name, place in ALL])
few = settings(max_examples=2, phases=[Phase.explicit, Phase.generate])  # a failure has two numbers: nothing to shrink
seeds = st.integers(0, 10_000)


def has_no_fixed_point(term: Term) -> bool:
    """What nothing balances: a text to repeat, a pair to rank, a reward, a target of which a part alone is counted."""
    is_of_text = term.estimator in ("nll", "preference")
    return is_of_text or term.bonus is not None or term.tail == "renormalise_target"


def alone(name: str, place: int) -> Recipe:
    """A recipe of one term of another, from its first step on at full weight."""
    recipe = load_recipe(name)
    term = recipe.terms[place].model_copy(update={"coefficient": 1.0})
    kept = {name: spec for name, spec in recipe.derived.items() if name in term.derived_columns}
    return recipe.model_copy(update={"terms": (term,), "derived": kept})


class AtRest(Case):
    """A case whose student is where its only term says that it is at rest (or at the view, where it says nowhere)."""

    def __init__(self, recipe: Recipe, seed: int, **more):
        super().__init__(recipe, seed, **more)
        (term,) = recipe.terms
        random = torch.Generator().manual_seed(seed)
        self.bias = torch.randn(VOCABULARY, generator=random, dtype=torch.float64).tolist()
        self.mu = self.wrote = [0.0] * len(self.mu)
        self.own = [self.k] * len(self.own)
        self.skips = False
        rows = [self.rest(term, token) for token in range(len(self.row_of))]
        self.logits = torch.tensor(rows, dtype=torch.float64)

    def rest(self, term: Term, token: int) -> list[float]:
        """The distribution of the fixed point, over the whole vocabulary."""
        match term.target:
            case None:
                return self.q[term.view or "teacher"][token]
            case Route():
                row = self.facts(token, [0.0] * VOCABULARY)
                return self.q[next(view for domain, view in term.target.views.items() if row[f"domain={domain}"])][
                    token
                ]
            case Corrected():
                return reference.log_softmax(
                    [q - b for q, b in zip(self.q[term.target.view][token], self.bias, strict=True)]
                )
            case Extrapolation():
                weights = {term.target.view: term.target.factor, term.target.reference: 1 - term.target.factor}
            case Contrast():
                weights = self._contrast(term.target, token)
            case Mixture():
                assert term.target.kind == "geometric"
                weights = term.target.views
        if term.support == "sampled":
            logs = {view: self.q[view][token] for view in weights}
            return reference.log_softmax([sum(w * logs[v][i] for v, w in weights.items()) for i in range(VOCABULARY)])
        return self._spread(weights, token)

    def _contrast(self, target: Contrast, token: int) -> dict[str, float]:
        ids = self.ids[target.view][token]
        d, v = (reference.outcomes(self.q[view][token], ids) for view in (target.view, target.reference))
        alpha = target.scale * sum(abs(math.exp(a) - math.exp(b)) for a, b in zip(d, v, strict=True)) + 1e-3
        return {target.view: 1 + alpha, target.reference: -alpha}

    def _spread(self, weights: dict[str, float], token: int) -> list[float]:
        """Any distribution with these outcomes: the tail's probability goes evenly to the ids outside."""
        ids = self.ids[next(iter(weights))][token]
        views = {view: reference.outcomes(self.q[view][token], ids) for view in weights}
        pooled = reference.log_softmax([sum(w * views[v][o] for v, w in weights.items()) for o in range(len(ids) + 1)])
        outside = VOCABULARY - len(ids)
        return [pooled[ids.index(id_)] if id_ in ids else pooled[-1] - math.log(outside) for id_ in range(VOCABULARY)]

    def facts(self, token, student):
        found = super().facts(token, student)
        # Every row counts: which ones a term selects is not the question here.
        routed = {
            "correct": float(any(getattr(w, "fact", None) == "correct" for t in self.recipe.terms for w in t.weights)),
            "special": 0.0,
        }
        lacks = any(weight.kind == "lacks_view" for term in self.recipe.terms for weight in term.weights)
        found |= routed | {f"has={view}": float(not lacks) for view in self.q}
        found |= {f"source={source}": 1.0 for source in ("student", "teacher")}
        return found | {name: self.bias[self.y[token]] for name in self.recipe.derived if name == "bias"}

    def mean_gradient(self) -> torch.Tensor:
        """Over the tokens that the student may write, with their probabilities."""
        total, p = torch.zeros_like(self.logits), self.logits.log_softmax(-1).exp()
        for y in range(VOCABULARY):
            self.y = [y] * len(self.y)
            total += self.gradient() * p[:, y : y + 1]
        return total


@each_term
@few
@given(seed=seeds, k=st.integers(2, VOCABULARY - 1))
def test_a_term_is_at_rest_where_it_says(name, place, seed, k):
    recipe = alone(name, place)
    (term,) = recipe.terms
    case = AtRest(recipe, seed, k=k)
    moved = Case(recipe, seed, k=k)
    moved.own = [k] * len(moved.own)
    worst = (case.mean_gradient() if term.estimator != "analytic" else case.gradient()).abs().max()
    if term.fixed_point.startswith("none"):
        assert max(case.gradient().abs().max(), worst) > 1e-4
    else:
        assert worst < 1e-9


@each_term
def test_a_term_says_none_where_it_can_have_no_fixed_point_and_nowhere_else(name, place):
    """So that the word is no escape from the law above."""
    term = load_recipe(name).terms[place]
    assert term.fixed_point.startswith("none") == has_no_fixed_point(term)


@each_term
@few
@given(seed=seeds)
def test_a_term_has_a_gradient_where_it_is_not_at_rest(name, place, seed):
    """Or the law above would prove nothing."""
    case = Case(alone(name, place), seed)
    case.facts = AtRest(alone(name, place), seed).facts
    assert case.gradient().abs().max() > 1e-6


@pytest.mark.parametrize("name", list_recipes())
@few
@given(seed=seeds, padding=st.integers(1, 3))
def test_padding_changes_nothing(name, seed, padding):
    plain, padded = (Case(load_recipe(name), seed, padding=extra) for extra in (0, padding))
    gradients = [plain.gradient(), padded.gradient()]
    assert gradients[0].any()  # two zero gradients would be equal too
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("packs", [((0,), (1,), (2,)), ((2, 0), (1,)), ((1, 2, 0),)])
@pytest.mark.parametrize("name", list_recipes())
def test_how_a_step_is_cut_into_packs_changes_nothing(name, packs):
    """So neither do the order of its rollouts, micro-batches, or which rank has which pack."""
    case = Case(load_recipe(name), seed=5)
    torch.testing.assert_close(case.loss(case.logits, packs), case.loss(case.logits), rtol=1e-6, atol=1e-9)
    whole = case.gradient()
    assert whole.any()
    torch.testing.assert_close(case.gradient(packs=packs), whole, rtol=1e-6, atol=1e-9)


def is_plain(term: Term) -> bool:
    """An analytic divergence from one view, nothing cut off, weighed or clipped."""
    is_divergence = term.estimator == "analytic" and term.entry_clip is None and term.view is not None
    return is_divergence and term.top_k is None and term.tail in ("bucket", "renormalise", "stop_gradient")


PLAIN = [(name, place) for name, place in ALL if is_plain(load_recipe(name).terms[place])]


def unweighed(name: str, place: int) -> Recipe:
    recipe = alone(name, place)
    nothing = {"weights": (), "ratio": None, "reduction": "token_mean", "source": "student"}
    return recipe.model_copy(update={"terms": (recipe.terms[0].model_copy(update=nothing),), "derived": {}})


@pytest.mark.parametrize(("name", "place"), PLAIN)
@few
@given(seed=seeds, k=st.integers(2, VOCABULARY - 1))
def test_a_divergence_lies_between_zero_and_that_of_the_whole_vocabulary(name, place, seed, k):
    recipe = unweighed(name, place)
    case, whole = Case(recipe, seed, k=k), Case(recipe, seed, k=VOCABULARY)
    whole.logits, whole.q = case.logits, case.q
    part, full = case.loss(case.logits).item(), whole.loss(whole.logits).item()
    if recipe.terms[0].tail == "bucket":
        assert 0 < part <= full + 1e-9
    whole.own = [VOCABULARY] * len(whole.own)
    other = Case(recipe, seed + 1, k=VOCABULARY)  # the ids in another order
    other.logits, other.q, other.own = whole.logits, whole.q, whole.own
    assert whole.loss(whole.logits).item() == pytest.approx(other.loss(other.logits).item())
    torch.testing.assert_close(whole.gradient(), other.gradient())


@pytest.mark.parametrize("tail", ["bucket", "renormalise", "stop_gradient", "student_weighted"])
def test_every_tail_is_the_full_reverse_kl_when_the_ids_are_all(tail):
    term = {"estimator": "analytic", "divergence": "reverse_kl", "support": "view", "tail": tail}
    case = Case(load_recipe({"terms": [term]}), seed=0, k=VOCABULARY)
    everything = range(VOCABULARY)
    rows = list(zip([k.s for k in case.tokens()], case.q["teacher"], strict=True))
    expected = torch.tensor([reference.reverse_kl_gradient(*row, everything) for row in rows]) / len(rows)
    assert case.loss(case.logits).item() == pytest.approx(
        sum(reference.reverse_kl(*row, everything) for row in rows) / len(rows)
    )
    torch.testing.assert_close(case.gradient(), expected.double(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("estimator", ["policy_gradient", "residual"])
@pytest.mark.parametrize("more", [{}, {"ratio": {"kind": "importance"}}, {"baseline": "kl"}])
def test_a_sampled_gradient_is_that_of_the_full_reverse_kl_in_expectation(estimator, more):
    """Over tokens that the student writes; with a ratio over those of any distribution; whatever the baseline."""
    support = "sampled" if estimator == "policy_gradient" else "view"
    if estimator == "residual" and "baseline" in more:
        pytest.skip("the residual has no advantage")
    term = {"estimator": estimator, "divergence": "reverse_kl", "support": support, **more}
    case = Case(load_recipe({"terms": [term]}), seed=0, k=3)
    still = [reference.log_softmax(row) for row in case.logits.tolist()]
    other = [reference.log_softmax(row) for row in torch.randn(len(still), VOCABULARY).tolist()]
    drawn_from = other if "ratio" in more else still
    total = torch.zeros_like(case.logits)
    for y in range(VOCABULARY):
        case.y = [y] * len(case.y)
        case.mu = [p[y] - mu[y] for p, mu in zip(still, drawn_from, strict=True)]
        total += case.gradient() * torch.tensor([[math.exp(mu[y])] for mu in drawn_from])
    pairs = zip(still, case.q["teacher"], strict=True)
    expected = [reference.reverse_kl_gradient(*pair, range(VOCABULARY)) for pair in pairs]
    torch.testing.assert_close(total, torch.tensor(expected) / len(still), rtol=1e-5, atol=1e-7, check_dtype=False)


SMOOTH = [
    name
    for name in list_recipes()
    if all(
        term.estimator in ("analytic", "nll", "preference")
        and term.tail in ("bucket", "renormalise", "renormalise_target")
        and term.ratio is None
        and not any(weight.is_live for weight in term.weights)
        for term in load_recipe(name).terms
    )
]


@pytest.mark.parametrize("name", SMOOTH)
def test_the_gradient_of_an_exact_loss_is_its_derivative(name):
    case = Case(load_recipe(name), seed=3)
    assert torch.autograd.gradcheck(case.loss, case.logits.clone().requires_grad_(), atol=1e-6)
