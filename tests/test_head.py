"""The head against the whole [tokens × vocabulary] matrix of log-probabilities, and the scorer against slow loops."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.head.answer import Ask
from pipeline.head.gradient import answer_tokens
from pipeline.head.layer import OutputLayer
from pipeline.head.scores import PaddedScores, score_tokens
from pipeline.head.support import Support
from tests import reference

TOKENS, HIDDEN, VOCABULARY = 9, 5, 11
LAYERS = {
    "plain": {},
    "bias": {"bias": torch.linspace(-1, 1, VOCABULARY, dtype=torch.float64)},
    "scaled": {"scale": 0.25},
    "capped": {"softcap": 1.5},
    "all": {"bias": torch.linspace(-1, 1, VOCABULARY, dtype=torch.float64), "scale": 2.0, "softcap": 3.0},
}


@pytest.fixture
def hidden():
    return torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def output():
    weight = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return OutputLayer(weight)


def ragged_ids(counts) -> torch.Tensor:
    """Of each token so many distinct ids, padded behind the last."""
    random = np.random.default_rng(2)
    ids = torch.full((len(counts), max(counts)), -1)
    for row, count in enumerate(counts):
        ids[row, :count] = torch.from_numpy(random.permutation(VOCABULARY)[:count])
    return ids


def ask(**more) -> Ask:
    """Rows with no id, with some, and with all of the vocabulary."""
    ids = ragged_ids([0, 1, 3, VOCABULARY, 4, 0, 2, VOCABULARY - 1, 5])
    return replace(Ask(torch.arange(TOKENS), ids), **more)


def naive(hidden, output, asked):
    """The same from all log-probabilities at once: `sampled`, `logprobs`, `tail` and `top_logprobs`."""
    logits = hidden @ output.weight.T + (0 if output.bias is None else output.bias)
    logits = logits * output.scale
    if output.softcap is not None:
        logits = output.softcap * torch.tanh(logits / output.softcap)
    logprobs = logits.log_softmax(-1)
    is_outside = torch.ones_like(logprobs, dtype=torch.bool)
    at_ids = torch.full(asked.ids.shape, -torch.inf, dtype=logprobs.dtype)
    for token, row in enumerate(asked.ids):
        known = row[row >= 0]
        is_outside[token, known] = False
        at_ids[token, : len(known)] = logprobs[token, known]
    tail = torch.stack(
        [
            row[keep].logsumexp(0) if keep.any() else row.new_tensor(-torch.inf)
            for row, keep in zip(logprobs, is_outside, strict=True)
        ]
    )
    sampled = logprobs[torch.arange(len(logprobs)), asked.sampled_ids]
    return sampled, at_ids, tail, logprobs.sort(-1, descending=True).values[:, : asked.top_k]


def tensors(answer):
    return answer.sampled, answer.logprobs, answer.tail, answer.top_logprobs


def total(answered) -> torch.Tensor:
    """A scalar in which every finite number counts differently."""
    finite = torch.cat([part[part.isfinite()] for part in answered])
    return (finite * torch.arange(1, 1 + len(finite))).sum()


def gradients(function, hidden, output):
    """Of `total`, with respect to the hidden states and the layer's weight."""
    own_hidden, weight = hidden.clone().requires_grad_(), output.weight.clone().requires_grad_()
    answered = function(own_hidden, replace(output, weight=weight))
    return torch.autograd.grad(total(answered), (own_hidden, weight))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("chunk", [1, 4, TOKENS])
def test_answer_is_what_all_logprobs_say(monkeypatch, hidden, output, layer, chunk):
    """Values and both gradients, for rows without ids, with some and with all; in chunks and at once."""
    monkeypatch.setattr("pipeline.head.layer.CHUNK", chunk * VOCABULARY)
    layer, asked = replace(output, **LAYERS[layer]), ask(top_k=3)
    assert layer.chunk == chunk
    for found, expected in zip(tensors(answer_tokens(hidden, layer, asked)), naive(hidden, layer, asked), strict=True):
        torch.testing.assert_close(found, expected)
    found = gradients(lambda h, o: tensors(answer_tokens(h, o, asked)), hidden, layer)
    expected = gradients(lambda h, o: naive(h, o, asked), hidden, layer)
    assert all(gradient.any() for gradient in expected)
    torch.testing.assert_close(found, expected)


