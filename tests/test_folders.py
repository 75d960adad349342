"""What lies in a checkpoint's folder besides weights and tokenizer changes no number, or is refused."""

import json

import numpy as np
import pytest

from pipeline.engines.engine import Request, ScoreRequest
from pipeline.engines.open import open_engine
from pipeline.head.support import Support
from pipeline.models.open import open_student
from pipeline.models.record import record_model
from pipeline.settings.machine import Machine
from pipeline.settings.models import EngineSettings, Sampling
from tests import tiny_models

HOSTILE = {
    "repetition_penalty": 1.3, "encoder_repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "min_new_tokens": 8,
    "min_length": 12, "suppress_tokens": [5, 6], "begin_suppress_tokens": [7], "bad_words_ids": [[8]],
    "sequence_bias": [[[9], -10.0]], "forced_bos_token_id": 4, "forced_eos_token_id": 2, "guidance_scale": 1.5,
    "exponential_decay_length_penalty": [2, 1.5], "num_beams": 3, "stop_strings": ["a"], "penalty_alpha": 0.6,
    "do_sample": True, "temperature": 0.3, "top_k": 4, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.5, "max_length": 3,
    "max_time": 1e-6, "use_cache": False, "num_return_sequences": 2, "return_dict_in_generate": True,
    "output_scores": True, "renormalize_logits": True, "prompt_lookup_num_tokens": 3, "max_new_tokens": 1,
}  # fmt: skip
"""Every generation setting that could move a response, with a value that would."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.qwen3(tmp_path_factory.mktemp("models") / "model")


def write(folder, settings: dict) -> tuple[list[list[int]], float]:
    """Responses of a folder's model, and how far the noted log-probabilities are from those that it scores."""
    path = folder / "generation_config.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | settings))
    try:
        model = record_model(str(folder))
        with open_engine(model, EngineSettings(engine="hf"), Machine(device="cpu")) as engine:
            requests = [Request([3, 4, 5, 6][: 2 + seed % 3], seed) for seed in range(5)]
            responses = engine.generate(requests, Sampling(max_tokens=10))
            scored = engine.score(
                [ScoreRequest(r.prompt_ids, w.ids) for r, w in zip(requests, responses, strict=True)], Support(2)
            )
    finally:
        path.write_text(before)
    noted = np.concatenate([response.behaviour_logprobs for response in responses])
    return [response.ids.tolist() for response in responses], float(np.abs(noted - scored.sampled_logprobs).max())


@pytest.fixture(scope="module")
def clean(folder):
    return write(folder, {})


@pytest.mark.parametrize("name", HOSTILE)
def test_no_generation_setting_of_the_folder_acts(name, folder, clean):
    responses, difference = write(folder, {name: HOSTILE[name]})
    assert responses == clean[0]
    assert difference < 1e-4


def test_a_checkpoint_passes_on_what_ends_a_response_and_nothing_else(folder, tmp_path):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3], "repetition_penalty": 1.3}))
    model = record_model(str(folder))
    assert set(model.eos_ids) >= {2, 3}
    open_student(model).transformer.save_pretrained(tmp_path)
    passed_on = json.loads((tmp_path / "generation_config.json").read_text())
    assert sorted(passed_on.pop("eos_token_id")) == sorted(model.eos_ids)
    assert set(passed_on) <= {"transformers_version", "_from_model_config"}
