"""Every causal architecture of transformers is computed as a plain forward pass computes it, or refused in words.

Tiny random models; sequences go through packs as their probe says, and prompts are answered by the engine `hf`. The
oracle is the model itself, one whole sequence at a time, without padding, cache or our head.
"""

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from pipeline.engines.engine import Request
from pipeline.engines.hf import HfEngine
from pipeline.errors import ModelError
from pipeline.head.answer import Ask
from pipeline.models.packing import Layout, build_pack, plan_batches
from pipeline.models.probe import Probe, probe_student
from pipeline.models.record import Model
from pipeline.models.student import Student
from pipeline.settings.machine import Machine
from pipeline.settings.models import Sampling
from tests import architectures
from tests.architectures import VOCABULARY, UnbuildableError
from tests.campaigns import trials

EXPECTED = {
    "llama": Probe(Layout.PACKED, "sdpa"), "gemma2": Probe(Layout.PACKED, "eager"),
    "gpt_oss": Probe(Layout.PADDED, "eager"), "qwen3_next": Probe(Layout.PADDED, "sdpa"),
    "lfm2": Probe(Layout.PADDED, "sdpa"), "mamba2": Probe(Layout.PADDED, "eager"),
    "falcon": Probe(Layout.PADDED, "sdpa"), "bart": Probe(Layout.PADDED, "sdpa"),
    "deepseek_v4": Probe(Layout.PADDED, "eager"), "recurrent_gemma": None, "llama4_text": None, "roberta": None,
}  # fmt: skip
"""What some are known to bear; None are refused."""

ALL = architectures.list_architectures()
SOME = sorted({*(ALL[number] for number in trials(len(ALL))), *EXPECTED})


def opened(name: str) -> Student | None:
    """The architecture as `open_student` would leave it; None where it is refused."""
    try:
        student = Student(architectures.build(name))
        student.transformer.generation_config = GenerationConfig(eos_token_id=[2])
        student.layout = probe_student(student, name, VOCABULARY).layout
    except UnbuildableError as error:
        pytest.skip(f"no tiny {name}: {error}")
    except ModelError:  # in words
        return None
    return student.eval()


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in EXPECTED])
def test_what_an_architecture_bears_is_found_out(name):
    row, expected = architectures.examine(name), EXPECTED[name]
    assert row.probe == expected
    assert bool(row.refused) == (expected is None)


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SOME)
def test_an_architecture_is_computed_as_it_computes_itself_or_refused(name):
    student = opened(name)
    if student is None:
        return
    random = np.random.default_rng(2)
    prompts = [random.integers(3, VOCABULARY, size=length) for length in (2, 9, 4, 14, 9)]
    responses = [random.integers(3, VOCABULARY, size=length) for length in (3, 6, 8, 20, 6)]
    assert_same_gradient(student, prompts, responses)
    assert_same_distribution(student, prompts)


def assert_same_gradient(student: Student, prompts: list[np.ndarray], responses: list[np.ndarray]) -> None:
    """Log-probabilities of responses and the gradient of their sum, in packs and one by one."""
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    found = {}
    for rows in plan_batches(lengths, 48, student.layout):
        pack = build_pack(rows, prompts, responses)
        sampled = student(pack, Ask(pack.sampled_ids, pack.sampled_ids[:, None])).sampled
        sampled.sum().backward()
        found |= zip(pack.sequences, sampled.detach().split([len(responses[i]) for i in pack.sequences]), strict=True)
    in_packs = gradient(student)
    for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        logprobs = alone(student, prompt, response)
        logprobs.sum().backward()
        torch.testing.assert_close(found[index], logprobs.detach(), rtol=1e-3, atol=1e-3)
    one_by_one = gradient(student)
    assert (in_packs - one_by_one).norm() <= 1e-3 * one_by_one.norm()


def assert_same_distribution(student: Student, prompts: list[np.ndarray]) -> None:
    """What the engine notes of the tokens that it writes, and what the model says of them."""
    engine = HfEngine.__new__(HfEngine)
    engine.device, engine.student, engine.machine, engine.context = torch.device("cpu"), student, Machine(), None
    engine.model = Model.model_construct(
        name=student.architecture, eos_ids=(2,), vocabulary=VOCABULARY, tokens=VOCABULARY
    )
    requests = [Request(prompt.tolist(), seed) for seed, prompt in enumerate(prompts)]
    for prompt, response in zip(prompts, engine.generate(requests, Sampling(max_tokens=5)), strict=True):
        with torch.no_grad():
            expected = alone(student, prompt, response.ids.astype(np.int64))
        torch.testing.assert_close(torch.from_numpy(response.behaviour_logprobs), expected, rtol=2e-3, atol=2e-3)


def alone(student: Student, prompt: np.ndarray, response: np.ndarray) -> torch.Tensor:
    """The model's own log-probabilities of a response, [T]."""
    ids = torch.from_numpy(np.concatenate([prompt, response]))[None]
    logits = student.transformer(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.from_numpy(response)[:, None])[:, 0]


def gradient(student: Student) -> torch.Tensor:
    """The gradient of every parameter, which is then cleared."""
    parts = [torch.zeros(1), *(p.grad.flatten() for p in student.parameters() if p.grad is not None)]
    student.zero_grad()
    return torch.cat(parts)
