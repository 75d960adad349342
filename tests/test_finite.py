"""A number that is none ends the stage in words: in weights, in what an engine gives, in a loss, at the end of a run.

Each place gets one NaN or infinity by hand, and has to name it.
"""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.engines.checked import CheckedEngine
from pipeline.engines.engine import Request, Response, ScoreRequest
from pipeline.engines.fake import BigramEngine
from pipeline.errors import DivergedError, EngineError, ModelError
from pipeline.head.support import Support
from pipeline.models.open import open_student
from pipeline.models.record import record_model
from pipeline.objectives import divergences
from pipeline.objectives.outcomes import Outcomes
from pipeline.settings.machine import Machine
from pipeline.settings.models import EngineSettings, Sampling, Training
from pipeline.settings.recipe import load_recipe
from pipeline.storage.ragged import Ragged
from pipeline.training.fit import fit_student
from pipeline.training.module import Distillation
from pipeline.training.rows import Rows
from pipeline.training.run import Run
from pipeline.training.states import list_states, read_step
from tests import tiny_models, tiny_shards

FAKE = EngineSettings(engine="fake")
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: tiny_models.bigram(root / name, seed) for seed, name in enumerate(("teacher", "student"))}


@pytest.fixture(scope="module")
def sources(folders, tmp_path_factory):
    writer, scorer = (BigramEngine(record_model(str(folders[name])), FAKE) for name in ("student", "teacher"))
    return tiny_shards.write(tmp_path_factory.mktemp("shards"), writer, scorer, [16])


def run(sources, state, **more) -> Run:
    settings = Training(**{"steps": 4, "batch": 8, "learning_rate": 1e-2, "save_every": 1, **more})
    machine = Machine(device="cpu", train_tokens=64)
    return Run(load_recipe("topk_reverse_kl"), Rows(sources), settings, machine, state)


@pytest.mark.parametrize("value", [NAN, INF])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    folder = tiny_models.qwen3(tmp_path / "model")
    spoil(folder, value)
    with pytest.raises(ModelError, match=r"mlp\.up_proj\.weight.*no finite numbers in float32"):
        open_student(record_model(str(folder)))


def spoil(folder, value):
    """Change one weight of a model's file."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


class Broken:
    """A bigram engine, one of whose numbers is changed on the way out."""

    def __init__(self, engine, column: str, place: int, value: float):
        self.engine, self.column, self.place, self.value = engine, column, place, value

    def generate(self, requests, sampling, top_k=0, progress=None) -> list[Response]:
        first, second, *others = self.engine.generate(requests, sampling, top_k, progress)
        return [first, replace(second, **{self.column: self._spoilt(getattr(second, self.column))}), *others]

    def score(self, requests, support, progress=None):
        scores = self.engine.score(requests, support, progress)
        values = getattr(scores, self.column)
        if isinstance(values, Ragged):
            return replace(scores, **{self.column: Ragged(self._spoilt(values.values), values.offsets)})
        return replace(scores, **{self.column: self._spoilt(values)})

    def _spoilt(self, values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[self.place] = self.value
        return values


def broken(folders, column: str, place: int, value: float) -> CheckedEngine:
    model = record_model(str(folders["teacher"]))
    return CheckedEngine(Broken(BigramEngine(model, FAKE), column, place, value), model, FAKE)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("column", ["behaviour_logprobs", "sampling_logprobs"])
@pytest.mark.parametrize("value", [NAN, -INF])
def test_a_response_whose_log_probability_is_no_number_is_refused(folders, column, value):
    requests = [Request([3, 4], seed) for seed in range(3)]
    with pytest.raises(EngineError, match=r"response 2 of 3, token 1\).*dtype: float32"):
        broken(folders, column, 0, value).generate(requests, Sampling(max_tokens=4, temperature=0.5))


@pytest.mark.parametrize(
    ("column", "place", "value", "where"),
    [
        ("sampled_logprobs", 3, NAN, "response 2 of 2, token 2"),
        ("sampled_logprobs", 1, -INF, "response 1 of 2, token 2"),
        ("tail_logprobs", 2, NAN, "response 2 of 2, token 1"),
        ("tail_logprobs", 2, INF, "response 2 of 2, token 1"),
        ("logprobs", 4 * 3 + 1, NAN, "response 2 of 2, token 2"),
        ("entropies", 0, NAN, "response 1 of 2, token 1"),
    ],
)
def test_a_score_that_is_no_number_is_refused(folders, column, place, value, where):
    requests = [ScoreRequest([3], np.array([5, 6])), ScoreRequest([4], np.array([7, 8, 9]))]
    with pytest.raises(EngineError, match=re.escape(where)):
        broken(folders, column, place, value).score(requests, Support(4))


def test_an_empty_tail_is_a_number(folders):
    request = ScoreRequest([3], np.array([5, 6]))
    scores = broken(folders, "tail_logprobs", 0, -INF).score([request], Support(4))
    assert scores.tail_logprobs[0] == -INF


@pytest.mark.parametrize(
    "name", ["reverse_kl", "forward_kl", "stop_gradient_reverse_kl", "student_weighted_reverse_kl"]
)
@pytest.mark.parametrize("side", ["student", "target"])
def test_a_divergence_of_no_number_is_none(name, side):
    logs = torch.tensor([[0.5, 0.3]]).log()
    sides = {each: Outcomes(logs.clone(), torch.tensor([0.2]).log()) for each in ("student", "target")}
    sides[side].logprobs[0, 0] = NAN
    assert getattr(divergences, name)(sides["student"], sides["target"]).isnan().all()


def test_a_step_that_is_no_number_is_not_taken_and_is_named(folders, sources, tmp_path, monkeypatch):
    original = Distillation.training_step

    def spoilt(self, packs, number):
        if len(self.history) == 2:
            packs[0][1].targets["teacher"].outcomes.logprobs[0, 0] = NAN
        return original(self, packs, number)

    monkeypatch.setattr(Distillation, "training_step", spoilt)
    student = open_student(record_model(str(folders["student"])))
    with pytest.raises(DivergedError, match=r"step 3 of 4 by `topk_reverse_kl`.*loss is nan.*step-00000002\.\w+\.ckpt"):
        fit_student(student, run(sources, tmp_path / "state"))
    assert [read_step(state) for state in list_states(tmp_path / "state")] == [1, 2]


@pytest.mark.parametrize("save_every", [1, 100])
def test_a_run_that_diverges_ends_in_words_and_saves_nothing_of_it(folders, sources, tmp_path, save_every):
    student = open_student(record_model(str(folders["student"])))
    with pytest.raises(DivergedError, match="Lower `learning_rate`"):
        fit_student(student, run(sources, tmp_path / "state", learning_rate=1e38, save_every=save_every))
    for path in (tmp_path / "state").glob("*"):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(values.isfinite().all() for values in state.values())