def test_chunks_give_the_same_to_the_last_digit_but_for_sums_over_tokens(monkeypatch, hidden, output):
    asked = ask(top_k=2, entropy=True)
    whole = answer_tokens(hidden, output, asked)
    monkeypatch.setattr("pipeline.head.layer.CHUNK", 2 * VOCABULARY)
    cut = answer_tokens(hidden.clone().requires_grad_(), output, asked)
    for name in ("sampled", "logprobs", "tail", "top_ids", "top_logprobs", "entropy"):
        torch.testing.assert_close(getattr(cut, name), getattr(whole, name), rtol=0, atol=1e-14)


def test_no_chunk_of_logits_outlives_the_forward(monkeypatch, hidden, output):
    """The backward pass computes each chunk again: what autograd keeps is smaller than tokens × vocabulary."""
    monkeypatch.setattr("pipeline.head.layer.CHUNK", 1)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        answer_tokens(hidden.requires_grad_(), output, replace(ask(), ids=ragged_ids([1, 2, 3] * 3)))
    assert kept
    assert all(VOCABULARY not in shape[1:] for shape in kept if len(shape) > 1)


def test_tail_of_a_row_without_ids_is_the_log_of_one(hidden, output):
    answer = answer_tokens(hidden, output, ask())
    torch.testing.assert_close(answer.tail[[0, 5]], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-14)
    none_asked = replace(ask(), ids=torch.empty(TOKENS, 0, dtype=torch.int64))
    answer = answer_tokens(hidden, output, none_asked)
    torch.testing.assert_close(answer.tail, torch.zeros(TOKENS, dtype=torch.float64), rtol=0, atol=1e-14)


def test_tail_of_all_ids_is_empty_and_its_gradient_finite(hidden, output):
    asked = replace(ask(), ids=ragged_ids([VOCABULARY] * TOKENS))

    def tails_with_logprobs(own, layer):
        answer = answer_tokens(own, layer, asked)
        return answer.tail.exp() * 3, answer.logprobs

    assert torch.isneginf(answer_tokens(hidden, output, asked).tail).all()
    for gradient in gradients(tails_with_logprobs, hidden, output):
        assert gradient.isfinite().all()


def test_nothing_to_answer_gives_empty_tensors(hidden, output):
    answer = answer_tokens(hidden[:0], output, Ask(torch.arange(0), ask().ids[:0], entropy=True))
    assert [len(part) for part in tensors(answer)] == [0, 0, 0, 0]


def test_entropy_is_that_of_the_whole_vocabulary_and_without_gradient(hidden, output):
    answer = answer_tokens(hidden.requires_grad_(), output, ask(entropy=True))
    logprobs = (hidden @ output.weight.T).log_softmax(-1).tolist()
    expected = torch.tensor([reference.entropy(row) for row in logprobs], dtype=torch.float64)
    torch.testing.assert_close(answer.entropy, expected)
    assert answer.entropy is not None
    assert not answer.entropy.requires_grad
    assert answer_tokens(hidden, output, ask()).entropy is None


def test_gradient_is_the_derivative(hidden, output):
    asked = ask(top_k=2)

    def answer(own, weight):
        found = answer_tokens(own, replace(output, weight=weight, softcap=4.0), asked)
        return found.sampled, found.logprobs[asked.ids >= 0], found.tail[~found.tail.isneginf()], found.top_logprobs

    inputs = hidden.requires_grad_(), output.weight.clone().requires_grad_()
    assert torch.autograd.gradcheck(answer, inputs)


def test_bias_and_frozen_layers_get_the_gradient_that_is_theirs(monkeypatch, hidden, output):
    """A bias learns; with the layer frozen, as under LoRA, only the hidden states do."""
    monkeypatch.setattr("pipeline.head.layer.CHUNK", 4 * VOCABULARY)
    asked, bias = ask(top_k=2), LAYERS["bias"]["bias"].clone().requires_grad_()
    own = hidden.requires_grad_()
    found = torch.autograd.grad(total(tensors(answer_tokens(own, replace(output, bias=bias), asked))), (own, bias))
    expected = torch.autograd.grad(total(naive(own, replace(output, bias=bias), asked)), (own, bias))
    torch.testing.assert_close(found, expected)
    assert found[1].any()
    assert not answer_tokens(hidden.detach(), output, asked).tail.requires_grad


def test_gradient_of_a_vanishing_tail_is_finite_and_right():
    """A tail of e^−200, which fp32 cannot hold as a probability: its own logsumexp is what the gradient follows."""
    logits = torch.tensor([[200.0, 0.0, 1.0, 2.0]]).requires_grad_()
    tail = answer_tokens(logits, OutputLayer(torch.eye(4)), Ask(torch.tensor([0]), torch.tensor([[0]]))).tail
    (found,) = torch.autograd.grad(tail.sum(), logits)
    expected = torch.cat([torch.tensor([-1.0]), logits.detach()[0, 1:].softmax(0)])
    torch.testing.assert_close(found[0], expected)


