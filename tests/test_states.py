"""Training states: a damaged one is never gone on from, dropout draws the same again, and nothing in a state is run.

A run that was stopped and goes on is compared bit for bit with its undisturbed twin.
"""

import pickle
import shutil
from typing import Literal

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from pipeline.engines.fake import BigramEngine
from pipeline.errors import SettingsError
from pipeline.models.open import open_student
from pipeline.models.record import record_model
from pipeline.models.student import Student
from pipeline.settings.machine import Machine
from pipeline.settings.models import EngineSettings, Training
from pipeline.settings.recipe import load_recipe
from pipeline.training import fit
from pipeline.training.fit import fit_student
from pipeline.training.module import Distillation
from pipeline.training.rows import Rows
from pipeline.training.run import Run
from pipeline.training.states import WholeFiles, find_state, list_states, read_step
from tests import tiny_models, tiny_shards
from tests.campaigns import trials

STEPS = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return record_model(str(tiny_models.bigram(tmp_path_factory.mktemp("models") / "student", 2)))


@pytest.fixture(scope="module")
def sources(model, tmp_path_factory):
    teacher = record_model(str(tiny_models.bigram(tmp_path_factory.mktemp("models") / "teacher", 1)))
    writer, scorer = (BigramEngine(each, EngineSettings(engine="fake")) for each in (model, teacher))
    return tiny_shards.write(tmp_path_factory.mktemp("shards"), writer, scorer, [24])


def run(sources, state, device: Literal["cpu", "cuda"] = "cpu", **more) -> Run:
    settings = Training(**{"steps": STEPS, "batch": 8, "learning_rate": 1e-2, "save_every": 2, **more})
    return Run(load_recipe("topk_reverse_kl"), Rows(sources), settings, Machine(device=device, train_tokens=64), state)


def weights(student: Student) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in student.state_dict().values()])


@pytest.fixture(scope="module")
def undisturbed(model, sources, tmp_path_factory):
    """A finished run, and the folder with its last two states."""
    state = tmp_path_factory.mktemp("state")
    fitted = fit_student(open_student(model), run(sources, state))
    assert [read_step(path) for path in list_states(state)] == [2, 4]
    return weights(fitted.student), state


def resume(model, sources, state, undisturbed) -> None:
    assert torch.equal(weights(fit_student(open_student(model), run(sources, state)).student), undisturbed[0])


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "both"])
def test_a_damaged_state_is_set_aside_and_the_one_before_is_taken(
    damage, model, sources, undisturbed, tmp_path, caplog, monkeypatch
):
    state = shutil.copytree(undisturbed[1], tmp_path / "state")
    for path in list_states(state)[0 if damage == "both" else 1 :]:
        spoil(path, damage, np.random.default_rng(0))
    taken = []
    original = fit.fit_share
    monkeypatch.setattr(fit, "fit_share", lambda *given: taken.append(given[2]) or original(*given))
    resume(model, sources, state, undisturbed)
    assert [path and read_step(path) for path in taken] == [None if damage == "both" else 2]
    assert "is not as it was written: set aside as step-00000004." in caplog.text


def spoil(path, damage, random) -> None:
    data = bytearray(path.read_bytes())
    place = int(random.integers(len(data)))
    match damage:
        case "cut":
            data = data[:place]
        case "emptied":
            data = bytearray()
        case _:
            data[place] ^= 1 << int(random.integers(8))
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.parametrize("trial", trials(60))
def test_whatever_happens_to_a_state_the_weights_are_those_of_an_undisturbed_run(
    trial, model, sources, undisturbed, tmp_path
):
    random = np.random.default_rng(trial)
    state = shutil.copytree(undisturbed[1], tmp_path / "state")
    for path in list_states(state)[-1 - trial % 2 :]:
        spoil(path, ["flipped", "cut", "emptied"][int(random.integers(3))], random)
    resume(model, sources, state, undisturbed)


def test_nothing_in_a_state_is_run(undisturbed, tmp_path):
    class Planted:
        def __reduce__(self):
            return (print, ("it ran",))

    WholeFiles().save_checkpoint({"state_dict": Planted()}, tmp_path / "step-00000001.making")
    with pytest.raises(pickle.UnpicklingError, match=r"(?i)weights.only"):
        WholeFiles().load_checkpoint(find_state(tmp_path))


def test_a_killed_save_leaves_nothing_behind(model, sources, tmp_path):
    (tmp_path / "step-00000001.making").write_bytes(b"half")
    fit_student(open_student(model), run(sources, tmp_path))
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".ckpt", ".ckpt"]


def with_dropout() -> Student:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=37, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.3, bos_token_id=0, eos_token_id=0)
    return Student(GPT2LMHeadModel(config))


def test_dropout_draws_in_a_resumed_run_what_it_draws_in_an_undisturbed_one(sources, tmp_path):
    whole = fit_student(with_dropout(), run(sources, tmp_path / "a"))
    torch.rand(7)  # whatever else was drawn meanwhile
    again = fit_student(with_dropout(), run(sources, tmp_path / "b"))
    assert torch.equal(weights(whole.student), weights(again.student))
    (last,) = list_states(tmp_path / "b")[1:]
    last.unlink()
    resumed = fit_student(with_dropout(), run(sources, tmp_path / "b"))
    assert resumed.history == whole.history
    assert torch.equal(weights(whole.student), weights(resumed.student))
    other = fit_student(with_dropout(), run(sources, tmp_path / "c", seed=1))
    assert not torch.equal(weights(whole.student), weights(other.student))


def test_weight_decay_leaves_norms_and_biases_alone(sources, tmp_path):
    module = Distillation(with_dropout(), run(sources, tmp_path, weight_decay=0.5))
    (optimizer,), _ = module.configure_optimizers()
    decayed = {id(one) for group in optimizer.param_groups if group["weight_decay"] for one in group["params"]}
    names = {name for name, one in module.student.named_parameters() if id(one) in decayed}
    assert {"transformer.transformer.wte.weight", "transformer.transformer.h.0.attn.c_attn.weight"} <= names
    assert not [name for name in names if "ln_" in name or name.endswith("bias")]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(module.student.parameters()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_not_passed_over(model, sources, tmp_path):
    with pytest.raises(SettingsError, match=r"`device: cuda`.*no GPU"):
        fit_student(open_student(model), run(sources, tmp_path, device="cuda"))
