"""The contract of every engine, against each other and against a bigram model whose probabilities are known.

Above all: scoring a response gives back the log-probabilities that it was drawn with.
"""

from contextlib import ExitStack
from importlib.util import find_spec
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest

from pipeline.engines.engine import WRITING, EngineUse, Request, ScoreRequest
from pipeline.engines.fake import bigram_logprobs
from pipeline.engines.identity import name_tail
from pipeline.engines.open import open_engine
from pipeline.errors import EngineError
from pipeline.head.support import Support
from pipeline.models.record import record_model
from pipeline.scoring.plan import choose_use
from pipeline.settings import params
from pipeline.settings.machine import Machine, VllmMachine
from pipeline.settings.models import EngineName, EngineSettings, Sampling
from pipeline.settings.views import SupportSettings, View
from tests import tiny_models

WHOLE = Sampling(max_tokens=12)
FOUR = Support(4)
KNOW_WHAT_THEY_DREW_FROM = ["fake", "hf"]
NO_VLLM = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
NAMES = [
    pytest.param(name, marks=[NO_VLLM, pytest.mark.slow] if name == "vllm" else [])
    for name in sorted(get_args(EngineName))
]
ROUNDING = {"fake": 2e-6, "hf": 2e-6, "vllm": 2e-5}
"""Nats, fp32: between writing and scoring, and between an engine and the table."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {"bigram": tiny_models.bigram(root / "bigram", layers=1), "qwen3": tiny_models.qwen3(root / "qwen3")}


@pytest.fixture(scope="module")
def opened(folders, one_process):
    """Each engine on the bigram model, opened when a test first asks for it."""
    model = record_model(str(folders["bigram"]))
    with ExitStack() as stack:
        yield Opened(model, stack)


class Opened(dict):
    def __init__(self, model, stack):
        self.model, self.stack = model, stack

    def __missing__(self, name):
        self[name] = _vllm(self.model, self.stack) if name == "vllm" else self._open(EngineSettings(engine=name))
        return self[name]

    def _open(self, settings):
        return self.stack.enter_context(open_engine(self.model, settings, Machine()))


def _vllm(model, stack):
    """Write with one engine of vLLM and score with another, as the stages do in their own processes."""
    machine = Machine(vllm=VllmMachine(enforce_eager=True))
    settings = EngineSettings(engine="vllm")
    writer, scorer = (
        stack.enter_context(open_engine(model, settings, machine, use))
        for use in (WRITING, EngineUse("hidden_states", 37))
    )
    return SimpleNamespace(generate=writer.generate, score=scorer.score)


def requests(count, length=3):
    random = np.random.default_rng(1)
    return [Request([int(i) for i in random.integers(4, 30, length + n % 3)], seed=n) for n in range(count)]


def written(engine, count=12, sampling=WHOLE):
    asked = requests(count)
    return asked, engine.generate(asked, sampling)


def scored(engine, asked, responses, support=FOUR, **more):
    pairs = zip(asked, responses, strict=True)
    return engine.score([ScoreRequest(one.prompt_ids, response.ids, **more) for one, response in pairs], support)


@pytest.mark.parametrize("name", NAMES)
def test_scoring_a_response_gives_back_the_logprobs_it_was_drawn_with(opened, name):
    asked, responses = written(opened[name])
    scores = scored(opened[name], asked, responses)
    drawn = np.concatenate([response.behaviour_logprobs for response in responses])
    np.testing.assert_allclose(scores.sampled_logprobs, drawn, atol=ROUNDING[name])


@pytest.mark.parametrize("name", NAMES)
def test_each_position_conditions_on_the_token_before_it(opened, folders, name):
    table = bigram_logprobs(folders["bigram"])
    asked, responses = written(opened[name])
    scores = scored(opened[name], asked, responses)
    expected = [
        table[before, token]
        for request, response in zip(asked, responses, strict=True)
        for before, token in zip([request.prompt_ids[-1], *response.ids[:-1]], response.ids, strict=True)
    ]
    np.testing.assert_allclose(scores.sampled_logprobs, expected, atol=ROUNDING[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_rollout_scores_the_same_alone_and_among_others(opened, name):
    asked, responses = written(opened[name])
    together = scored(opened[name], asked, responses)
    alone = scored(opened[name], asked[5:6], responses[5:6])
    start = sum(len(response.ids) for response in responses[:5])
    piece = slice(start, start + len(responses[5].ids))
    np.testing.assert_allclose(alone.sampled_logprobs, together.sampled_logprobs[piece], atol=ROUNDING[name])
    np.testing.assert_allclose(alone.tail_logprobs, together.tail_logprobs[piece], atol=ROUNDING[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_response_is_written_the_same_alone_and_among_others(opened, name):
    asked, responses = written(opened[name])
    alone = opened[name].generate(asked[7:8], WHOLE)[0]
    np.testing.assert_array_equal(alone.ids, responses[7].ids)


@pytest.mark.parametrize("name", NAMES)
def test_entries_and_tail_are_a_distribution(opened, name):
    asked, responses = written(opened[name])
    scores = scored(opened[name], asked, responses, Support(6))
    for token, tail in enumerate(scores.tail_logprobs):
        assert np.exp(scores.logprobs[token]).sum() + np.exp(tail) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if name.values != ("fake",)])
def test_an_engine_finds_what_the_table_says(opened, name):
    asked, responses = written(opened["fake"], 8)
    random = np.random.default_rng(0)
    sequences = [
        ScoreRequest(request.prompt_ids, response.ids, random.integers(-1, 30, (len(response.ids), 3)))
        for request, response in zip(asked, responses, strict=True)
    ]
    for support in (Support(5), Support(30, mass=0.8, min_k=2), Support(0), Support(37)):
        known, found = opened["fake"].score(sequences, support), opened[name].score(sequences, support)
        np.testing.assert_array_equal(found.ids.values, known.ids.values)
        np.testing.assert_array_equal(found.ids.offsets, known.ids.offsets)
        np.testing.assert_array_equal(found.own, known.own)
        np.testing.assert_allclose(found.logprobs.values, known.logprobs.values, atol=5e-6)
        np.testing.assert_allclose(found.tail_logprobs, known.tail_logprobs, atol=1e-4)
        np.testing.assert_allclose(found.entropies, known.entropies, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_responses_are_drawn_with_the_models_probabilities(opened, folders, name):
    """4,000 first tokens after one prompt: each frequency within five standard errors."""
    table = bigram_logprobs(folders["bigram"])[5]
    asked = [Request([5], seed=seed) for seed in range(4000)]
    first = [response.ids[0] for response in opened[name].generate(asked, Sampling(max_tokens=1))]
    share = np.bincount(first, minlength=len(table)) / len(first)
    error = np.sqrt(np.exp(table) * (1 - np.exp(table)) / len(first))
    assert (np.abs(share - np.exp(table)) < 5 * error + 1e-9).all()


@pytest.mark.parametrize("name", KNOW_WHAT_THEY_DREW_FROM)
def test_what_was_sampled_from_is_kept_where_it_differs(opened, name):
    tempered = Sampling(max_tokens=6, temperature=0.5, top_k=5)
    asked, responses = written(opened[name], 8, tempered)
    for response in responses:
        assert response.sampling_logprobs is not None
    scores = scored(opened[name], asked, responses, Support(37))
    position = 0
    for response in responses:
        for token, logprob in zip(response.ids, response.sampling_logprobs, strict=True):
            top = scores.logprobs[position][:5].astype(np.float64) / 0.5
            rank = list(scores.ids[position][:5]).index(token)
            assert logprob == pytest.approx(top[rank] - np.logaddexp.reduce(top), abs=1e-4)
            position += 1
    assert all(response.sampling_logprobs is None for response in written(opened[name], 2)[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_response_ends_with_the_end_of_sequence_token_or_at_the_limit(opened, name):
    _, responses = written(opened[name], 60)
    assert {response.finish_reason for response in responses} == {"stop", "length"}
    for response in responses:
        ends = response.ids == 0
        assert not ends[:-1].any()
        assert ends[-1] == (response.finish_reason == "stop")
        assert len(response.ids) == 12 or ends[-1]


@pytest.mark.parametrize("name", NAMES)
def test_greedy_takes_the_likeliest_token(opened, folders, name):
    table = bigram_logprobs(folders["bigram"])
    response = opened[name].generate([Request([5], 0)], Sampling(max_tokens=1, temperature=0.0), top_k=3)[0]
    assert response.ids[0] == table[5].argmax()
    np.testing.assert_array_equal(response.topk_ids[0], np.argsort(-table[5])[:3])


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_do_gives_nothing(opened, name):
    assert opened[name].generate([], WHOLE) == []
    scores = opened[name].score([], FOUR)
    assert (len(scores.sampled_logprobs), len(scores.ids), len(scores.logprobs), len(scores.own)) == (0, 0, 0, 0)


@pytest.mark.parametrize("name", NAMES)
def test_more_ids_than_the_vocabulary_are_refused(opened, name):
    asked, responses = written(opened[name], 2)
    with pytest.raises(EngineError, match="37"):
        scored(opened[name], asked, responses, Support(38))
    with pytest.raises(EngineError, match=r"top_k is 38.*\b37\b"):
        opened[name].generate(asked, WHOLE, top_k=38)


def test_packed_sequences_do_not_see_each_other(folders):
    """On a model with attention: narrow packs, wide packs and one sequence at a time agree."""
    model = record_model(str(folders["qwen3"]))
    with open_engine(model, EngineSettings(), Machine()) as engine:
        asked, responses = written(engine, 9)
        one_by_one = [scored(engine, asked[n : n + 1], responses[n : n + 1]).sampled_logprobs for n in range(9)]
        packed = scored(engine, asked, responses).sampled_logprobs
    # The weights are four times the usual, and so are the logits and their rounding.
    np.testing.assert_allclose(packed, np.concatenate(one_by_one), atol=1e-4)
    drawn = np.concatenate([response.behaviour_logprobs for response in responses])
    np.testing.assert_allclose(packed, drawn, atol=1e-4)


def test_a_sequence_longer_than_the_context_is_refused(folders):
    model = record_model(str(folders["qwen3"]))
    with (
        open_engine(model, EngineSettings(), Machine()) as engine,
        pytest.raises(EngineError, match="context is 128"),
    ):
        engine.generate([Request([5] * 120, 0)], WHOLE)


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_limit_beyond_the_models_own_context_is_refused(folders, name):
    model = record_model(str(folders["qwen3"]))
    with pytest.raises(EngineError, match=r"max_model_len is 129, and .* has a context of 128 tokens"):
        open_engine(model, EngineSettings(engine=name, max_model_len=129), Machine())


def test_how_tails_come_about_is_known_without_opening_a_model():
    ways = {"exact": EngineUse("hidden_states"), "derived": EngineUse("prompt_logprobs"), "written": WRITING}
    for name in ("hf", "fake"):
        assert {name_tail(name, use) for use in ways.values()} == {"exact"}
    assert {way: name_tail("vllm", use) for way, use in ways.items()} == {
        "exact": "exact",
        "derived": "derived",
        "written": "derived",
    }


def test_the_score_stage_opens_an_engine_for_its_largest_top_k():
    views = {name: View(support=SupportSettings(top_k=k)) for name, k in (("teacher", 8), ("wide", 64))}
    ids_alone = {"ids": View(support=SupportSettings(ids=(1,)))}
    settings = params.Score(engine="vllm", views=views | ids_alone)
    assert choose_use(settings) == EngineUse("hidden_states", 64)
    by_prompt_logprobs = params.Score(engine="vllm", views=views, hidden_states=False)
    assert choose_use(by_prompt_logprobs) == EngineUse("prompt_logprobs", 64)