def test_what_comes_back_to_padding_goes_nowhere(hidden, output):
    hidden.requires_grad_()
    asked = ask()
    logprobs = answer_tokens(hidden, output, asked).logprobs
    found, expected = (
        torch.autograd.grad(logprobs, hidden, back, retain_graph=True)[0]
        for back in (torch.ones_like(logprobs), (asked.ids >= 0).double())
    )
    assert torch.equal(found, expected)
    assert found.any()


@pytest.mark.parametrize("mass", [1e-3, 1e-6, 1e-9])
def test_small_tails_are_exact_in_fp32(mass):
    """One id holds all but `mass`: 1 − Σ would be off by everything at 1e-9."""
    rest = 50
    logits = torch.full((1, rest + 1), math.log(mass / rest), dtype=torch.float64)
    logits[0, 0] = math.log1p(-mass)
    answer = answer_tokens(
        logits.float(), OutputLayer(torch.eye(rest + 1)), Ask(torch.tensor([0]), torch.tensor([[0]]))
    )
    assert answer.tail.item() == pytest.approx(math.log(mass), abs=1e-5)


def test_bf16_costs_no_more_than_computing_naively_in_bf16():
    """Three ways: exact in fp32, naive in bf16, ours. What the inputs lost by rounding is lost to all of them."""
    random = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 32, generator=random).bfloat16() for rows in (64, 500))
    sampled = torch.arange(64)
    asked = Ask(sampled, torch.stack([sampled + 100, sampled + 200], dim=1), top_k=4)
    exact = naive(hidden.float(), OutputLayer(weight.float()), asked)
    rounded = naive(hidden, OutputLayer(weight), asked)
    ours = tensors(answer_tokens(hidden, OutputLayer(weight), asked))
    for found, in_bf16, expected in zip(ours, rounded, exact, strict=True):
        assert found.dtype == torch.float32
        error, naive_error = ((part.float() - expected).abs().max() for part in (found, in_bf16))
        assert error < naive_error
        assert error < 0.125  # half a unit of bf16 at logits of 16 to 32 (0.0625), of the id's own and of the largest


def test_autocast_costs_no_more_than_computing_naively_under_it():
    """Parameters in fp32, products in bf16: values and gradients, against the exact ones and the naive ones."""
    random = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 32, generator=random) for rows in (64, 500))
    sampled = torch.arange(64)
    asked = Ask(sampled, torch.stack([sampled + 100, sampled + 200], dim=1), top_k=4)
    output = OutputLayer(weight)

    def ours(own, layer):
        return tensors(answer_tokens(own, layer, asked))

    def naively(own, layer):
        return naive(own, layer, asked)

    exact = [*naively(hidden, output), *gradients(naively, hidden, output)]
    with torch.autocast("cpu", torch.bfloat16):
        found = [*ours(hidden, output), *gradients(ours, hidden, output)]
        rounded = [*naively(hidden, output), *gradients(naively, hidden, output)]
    for own, in_bf16, expected in zip(found, rounded, exact, strict=True):
        assert own.dtype == torch.float32
        error, naive_error = ((part.float() - expected).norm() for part in (own, in_bf16))
        assert 0 < error <= 1.01 * naive_error


def scored(logits: torch.Tensor, asked=None, **more) -> PaddedScores:
    """The score of these logits."""
    output, sampled_ids = OutputLayer(torch.eye(logits.shape[-1], dtype=logits.dtype)), torch.zeros(len(logits)).long()
    return score_tokens(logits, output, sampled_ids, asked, Support(**{"top_k": 4, **more}))


def entries(score: PaddedScores) -> list[list[int]]:
    return [row[row >= 0].tolist() for row in score.ids]


masses = st.one_of(st.none(), st.floats(0.05, 1.0))


@given(seed=st.integers(0, 10_000), top_k=st.integers(0, VOCABULARY), mass=masses, min_k=st.integers(1, 4))
def test_own_ids_are_the_shortest_prefix_that_holds_the_mass(seed, top_k, mass, min_k):
    logits = torch.from_numpy(2 * np.random.default_rng(seed).normal(size=(3, VOCABULARY)))
    found = scored(logits, top_k=top_k, mass=mass, min_k=min_k)
    logprobs = [reference.log_softmax(row) for row in logits.tolist()]
    expected = [reference.kept_prefix(row, top_k, mass, min_k) for row in logprobs]
    assert entries(found) == expected
    assert found.own.tolist() == [len(row) for row in expected]
    for row, ids in enumerate(expected):
        assert found.tail[row].item() == pytest.approx(reference.tail(logprobs[row], ids), abs=1e-9)
        assert found.logprobs[row, : len(ids)].tolist() == pytest.approx([logprobs[row][id_] for id_ in ids])
        assert torch.isneginf(found.logprobs[row, len(ids) :]).all()
        assert found.sampled[row].item() == pytest.approx(logprobs[row][0])
        assert found.entropy is not None
        assert found.entropy[row].item() == pytest.approx(reference.entropy(logprobs[row]))


