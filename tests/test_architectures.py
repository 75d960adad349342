"""The head against transformers' own logits, for architectures that do something to them behind the output layer."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.head.answer import Ask
from pipeline.models.packing import build_pack
from pipeline.models.student import Student

SIZE = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OF_LOGITS = {
    "llama": {},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "hyperclovax": {"logits_scaling": 4.0},
    "gemma2": {"final_logit_softcapping": 0.5},
}


@pytest.mark.parametrize("architecture", OF_LOGITS)
def test_a_student_answers_with_its_architectures_own_logits(architecture):
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **SIZE, **OF_LOGITS[architecture])
    transformer = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.mul_(4)
    sampled = torch.arange(5, 12)
    pack = build_pack([[0]], [torch.arange(3, 5).numpy()], [sampled.numpy()])
    with torch.no_grad():
        found = Student(transformer)(pack, Ask(pack.sampled_ids, pack.sampled_ids[:, None] + 1))
        logits = transformer(input_ids=pack.input_ids, position_ids=pack.position_ids, use_cache=False).logits[0]
    logprobs = logits[pack.predicts].log_softmax(-1)
    assert logprobs.std() > 1e-2
    torch.testing.assert_close(found.sampled, logprobs.gather(-1, sampled[:, None])[:, 0])
    torch.testing.assert_close(found.logprobs, logprobs.gather(-1, sampled[:, None] + 1))
