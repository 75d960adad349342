"""What the formulas must satisfy, for any seed and any k; values and gradients against slow loops (reference.py).

The student's outcomes come from the head on an identity matrix, so its hidden states are its logits and gradients are
those of the logits.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.head.answer import Answer, Ask
from pipeline.head.gradient import answer_tokens
from pipeline.head.layer import OutputLayer
from pipeline.objectives import divergences, estimators, supervised
from pipeline.objectives.inputs import Inputs, Target
from pipeline.objectives.outcomes import Outcomes
from tests import reference

VOCABULARY, TOKENS = 7, 4
seeds = st.integers(0, 10_000)
ks = st.integers(1, VOCABULARY)
DIVERGENCES = {
    "reverse_kl": (divergences.reverse_kl, reference.reverse_kl, reference.reverse_kl_gradient),
    "forward_kl": (divergences.forward_kl, reference.forward_kl, reference.forward_kl_gradient),
}
by_name = pytest.mark.parametrize("name", DIVERGENCES)


class Case:
    """Some tokens: the student's logits, the target's distribution, and ids of which each token has its own."""

    def __init__(self, seed: int, k: int, padding: int = 0, dtype: torch.dtype = torch.float64):
        random = np.random.default_rng([seed, k])
        self.logits = torch.tensor(2 * random.normal(size=(TOKENS, VOCABULARY)), dtype=dtype)
        self.target = [reference.log_softmax(row) for row in 2 * random.normal(size=(TOKENS, VOCABULARY))]
        self.ids = [[int(id_) for id_ in random.permutation(VOCABULARY)[:k]] for _ in range(TOKENS)]
        self.sampled = torch.from_numpy(random.integers(0, VOCABULARY, TOKENS))
        self.padding, self.dtype = padding, dtype

    @property
    def student(self) -> list[list[float]]:
        """The student's distributions."""
        return [reference.log_softmax(row) for row in self.logits.tolist()]

    def answer(self, logits: torch.Tensor) -> Answer:
        """What the head says of the student."""
        ids = torch.tensor([row + [-1] * self.padding for row in self.ids])
        return answer_tokens(logits, OutputLayer(torch.eye(VOCABULARY, dtype=self.dtype)), Ask(self.sampled, ids))

    def outcomes(self, logits: torch.Tensor) -> Outcomes:
        """The student's outcomes, with gradient."""
        answer = self.answer(logits)
        return Outcomes(answer.logprobs, answer.tail)

    def of(self, distributions: list[list[float]]) -> Outcomes:
        """A distribution's outcomes, without gradient."""
        rows = [reference.outcomes(row, ids) for row, ids in zip(distributions, self.ids, strict=True)]
        logprobs = [row[:-1] + [-math.inf] * self.padding for row in rows]
        return Outcomes(
            torch.tensor(logprobs, dtype=self.dtype), torch.tensor([row[-1] for row in rows], dtype=self.dtype)
        )

    def inputs(self, distributions: list[list[float]]) -> Inputs:
        """What a recipe reads of this case, with that target."""
        ids = torch.tensor([row + [-1] * self.padding for row in self.ids])
        chosen = [row[y] for row, y in zip(distributions, self.sampled.tolist(), strict=True)]
        target = Target(ids, self.of(distributions), torch.tensor(chosen, dtype=self.dtype))
        even = torch.full((TOKENS,), 1 / TOKENS, dtype=self.dtype)
        shares = {"token_mean": even, "sequence_mean": even}
        return Inputs({"teacher": target}, torch.tensor([TOKENS]), self.sampled, shares)

    def gradient(self, loss) -> torch.Tensor:
        """Gradient of a function of the logits, summed over the tokens."""
        logits = self.logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(logits).sum(), logits)
        return gradient