@given(seed=st.integers(0, 10_000), top_k=st.integers(0, 5), width=st.integers(1, 6))
def test_asked_ids_stand_behind_the_own_ones_once_each(seed, top_k, width):
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(2 * random.normal(size=(3, VOCABULARY)))
    asked = torch.from_numpy(random.integers(-1, VOCABULARY, (3, width)))
    found = scored(logits, asked, top_k=top_k)
    for row, (values, wanted) in enumerate(zip(logits.tolist(), asked.tolist(), strict=True)):
        own = reference.kept_prefix(values, top_k, None, 1)
        more = sorted({id_ for id_ in wanted if id_ >= 0} - set(own), key=lambda id_: -values[id_])
        assert entries(found)[row] == own + more
        assert found.own[row] == len(own)
        assert found.tail[row].item() == pytest.approx(reference.tail(reference.log_softmax(values), own + more))


def test_ids_of_one_probability_stand_by_id():
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0, 1.0, -1.0]])
    assert entries(scored(logits, top_k=4)) == [[1, 3, 2, 4]]
    assert entries(scored(logits, torch.tensor([[4, 2, 0]]), top_k=2)) == [[1, 3, 2, 4, 0]]


@given(seed=st.integers(0, 10_000), top_k=st.integers(1, VOCABULARY))
def test_no_id_is_left_out_for_a_less_likely_one(seed, top_k):
    """With many equal logits, as bf16 gives them."""
    logits = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, (3, VOCABULARY))).float()
    found = scored(logits, top_k=top_k)
    for row, ids in enumerate(entries(found)):
        values = logits[row]
        assert ids == sorted(ids, key=lambda id_: (-values[id_].item(), id_))
        outside = [values[id_].item() for id_ in range(VOCABULARY) if id_ not in ids]
        assert max(outside, default=-math.inf) <= values[ids].min().item()


def test_a_score_does_not_depend_on_chunks(monkeypatch):
    logits = torch.randn(7, VOCABULARY, generator=torch.Generator().manual_seed(5))
    asked = torch.randint(-1, VOCABULARY, (7, 3), generator=torch.Generator().manual_seed(6))
    whole = scored(logits, asked, mass=0.7)
    monkeypatch.setattr("pipeline.head.layer.CHUNK", 2 * VOCABULARY)
    cut = scored(logits, asked, mass=0.7)
    assert entries(cut) == entries(whole)
    for name in ("sampled", "own", "tail", "entropy"):
        torch.testing.assert_close(getattr(cut, name), getattr(whole, name), rtol=0, atol=1e-6)


@pytest.mark.parametrize("log_mass", [-7.0, -20.0, -62.0, -300.0])
def test_small_tails_of_a_score_are_exact_in_fp32(log_mass):
    """Below e^−87 of the highest id every weight underflows; a row beside it has a tail of its own."""
    rest = 50
    logits = torch.zeros(2, rest + 1)
    logits[0, 1:] = log_mass - math.log(rest)
    small, large = scored(logits, top_k=1).tail.tolist()
    assert small == pytest.approx(log_mass - math.log1p(math.exp(log_mass)), abs=5e-5)
    assert large == pytest.approx(math.log(rest / (rest + 1)), abs=1e-6)


def test_entropies_are_left_out_where_they_are_not_wanted():
    assert scored(torch.zeros(2, 6), entropies=False).entropy is None


def test_an_id_of_probability_zero_breaks_nothing():
    """Models mask ids with −inf: the entropy stays finite, the id scores −inf, and the tail is what is left."""
    output = OutputLayer(torch.eye(4), bias=torch.tensor([0.0, 0.0, -torch.inf, -torch.inf]))
    found = score_tokens(torch.zeros(1, 4), output, torch.tensor([0]), torch.tensor([[3]]), Support(2))
    assert found.entropy is not None
    assert found.entropy.item() == pytest.approx(math.log(2))
    assert entries(found) == [[0, 1, 3]]
    assert torch.isneginf(found.logprobs[0, 2])
    assert torch.isneginf(found.tail).all()
