"""VERSIONs of formulas: which a checkpoint's identity holds, against which formulas its loss really calls.

What is called is watched while the loss of a small step is computed, so it is not what `versions` says.
"""

import importlib
import inspect

import pytest

from pipeline.models.record import Model
from pipeline.objectives import diagnostics, objective
from pipeline.settings.models import Demo, TinyModel, Training
from pipeline.settings.recipe import Recipe, list_recipes, load_recipe
from pipeline.training.checkpoints import identify_checkpoint
from stages import models as models_stage
from tests.cases import Case

FORMULAS = ("divergences", "estimators", "supervised", "ratios", "trust_regions", "reductions")
FAMILIES = (*(f"pipeline.objectives.{name}" for name in (*FORMULAS, "weights", "targets")), "pipeline.training.derived")
LEARNING = Training(steps=1, batch=1, learning_rate=1.0)
MODEL = Model(
    name="n", location="l", commit="c", weights_hash="w", tokenizer="t", chat_template="c", vocabulary=2, tokens=2,
    eos_ids=(0,), context=9, parameters=None,
)  # fmt: skip


def identity_of(recipe: Recipe) -> dict:
    return identify_checkpoint("train", 1, MODEL, recipe, LEARNING, data={})


def watch(patch, module, name: str, seen: set[str], family: str) -> None:
    known = getattr(module, name)

    def watched(*given, **named):
        seen.add(family)
        return known(*given, **named)

    patch.setattr(module, name, watched)


def called_by(recipe: Recipe, patch) -> set[str]:
    """The families whose formulas are called for a step's loss and gradient."""
    seen: set[str] = {"pipeline.training.derived"} if recipe.derived else set()
    for family in FAMILIES[: len(FORMULAS)]:
        module = importlib.import_module(family)
        for name, value in vars(module).copy().items():
            if inspect.isfunction(value) and value.__module__ == family:
                watch(patch, module, name, seen, family)
    watch(patch, objective, "compute_weight", seen, "pipeline.objectives.weights")
    watch(patch, importlib.import_module("pipeline.objectives.targets"), "compose_views", seen,
          "pipeline.objectives.targets")  # fmt: skip
    patch.setattr(diagnostics, "measure_tokens", lambda *_: {})
    case = Case(recipe, seed=0)
    case.loss(case.logits)
    return seen


@pytest.mark.parametrize("name", list_recipes())
def test_raising_a_familys_version_changes_the_checkpoints_that_use_it_and_no_other(name, monkeypatch):
    recipe = load_recipe(name)
    with monkeypatch.context() as patch:
        used = called_by(recipe, patch)
    known, changed = identity_of(recipe), set()
    for family in FAMILIES:
        with monkeypatch.context() as patch:
            patch.setattr(f"{family}.VERSION", 999)
            if identity_of(recipe) != known:
                changed.add(family)
    assert changed == used


@pytest.mark.parametrize("family", FAMILIES)
def test_models_and_sft_are_made_anew_for_supervised_learning_alone(family, monkeypatch):
    size = TinyModel(layers=1, hidden=8, heads=2)
    demo = Demo(teacher=size, student=size, examples=4, training=LEARNING)

    def identities():
        of_demo = [models_stage.identify_demo_model(demo, role) for role in ("teacher", "student")]
        return [*of_demo, identity_of(load_recipe("sft"))]

    before = identities()
    monkeypatch.setattr(f"{family}.VERSION", 999)
    differs = [one != other for one, other in zip(before, identities(), strict=True)]
    assert differs == ([True, False, True] if family.endswith("supervised") else [False] * 3)
