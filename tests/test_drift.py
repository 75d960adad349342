"""Drift against slow sums and against what it estimates: the KL between two bigram models that are known exactly."""

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engines.fake import BigramEngine
from pipeline.errors import SettingsError
from pipeline.models.record import record_model
from pipeline.rollouts.drift import Drift, check_bound, estimate_drift, measure_drift, measure_response
from pipeline.rollouts.stale import choose_stale, find_undecided
from pipeline.settings.models import EngineSettings, Sampling
from pipeline.settings.refresh import Refresh
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.shards import count_rows_and_tokens, read_shard
from pipeline.storage.whole import read_json
from tests import dag, reference, tiny_models, tiny_shards


def estimate(*responses, of=None):
    """The drift of a shard by d of the tokens of some of its responses; of all, unless it says how many there are."""
    return estimate_drift([measure_response(np.array(each)) for each in responses], of or len(responses))


@given(st.lists(st.lists(st.floats(-8, 8), min_size=1, max_size=20), min_size=1, max_size=5))
def test_it_equals_the_definition(responses):
    found = estimate(*responses)
    logratios = [d for each in responses for d in each]
    weights = [math.exp(d) for d in logratios]
    nats = math.fsum(w - 1 - d for w, d in zip(weights, logratios, strict=True)) / len(weights)
    size = math.fsum(weights) ** 2 / (len(weights) * math.fsum(w**2 for w in weights))
    assert found.nats == pytest.approx(nats, rel=1e-9, abs=1e-12)
    assert found.nats >= 0
    assert found.effective_sample_size == pytest.approx(size)
    assert found.tokens == len(logratios)


def test_what_did_not_move_has_no_drift():
    found = estimate(np.zeros(7))
    assert (found.nats, found.standard_error) == (0.0, 0.0)
    assert found.effective_sample_size == pytest.approx(1.0)


def test_small_log_ratios_keep_their_digits():
    """e^d − 1 − d is d² / 2 there, which 1e-8 alone would lose to rounding."""
    assert estimate(np.full(4, 1e-6)).nats == pytest.approx(5e-13, rel=1e-3)


def test_ratios_beyond_any_float_are_summed():
    found = estimate(np.full(3, -900.0), np.full(2, 0.0))
    assert found.effective_sample_size == pytest.approx(2 / 5)


def test_its_error_is_what_other_responses_of_the_shard_would_have_given():
    """Of a shard whose responses differ in length and in drift, many draws; whole, there is no error."""
    random = np.random.default_rng(0)
    shard = [random.normal(0, random.gamma(2, 0.1), size=random.integers(5, 60)) for _ in range(200)]
    whole = estimate(*shard)
    assert whole.standard_error == 0
    draws = [[shard[row] for row in random.permutation(200)[:50]] for _ in range(2000)]
    found = [estimate(*draw, of=200) for draw in draws]
    spread = np.std([each.nats for each in found])
    assert np.sqrt(np.mean([each.standard_error**2 for each in found])) == pytest.approx(spread, rel=0.1)
    covered = np.mean([abs(each.nats - whole.nats) < each.margin for each in found])
    assert 0.9 < covered < 0.98
    assert estimate(shard[0], of=200).margin == np.inf


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
    in_order = sorted(rows, key=lambda row: row["rollout_id"])
    for start, stop in ((0, 5), (5, 10), (0, 200), (100, 500)):
        found = measure_drift(engines[1], rollouts, start, stop)
        expected = [measure_response(np.array(_logratios(engines, [row]))) for row in in_order[start:stop]]
        assert [each.tokens for each in found] == [each.tokens for each in expected]
        assert [each.nats for each in found] == pytest.approx([each.nats for each in expected], rel=1e-4)


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
    assert abs(estimate(d).nats - exact) < 5 * error
    assert exact > 10 * error


def test_a_bound_below_three_floors_is_refused_with_both_numbers():
    with pytest.raises(
        SettingsError, match=r"refresh\.bound is 0\.02 nats .* already shows 0\.01 .*3 floors \(0\.03\)"
    ):
        check_bound(0.02, floor=0.01)
    check_bound(0.03, floor=0.01)


def policy(**more):
    return Refresh(sampling=Sampling(max_tokens=8), **more)


def shards(**nats_and_errors):
    return {name: Drift(nats, error, 1.0, 100, 32) for name, (nats, error) in nats_and_errors.items()}


def test_a_shard_whose_interval_holds_the_bound_is_undecided():
    measured = shards(fresh=(0.01, 0.01), maybe=(0.04, 0.01), stale=(0.09, 0.01), known=(0.051, 0.001))
    settings = policy(policy="drift", bound=0.05)
    assert choose_stale(settings, measured) == {"stale", "known"}
    assert find_undecided(settings, measured) == {"maybe"}, "`known` is so near that either will do"


def test_with_a_fraction_the_cut_is_between_the_last_that_goes_and_the_first_that_stays():
    measured = shards(a=(0.09, 0.01), b=(0.06, 0.01), c=(0.04, 0.01), d=(0.01, 0.01))
    settings = policy(policy="fraction", fraction=0.5)
    assert choose_stale(settings, measured) == {"a", "b"}
    assert find_undecided(settings, measured) == {"b", "c"}


@pytest.mark.parametrize("settings", [policy(), policy(policy="fraction", fraction=1.0)])
def test_where_all_are_written_anew_nothing_is_undecided(settings):
    measured = shards(a=(0.09, 1.0), b=(0.06, 1.0))
    assert choose_stale(settings, measured) == {"a", "b"}
    assert find_undecided(settings, measured) == set()


def test_shards_are_measured_until_the_policy_is_sure_or_the_limit_is_reached(tmp_path):
    """A whole refresh; what was measured on fewer responses is not measured again."""
    sampling = {"temperature": 1.0, "max_tokens": 8}
    project = dag.new_project(
        tmp_path / "project", {"opd": 200, "sft": 8, "evaluation": 6},
        refresh={"engine": "fake", "sampling": sampling, "policy": "fraction", "fraction": 0.5, "drift_rows": 4},
    )  # fmt: skip
    scored = []
    score = BigramEngine.score

    def note(self, requests, *arguments):
        scored.extend(
            request.response_ids.tobytes() + bytes(str(list(request.prompt_ids)), "ascii") for request in requests
        )
        return score(self, requests, *arguments)

    with contextlib.chdir(project):
        order = dag.stages(project)
        before = [stage.name for stage in order].index("refresh@r2")
        dag.run(project, order=order[:before])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BigramEngine, "score", note)
            dag.run(project, order=[order[before]])
    measured = read_json(project / "data/drift/r2.json")["shards"]
    sizes = {name: count_rows_and_tokens(project / "data/rollouts/r1" / name)[0] for name in measured}
    counts = {name: shard["responses"] for name, shard in measured.items()}
    assert set(counts.values()) - {4}, "some need more than the first few"
    assert sum(counts.values()) == len(scored)
    drifts = {
        name: Drift(shard["drift"], shard["margin"] / 2, shard["effective_sample_size"], 1, shard["responses"])
        for name, shard in measured.items()
    }
    settings = policy(policy="fraction", fraction=0.5)
    assert all(counts[name] == sizes[name] for name in find_undecided(settings, drifts))
    assert {name for name, shard in measured.items() if not shard["kept"]} == choose_stale(settings, drifts)
