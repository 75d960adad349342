"""Training on several processes against training on one: the same weights and history, however packs are shared."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engines.fake import BigramEngine
from pipeline.errors import ModelError, SettingsError
from pipeline.models.open import open_student
from pipeline.models.packing import plan_packs, share_packs
from pipeline.models.record import record_model
from pipeline.settings.machine import Machine
from pipeline.settings.models import EngineSettings, Training
from pipeline.settings.recipe import load_recipe
from pipeline.training.fit import fit_student
from pipeline.training.processes import run_on_devices
from pipeline.training.rows import Rows
from pipeline.training.run import Run
from pipeline.training.states import list_states
from tests import tiny_models, tiny_shards


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    made = [tiny_models.bigram(root / name, seed, sharpness=0.5) for seed, name in enumerate(("student", "teacher"))]
    student, teacher = (BigramEngine(record_model(str(one)), EngineSettings(engine="fake")) for one in made)
    return tiny_shards.write(root / "shards", student, teacher, [40])


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request, tmp_path_factory):
    return record_model(str(tiny_models.qwen3(tmp_path_factory.mktemp("model") / "qwen3", tied=request.param)))


def run(sources, state, **machine) -> Run:
    how = Training(steps=2, batch=8, learning_rate=1e-2, save_every=1)
    rows = Rows(sources)
    machine = Machine(device="cpu", train_tokens=64, **machine)
    return Run(load_recipe("topk_reverse_kl"), rows, how, machine, state, held_out=Rows(sources))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_take_the_steps_of_one(sources, model, tmp_path, strategy):
    """Weights, loss, gradient norm and validation KL, but for the rounding of sums that are taken in another order."""
    alone = fit_student(open_student(model), run(sources, tmp_path / "alone"))
    both = fit_student(open_student(model), run(sources, tmp_path / "both", devices=2, strategy=strategy))
    start = open_student(model).state_dict()
    for name, expected in alone.student.state_dict().items():
        torch.testing.assert_close(both.student.state_dict()[name], expected, rtol=1e-3, atol=2e-5)
        assert (expected - start[name]).abs().max() > 1e-3
    for found, expected in ((both.history, alone.history), (both.validation, alone.validation)):
        assert len(found) == len(expected) == 2
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_on_two_processes_goes_on_from_its_last_state(sources, model, tmp_path, strategy):
    """The last state deleted, the one before is gone on from: as if nothing had happened."""
    whole = run(sources, tmp_path, devices=2, strategy=strategy)
    undisturbed = fit_student(open_student(model), whole)
    list_states(tmp_path)[-1].unlink()
    resumed = fit_student(open_student(model), whole)
    assert resumed.history == undisturbed.history
    for name, expected in undisturbed.student.state_dict().items():
        assert torch.equal(resumed.student.state_dict()[name], expected)


def place(answer: int) -> list[int]:
    return [answer, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])]


def fail_on_one() -> None:
    if os.environ["RANK"] == "1":
        raise ValueError("rank 1 has had enough")
    torch.zeros(1)


@pytest.mark.slow
def test_every_process_knows_its_place_and_the_first_one_answers():
    assert run_on_devices(place, 2, 7) == [7, 0, 2]


@pytest.mark.slow
def test_what_fails_on_one_process_fails_as_a_whole():
    with pytest.raises(Exception, match="rank 1 has had enough"):
        run_on_devices(fail_on_one, 2)


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=8),
    devices=st.integers(1, 4),
    tokens=st.integers(10, 120),
)
def test_every_device_gets_as_many_packs_and_no_sequence_is_lost(lengths, devices, tokens):
    lengths = lengths * devices
    packs = plan_packs(lengths, tokens)
    shared = share_packs(packs, devices)
    assert len(shared) % devices == 0
    assert all(row for pack in shared for row in pack)
    assert all(shared)
    assert sorted(index for pack in shared for row in pack for index in row) == list(range(len(lengths)))
    assert len(shared) < len(packs) + devices
    assert share_packs(packs, 1) == packs


def test_the_weights_of_a_step_sum_to_one_over_all_devices(sources):
    packs = tiny_shards.loader(Rows(sources), 1, 8, tokens=64, seed=0, devices=4).step(0)
    assert len(packs) % 4 == 0
    for name in ("token_mean", "sequence_mean"):
        assert np.sum([inputs.shares[name].sum() for _, inputs in packs]) == pytest.approx(1)


def test_a_batch_that_cannot_be_shared_is_refused(sources, tmp_path, model):
    with pytest.raises(SettingsError, match="8 sequences cannot be shared by 3 devices"):
        fit_student(open_student(model), run(sources, tmp_path, devices=3))


def test_trainable_16_bit_parameters_are_refused_and_frozen_ones_are_not(sources, tmp_path, model):
    student = open_student(model)
    rounded = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    student.register_parameter("rounded", rounded)
    with pytest.raises(ModelError, match=r"rounded is to be trained and is torch.bfloat16"):
        fit_student(student, run(sources, tmp_path))
    rounded.requires_grad_(False)
    assert fit_student(student, run(sources, tmp_path)).history


@pytest.mark.slow
def test_a_bf16_checkpoint_moves_at_a_small_learning_rate(sources, tmp_path, model):
    """50 steps at 2e-6: bf16 parameters would stay where they are but for a few per cent."""
    open_student(model).transformer.bfloat16().save_pretrained(tmp_path / "bf16")
    tiny_models.tokenizer().save_pretrained(tmp_path / "bf16")
    rounded = record_model(str(tmp_path / "bf16"))
    how = Training(steps=50, batch=8, learning_rate=2e-6)
    machine = Machine(device="cpu")
    fitted = fit_student(
        open_student(rounded), Run(load_recipe("topk_reverse_kl"), Rows(sources), how, machine, tmp_path / "state")
    )
    before, after = (
        torch.cat([parameter.detach().flatten() for parameter in student.parameters()])
        for student in (open_student(rounded), fitted.student)
    )
    assert (before != after).float().mean() > 0.99
