"""A student with LoRA against the model that peft makes of it: values and gradients from its full logits.

The head computes from matrices, not by calling the output layer, so an adapter on that layer is what can be missed.
"""

import copy

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model

from pipeline.engines.fake import BigramEngine
from pipeline.errors import ModelError
from pipeline.head import layer
from pipeline.head.answer import Ask
from pipeline.models.open import open_student
from pipeline.models.packing import build_pack
from pipeline.models.record import record_model
from pipeline.models.student import Student
from pipeline.settings.machine import Machine
from pipeline.settings.models import EngineSettings, Training
from pipeline.settings.recipe import load_recipe
from pipeline.training.fit import fit_student
from pipeline.training.rows import Rows
from pipeline.training.run import Run
from tests import tiny_models, tiny_shards

TARGETS = {"inside": ["q_proj", "down_proj"], "head": ["lm_head"], "both": ["q_proj", "lm_head"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    made = {str(tied): tiny_models.qwen3(root / str(tied), tied=tied) for tied in (True, False)}
    return made | {"bigram": tiny_models.bigram(root / "bigram")}


def opened(folders, name="True", dtype=torch.float64):
    return open_student(record_model(str(folders[name])), dtype).transformer


def lora(targets, seed=0, **more) -> LoraConfig:
    torch.manual_seed(seed)
    return LoraConfig(r=3, lora_alpha=5, target_modules=targets, init_lora_weights=False, **more)


@pytest.fixture
def pack():
    prompts, responses = (
        [torch.arange(4, 7).numpy(), torch.arange(5, 6).numpy()],
        [
            torch.arange(8, 13).numpy(),
            torch.arange(9, 12).numpy(),
        ],
    )
    return build_pack([[0, 1]], prompts, responses)


def ask(pack) -> Ask:
    return Ask(pack.sampled_ids, torch.stack([pack.sampled_ids + 1, pack.sampled_ids + 3], dim=1), top_k=2)


def from_logits(transformer, pack, asked) -> list[torch.Tensor]:
    """What is asked, from all log-probabilities of the model's own forward."""
    logits = transformer(input_ids=pack.input_ids, position_ids=pack.position_ids, use_cache=False).logits
    logprobs = logits.flatten(0, 1)[pack.predicts].log_softmax(-1)
    tail = logprobs.scatter(-1, asked.ids, -torch.inf).logsumexp(-1)
    sampled = logprobs.gather(-1, asked.sampled_ids[:, None])[:, 0]
    return [sampled, logprobs.gather(-1, asked.ids), tail, logprobs.topk(2, dim=-1).values]


def gradients(transformer, answered) -> dict[str, torch.Tensor]:
    """Of a sum in which every number counts differently, by the trainable parameters."""
    numbers = torch.cat([part.flatten() for part in answered])
    transformer.zero_grad()
    (numbers * torch.arange(1, 1 + len(numbers))).sum().backward()
    return {name: one.grad.clone() for name, one in transformer.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("tied", ["True", "False"])
@pytest.mark.parametrize("is_wrapped", [True, False])
@pytest.mark.parametrize("where", TARGETS)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_a_student_with_lora_answers_and_learns_as_its_full_logits_do(
    monkeypatch, folders, pack, where, is_wrapped, tied
):
    monkeypatch.setattr(layer, "CHUNK", 3 * 38)
    transformer, config = opened(folders, tied), lora(TARGETS[where])
    if is_wrapped:
        transformer = get_peft_model(transformer, config).double()
    else:
        transformer.add_adapter(config)
        transformer.double()
    student, asked = Student(transformer), ask(pack)
    answer = student(pack, asked)
    found = [answer.sampled, answer.logprobs, answer.tail, answer.top_logprobs]
    expected = from_logits(transformer, pack, asked)
    torch.testing.assert_close(found, expected)
    learned = gradients(transformer, expected)
    assert set(learned) == {name for name, one in transformer.named_parameters() if one.requires_grad}
    assert all(one.abs().max() > 1e-6 for one in learned.values())
    assert any("lm_head" in name for name in learned) == (where != "inside")
    torch.testing.assert_close(gradients(transformer, found), learned)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_adapters_on_the_head_add_up_and_can_be_switched_off(folders, pack):
    transformer = opened(folders, "False")
    transformer.add_adapter(lora(["lm_head"]), "one")
    transformer.add_adapter(lora(["lm_head"], seed=1), "two")
    transformer.double()
    student, asked, seen = Student(transformer), ask(pack), []
    for active in (["one"], ["two"], ["one", "two"], None):
        transformer.disable_adapters() if active is None else transformer.set_adapter(active)
        seen.append(student(pack, asked).sampled)
        torch.testing.assert_close(seen[-1], from_logits(transformer, pack, asked)[0])
    assert all((one - other).abs().max() > 1e-3 for one in seen for other in seen if one is not other)


def test_an_adapter_of_another_precision_is_computed_in_its_own(folders, pack):
    """A bf16 base that stays as it is, and fp32 that learns: closer to the exact values than peft, which rounds."""
    exact = opened(folders, "False", torch.float64)
    exact.add_adapter(lora(["lm_head"]))
    mixed = copy.deepcopy(exact)
    for name, one in exact.named_parameters():
        one.data = one.data.float().double() if "lora" in name else one.data.bfloat16().double()
    for name, one in mixed.named_parameters():
        one.data = one.data.float() if "lora" in name else one.data.bfloat16()
    asked, student = ask(pack), Student(mixed)
    expected, peft = (from_logits(model, pack, asked)[0].detach() for model in (exact.double(), mixed))
    answer = student(pack, asked)
    assert (answer.sampled - expected).abs().max() <= 1.05 * (peft - expected).abs().max()
    answer.sampled.sum().backward()
    assert all(one.grad.dtype == torch.float32 for name, one in mixed.named_parameters() if "lora" in name)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (LoraConfig(target_modules=["lm_head"], lora_dropout=0.1), "lora_dropout"),
        (LoraConfig(target_modules=["lm_head"], lora_bias=True), "lora_bias"),
        (LoraConfig(target_modules=["lm_head"], use_dora=True), "Dora"),
        (LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]), "ModulesToSaveWrapper"),
        (PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2), "prompt"),
    ],
)
@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed")
def test_what_the_head_does_not_compute_is_refused(folders, config, named):
    with pytest.raises(ModelError, match=named):
        Student(get_peft_model(opened(folders, "False", torch.float32), config))


def test_training_moves_the_adapters_and_nothing_else(folders, tmp_path):
    engine = BigramEngine(record_model(str(folders["bigram"])), EngineSettings(engine="fake"))
    rows = Rows(tiny_shards.write(tmp_path / "shards", engine, engine, [16]))
    transformer = get_peft_model(opened(folders, "False", torch.float32), lora(["q_proj", "lm_head"]))
    before = copy.deepcopy(transformer.state_dict())
    settings, machine = Training(steps=2, batch=8, learning_rate=1e-2), Machine(device="cpu")
    run = Run(load_recipe("topk_reverse_kl"), rows, settings, machine, tmp_path / "state")
    after = fit_student(Student(transformer), run).student.transformer.state_dict()
    moved = {name for name, one in after.items() if not torch.equal(one, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert any("lm_head" in name for name in moved)
