"""Drift against slow sums and against what it estimates: the KL between two bigram models that are known exactly."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engines.fake import BigramEngine
from pipeline.errors import SettingsError
from pipeline.models.record import record_model
from pipeline.rollouts.drift import check_bound, estimate_drift, measure_drift
from pipeline.settings.models import EngineSettings
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.shards import read_shard
from tests import reference, tiny_models, tiny_shards


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=50))
def test_it_equals_the_definition(logratios):
    found = estimate_drift(np.array(logratios))
    weights = [math.exp(d) for d in logratios]
    nats = math.fsum(w - 1 - d for w, d in zip(weights, logratios, strict=True)) / len(weights)
    size = math.fsum(weights) ** 2 / (len(weights) * math.fsum(w**2 for w in weights))
    assert found.nats == pytest.approx(nats, rel=1e-9, abs=1e-12)
    assert found.nats >= 0
    assert found.effective_sample_size == pytest.approx(size)
    assert found.tokens == len(logratios)


def test_what_did_not_move_has_no_drift():
    found = estimate_drift(np.zeros(7))
    assert (found.nats, found.effective_sample_size) == (0.0, 1.0)


def test_small_log_ratios_keep_their_digits():
    """e^d − 1 − d is d² / 2 there, which 1e-8 alone would lose to rounding."""
    assert estimate_drift(np.full(4, 1e-6)).nats == pytest.approx(5e-13, rel=1e-3)


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    root, how = tmp_path_factory.mktemp("models"), EngineSettings(engine="fake")
    folders = (tiny_models.bigram(root / str(seed), seed=seed, sharpness=0.6) for seed in (1, 2))
    return [BigramEngine(record_model(str(folder)), how) for folder in folders]


@pytest.fixture(scope="module")
def rollouts(engines, tmp_path_factory):
    """Responses of the first model; the shard says −1 for each log-probability that they were drawn with."""
    (shard,) = tiny_shards.write(tmp_path_factory.mktemp("shards"), engines[0], engines[0], [200])
    return shard.rollouts


def _logratios(engines, rows):
    """Of every token: the second model's, from its table, less the shard's −1 for the writer."""
    return [
        engines[1].logprobs[before, token] + 1
        for row in rows
        for before, token in zip([row["prompt_ids"][-1], *row["response_ids"]], row["response_ids"], strict=False)
    ]


def test_it_is_measured_on_the_rows_with_the_smallest_ids(engines, rollouts):
    rows = read_shard(rollouts, ROLLOUTS).to_pylist()
    for count in (5, 200, 500):
        chosen = sorted(rows, key=lambda row: row["rollout_id"])[:count]
        found = measure_drift(engines[1], rollouts, count)
        expected = estimate_drift(np.array(_logratios(engines, chosen)))
        assert found.tokens == expected.tokens
        assert found.nats == pytest.approx(expected.nats, rel=1e-5)


def test_it_estimates_the_kl_of_the_writer_from_the_student_now(engines, rollouts):
    """Over the contexts that occur, within five standard errors."""
    before_and_token = [
        (before, token)
        for row in read_shard(rollouts, ROLLOUTS).to_pylist()
        for before, token in zip([row["prompt_ids"][-1], *row["response_ids"]], row["response_ids"], strict=False)
    ]
    writer, now = (engine.logprobs for engine in engines)
    d = np.array([now[place] - writer[place] for place in before_and_token])
    exact = np.mean([reference.kl(list(writer[before]), list(now[before])) for before, _ in before_and_token])
    error = np.std(np.expm1(d) - d) / math.sqrt(len(d))
    assert abs(estimate_drift(d).nats - exact) < 5 * error
    assert exact > 10 * error


def test_a_bound_below_three_floors_is_refused_with_both_numbers():
    with pytest.raises(
        SettingsError, match=r"refresh\.bound is 0\.02 nats .* already shows 0\.01 .*3 floors \(0\.03\)"
    ):
        check_bound(0.02, floor=0.01)
    check_bound(0.03, floor=0.01)