@by_name
@given(seed=seeds, k=ks, padding=st.integers(0, 2))
def test_value_equals_the_definition(name, seed, k, padding):
    case = Case(seed, k, padding)
    divergence, slow, _ = DIVERGENCES[name]
    expected = [slow(*row) for row in zip(case.student, case.target, case.ids, strict=True)]
    found = divergence(case.outcomes(case.logits), case.of(case.target))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@by_name
@given(seed=seeds, k=ks, padding=st.integers(0, 2))
def test_gradient_equals_the_closed_form(name, seed, k, padding):
    case = Case(seed, k, padding)
    divergence, _, slow = DIVERGENCES[name]
    expected = [slow(*row) for row in zip(case.student, case.target, case.ids, strict=True)]
    found = case.gradient(lambda logits: divergence(case.outcomes(logits), case.of(case.target)))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@by_name
@given(seed=seeds, k=ks)
def test_it_lies_between_zero_and_the_full_kl(name, seed, k):
    case = Case(seed, k)
    divergence, slow, _ = DIVERGENCES[name]
    found = divergence(case.outcomes(case.logits), case.of(case.target))
    full = [slow(*row, range(VOCABULARY)) for row in zip(case.student, case.target, strict=True)]
    assert (found > 0).all()
    assert (found <= torch.tensor(full, dtype=torch.float64) + 1e-12).all()


@by_name
@given(seed=seeds)
def test_it_is_the_full_kl_when_the_ids_are_the_whole_vocabulary(name, seed):
    case = Case(seed, VOCABULARY)
    divergence, slow, slow_gradient = DIVERGENCES[name]
    assert torch.isneginf(case.of(case.target).tail).all()
    assert torch.isneginf(case.outcomes(case.logits).tail).all()
    pairs = list(zip(case.student, case.target, strict=True))
    in_order = range(VOCABULARY)
    found = divergence(case.outcomes(case.logits), case.of(case.target))
    torch.testing.assert_close(found, torch.tensor([slow(*pair, in_order) for pair in pairs], dtype=torch.float64))
    gradient = case.gradient(lambda logits: divergence(case.outcomes(logits), case.of(case.target)))
    expected = torch.tensor([slow_gradient(*pair, in_order) for pair in pairs], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected)


@by_name
@given(seed=seeds, k=ks)
def test_student_at_the_target_is_at_rest(name, seed, k):
    case = Case(seed, k)
    divergence = DIVERGENCES[name][0]
    assert divergence(case.outcomes(case.logits), case.of(case.student)).abs().max() < 1e-12
    gradient = case.gradient(lambda logits: divergence(case.outcomes(logits), case.of(case.student)))
    assert gradient.abs().max() < 1e-12


@by_name
@given(seed=seeds, k=st.integers(1, VOCABULARY), padding=st.integers(1, 3))
def test_padding_changes_nothing(name, seed, k, padding):
    plain, padded = Case(seed, k), Case(seed, k, padding)
    divergence = DIVERGENCES[name][0]
    gradients = [
        case.gradient(lambda logits, case=case: divergence(case.outcomes(logits), case.of(case.target)))
        for case in (plain, padded)
    ]
    assert gradients[0].any()  # two zero gradients would be equal too
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-15)


@by_name
def test_gradient_is_the_derivative(name):
    case = Case(1, 3, padding=1)
    divergence, target = DIVERGENCES[name][0], case.of(case.target)
    logits = case.logits.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: divergence(case.outcomes(logits), target), logits)


@by_name
def test_no_gradient_reaches_the_target(name):
    case = Case(2, 3)
    target = case.outcomes(case.logits.clone().requires_grad_())
    value = DIVERGENCES[name][0](case.of(case.student), target)
    assert not value.requires_grad


def test_both_directions_are_what_a_pencil_says():
    """Student (1/2, 1/2), target (9/10, 1/10), over one id and the tail."""
    half, high, low = (torch.tensor([[value]]).log() for value in (0.5, 0.9, 0.1))
    student, target = Outcomes(half, half.squeeze(-1)), Outcomes(high, low.squeeze(-1))
    assert divergences.reverse_kl(student, target).item() == pytest.approx(
        0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(5)
    )
    assert divergences.forward_kl(student, target).item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))


