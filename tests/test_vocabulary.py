"""A model with more output rows than its tokenizer has tokens: these count, from the first draw on.

What the pipeline stores and learns is held against full logits over the rows of the tokenizer's ids.
"""

import pytest
import torch

from pipeline.engines.hf import HfEngine
from pipeline.models.open import open_student
from pipeline.models.record import record_model
from pipeline.objectives.objective import Objective
from pipeline.settings.machine import Machine
from pipeline.settings.models import EngineSettings
from pipeline.settings.recipe import load_recipe
from pipeline.training.rows import Rows
from tests import tiny_models, tiny_shards

PADDING, TOP_K = 9, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.qwen3(tmp_path_factory.mktemp("model") / "padded", padding=PADDING)


@pytest.fixture(scope="module")
def sources(folder, tmp_path_factory):
    """What the model writes and says of it."""
    machine = Machine(device="cpu")
    with HfEngine(record_model(str(folder)), EngineSettings(), machine) as engine:
        return tiny_shards.write(tmp_path_factory.mktemp("shards"), engine, engine, [24], TOP_K)


def full_logprobs(student, row) -> torch.Tensor:
    """[T, tokens], of the positions that predict the response."""
    ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
    logits = student.transformer(input_ids=ids, use_cache=False).logits[0, :, :-PADDING]
    return logits.log_softmax(-1)[len(row["prompt_ids"]) - 1 : -1]


def test_a_record_tells_the_tokenizers_tokens_from_the_models_rows(folder):
    model = record_model(str(folder))
    assert model.vocabulary == model.tokens + PADDING
    assert model.load_tokenizer().decode([5, model.vocabulary - 1]) == model.load_tokenizer().decode([5])


def test_no_id_behind_the_tokenizer_is_drawn_or_kept_or_counted(folder, sources):
    model = record_model(str(folder))
    student = open_student(model, torch.float64).eval()
    drawn, kept = set(), set()
    for row in tiny_shards.stored(sources).values():
        drawn |= set(row["response_ids"])
        with torch.no_grad():
            logprobs = full_logprobs(student, row)
        for position, token in enumerate(row["response_ids"]):
            ids, values = row["support_ids"][position], row["support_logprobs"][position]
            kept |= set(ids)
            expected = logprobs[position]
            assert row["sampled_logprobs"][position] == pytest.approx(expected[token].item(), abs=1e-4)
            assert values == pytest.approx(expected[ids].tolist(), rel=2**-11, abs=1e-4)
            assert set(ids) == set(expected.topk(TOP_K).indices.tolist())
    assert max(drawn) < model.tokens
    assert max(kept) < model.tokens


def test_a_steps_gradient_is_that_of_full_logits(folder, sources):
    """A student that differs from the writer, in fp64 but for the stored columns."""
    student = open_student(record_model(str(folder)), torch.float64).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    objective = Objective(load_recipe("topk_reverse_kl"))
    losses, slow = [], []
    for pack, inputs in tiny_shards.loader(Rows(sources), 1, 24, tokens=64).step(0):
        losses.append(objective.loss(student(pack, objective.ask(inputs)), inputs)[0])
    for row in tiny_shards.stored(sources).values():
        logprobs = full_logprobs(student, row)
        for position, now in enumerate(logprobs):
            ids = row["support_ids"][position]
            target = torch.tensor([*row["support_logprobs"][position], row["tail_logprobs"][position]]).double()
            outside = torch.ones(len(now), dtype=torch.bool).index_fill(0, torch.tensor(ids), False)
            own = torch.cat([now[ids], now[outside].logsumexp(-1, keepdim=True)])
            slow.append((own.exp() * (own - target.log_softmax(-1))).sum())
    found, expected = (
        torch.cat([one.flatten() for one in torch.autograd.grad(loss, list(student.parameters()))])
        for loss in (torch.stack(losses).sum(), torch.stack(slow).mean())
    )
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(torch.stack(losses).sum(), torch.stack(slow).mean(), rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
