"""A shard of rollouts against what the engine itself writes, however many responses are held at once."""

import pytest

from pipeline.engines.engine import Request
from pipeline.engines.identity import identify_engine
from pipeline.engines.open import OnDemand
from pipeline.errors import ModelError
from pipeline.models.record import record_model
from pipeline.models.templates import render_prompt
from pipeline.rollouts import write
from pipeline.rollouts.write import Author, Writing, derive_seed, identify_rollouts, write_rollouts
from pipeline.settings.machine import Machine
from pipeline.settings.models import EngineSettings, Sampling
from pipeline.storage.prompts import Prompt, write_prompts
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.shards import read_shard
from tests import tiny_models

SAMPLES, TOP_K = 3, 5


@pytest.mark.parametrize("at_once", [1, 4, 4096])
def test_every_row_is_the_engines_own_response(monkeypatch, tmp_path, at_once):
    monkeypatch.setattr(write, "AT_ONCE", at_once)
    model, engine = record_model(str(tiny_models.bigram(tmp_path / "model"))), EngineSettings(engine="fake")
    asked = [Prompt(name, "all", ({"role": "user", "content": f"{name}+1"},), None, None, 0, "opd") for name in "24680"]
    write_prompts(tmp_path / "prompts", {}, {}, asked)
    sampling = Sampling(max_tokens=12)
    writing = Writing(model, engine, sampling, SAMPLES, seed=7)
    identity = identify_rollouts("refresh", 1, tmp_path / "prompts", writing, round="r1")
    with OnDemand(model, engine, Machine()) as opened:
        write_rollouts(tmp_path / "rollouts", identity, asked, Author(opened, "student", TOP_K))
        rows = read_shard(tmp_path / "rollouts", ROLLOUTS).to_pylist()
        assert [(row["prompt_id"], row["sample"]) for row in rows] == [
            (prompt.prompt_id, sample) for prompt in asked for sample in range(SAMPLES)
        ]
        for row in rows:
            seed = derive_seed(7, "r1", row["prompt_id"], row["sample"])
            (response,) = opened.open().generate([Request(row["prompt_ids"], seed)], sampling, TOP_K)
            assert response.topk_ids is not None
            assert row["response_ids"] == response.ids.tolist()
            assert row["behaviour_topk_ids"] == response.topk_ids.tolist()
    prompt_ids = [render_prompt(model.load_tokenizer(), prompt.messages) for prompt in asked for _ in range(SAMPLES)]
    assert [row["prompt_ids"] for row in rows] == prompt_ids
    assert len({row["rollout_id"] for row in rows}) == len(rows)


def test_no_prompts_give_a_shard_without_rows(tmp_path):
    model, engine = record_model(str(tiny_models.bigram(tmp_path / "model"))), EngineSettings(engine="fake")
    identity = {"sampling": {"max_tokens": 4}, "rows": {"samples": 1}, "seed": 0, "engine": {"engine": "fake"}}
    with OnDemand(model, engine, Machine()) as opened:
        write_rollouts(tmp_path / "rollouts", identity, [], Author(opened, "student"))
    assert read_shard(tmp_path / "rollouts", ROLLOUTS).num_rows == 0


def test_an_adapter_that_is_not_there_is_named_as_the_settings_name_it(tmp_path):
    with pytest.raises(ModelError, match=r"`adapter: nosuch` holds no LoRA adapter.*adapter_config\.json is missing"):
        identify_engine(EngineSettings(adapter="nosuch"))
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "adapter" in identify_engine(EngineSettings(adapter=str(tmp_path)))