@given(seed=seeds, k=ks)
def test_fp32_costs_no_more_than_rounding(seed, k):
    exact, rounded = Case(seed, k), Case(seed, k, dtype=torch.float32)
    for divergence, _, _ in DIVERGENCES.values():
        values = [divergence(case.outcomes(case.logits), case.of(case.target)) for case in (exact, rounded)]
        torch.testing.assert_close(values[1].double(), values[0], rtol=1e-5, atol=2e-6)


@given(seed=seeds)
def test_policy_gradient_equals_the_definition(seed):
    case = Case(seed, 1)
    target = case.inputs(case.target).targets["teacher"].sampled

    def loss(logits):
        student = case.answer(logits).sampled
        return estimators.policy_gradient(student, estimators.log_ratio_advantage(student, target, 1.0))

    expected = [
        reference.policy_gradient_gradient(student, target, y, 1.0)
        for student, target, y in zip(case.student, case.target, case.sampled.tolist(), strict=True)
    ]
    torch.testing.assert_close(case.gradient(loss), torch.tensor(expected, dtype=torch.float64))


@given(student=st.floats(-30, 0), target=st.floats(-30, 0))
def test_lightnings_gradient_is_that_of_the_huber_loss(student, target):
    """With respect to the student's log-probability; the threshold is the clip."""
    clip, step = 10.0, 1e-6
    x = torch.tensor([student], dtype=torch.float64, requires_grad=True)
    advantage = estimators.log_ratio_advantage(x, torch.tensor([target], dtype=torch.float64), clip)
    (found,) = torch.autograd.grad(estimators.policy_gradient(x, advantage).sum(), x)
    above, below = (reference.huber(student + sign * step - target, clip) for sign in (1, -1))
    assert found.item() == pytest.approx((above - below) / (2 * step), abs=1e-5)


def test_expected_policy_gradient_is_that_of_the_full_reverse_kl():
    case = Case(3, 1)
    total = torch.zeros_like(case.logits)
    for y in range(VOCABULARY):
        case.sampled = torch.full((TOKENS,), y)
        target = case.inputs(case.target).targets["teacher"].sampled

        def loss(logits, target=target):
            student = case.answer(logits).sampled
            return estimators.policy_gradient(student, estimators.log_ratio_advantage(student, target, None))

        total += case.gradient(loss) * torch.tensor([row[y] for row in case.student]).exp()[:, None]
    expected = [
        reference.reverse_kl_gradient(*pair, range(VOCABULARY)) for pair in zip(case.student, case.target, strict=True)
    ]
    torch.testing.assert_close(total, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("clip", "expected"), [(None, [12.0, -0.5, -15.0]), (10.0, [10.0, -0.5, -10.0])])
def test_advantage_is_the_clipped_log_ratio_of_teacher_and_student(clip, expected):
    student = torch.tensor([-13.0, -1.0, -1.0], requires_grad=True)
    advantage = estimators.log_ratio_advantage(student, torch.tensor([-1.0, -1.5, -16.0]), clip)
    assert not advantage.requires_grad
    torch.testing.assert_close(advantage, torch.tensor(expected))


@given(seed=seeds)
def test_nll_equals_the_definition(seed):
    case = Case(seed, 1)
    expected = [-row[y] for row, y in zip(case.student, case.sampled.tolist(), strict=True)]
    found = supervised.nll(case.answer(case.logits).sampled)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    gradients = [reference.nll_gradient(row, y) for row, y in zip(case.student, case.sampled.tolist(), strict=True)]
    gradient = case.gradient(lambda logits: supervised.nll(case.answer(logits).sampled))
    torch.testing.assert_close(gradient, torch.tensor(gradients, dtype=torch.float64))
