"""Checkpoints by what they are made from: trained once, resumed where training was stopped, and found ever after."""

import csv
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline import head, objectives, training
from pipeline.models.open import open_student
from pipeline.models.record import Model
from pipeline.models.seal import write_sealed
from pipeline.objectives.versions import find_formula_versions
from pipeline.settings.models import Training
from pipeline.settings.recipe import Recipe
from pipeline.storage import hashing
from pipeline.storage.bucket import Bucket
from pipeline.storage.grades import GRADES
from pipeline.storage.made_with import find_versions
from pipeline.storage.prompts import PROMPTS
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.scores import SCORES
from pipeline.storage.store import Obtained, Store
from pipeline.training import derived, rows
from pipeline.training.facts import list_grade_columns, list_prompt_columns, list_rollout_columns
from pipeline.training.fit import fit_student
from pipeline.training.run import Fitted, Run
from pipeline.training.targets import list_target_columns


def identify_checkpoint(
    stage: str, version: int, start: Model, recipe: Recipe, settings: Training, **more: Any
) -> dict[str, Any]:
    """Name everything that decides a checkpoint's weights, as JSON values.

    Args:
        stage: the stage that trains it.
        version: the stage's VERSION.
        start: the model that training starts from.
        recipe: the objective; only its terms enter, not its prose.
        settings: how it is trained; those that change no weight do not enter.
        more: the data, by content, and what else the stage says of them.
    """
    shared = [training.VERSION, rows.VERSION, objectives.VERSION, head.VERSION]
    formulas = find_formula_versions(recipe) | ({"derived": derived.VERSION} if recipe.derived else {})
    return {
        "stage": stage,
        "version": [version, *shared],
        "formulas": formulas,
        "start": start.identity,
        **recipe.identity,
        "settings": settings.identity,
        **more,
    }


@dataclass(frozen=True)
class Origin:
    """Everything that a checkpoint is made from, and is known by.

    Attributes:
        identity: what decides its weights, as `identify_checkpoint` gives it.
        start: the model that training starts from, whose tokenizer goes along.
        eos_ids: what ends its responses: also what ended those that it learned from, or it would not stop there.
        about: what is known of it besides.
    """

    identity: Mapping[str, Any]
    start: Model
    eos_ids: Sequence[int]
    about: Mapping[str, Any] = field(default_factory=dict)


def obtain_checkpoint(store: Store, out: Path, origin: Origin, make_run: Callable[[Path], Run]) -> Obtained:
    """Train a checkpoint, or find it, and link it to its folder.

    Args:
        store: of finished files.
        out: the checkpoint's folder.
        origin: what it is trained from.
        make_run: gives the run, for the folder of its training state; called only if something is to be trained.
    """
    identity = dict(origin.identity)
    state = store.root.parent / "training" / hashing.fingerprint(identity)

    def make(path: Path) -> None:
        fitted = fit_student(open_student(origin.start), make_run(state))
        made_with = find_versions("torch", "transformers", "lightning")
        save_checkpoint(path, fitted, replace(origin, about={"made_with": made_with, **origin.about}))

    obtained = store.obtain(identity, make, suffix="", target=out)
    shutil.rmtree(state, ignore_errors=True)
    return obtained


def save_checkpoint(folder: Path, fitted: Fitted, origin: Origin) -> None:
    """Write a checkpoint that any tool can load: a Hugging Face folder, `potstill.json` and the run's history.

    Args:
        folder: must not exist.
        fitted: the finished run.
        origin: what it was trained from.
    """
    folder.mkdir(parents=True)
    fitted.student.transformer.generation_config.eos_token_id = sorted(origin.eos_ids)
    fitted.student.transformer.save_pretrained(folder)
    origin.start.load_tokenizer().save_pretrained(folder)
    last = fitted.validation[-1]["validation_kl"] if fitted.validation else None
    alarms = [{"step": step, **asdict(alarm)} for step, alarm in fitted.alarms]
    record = {"identity": origin.identity, **origin.about, "validation_kl": last, "alarms": alarms}
    for name, measured in (("history", fitted.history), ("validation", fitted.validation)):
        if measured:
            _write_csv(folder / f"{name}.csv", measured)
    write_sealed(folder, record)


def _write_csv(path: Path, measured: list[dict[str, float]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(measured[0]))
        writer.writeheader()
        writer.writerows(measured)


def hash_shard(shard: Bucket, recipe: Recipe | None = None) -> dict[str, Any]:
    """Hash the columns of a shard that training reads: an edit to any other column trains nothing anew."""
    rollouts = hashing.hash_columns(shard.rollouts, ROLLOUTS, list_rollout_columns(recipe))
    views = {
        view: hashing.hash_columns(path, SCORES, list_target_columns(recipe, view))
        for view, path in shard.scores.items()
    }
    found = {"rollouts": rollouts, "views": views}
    if shard.keep is not None:
        found["keep"] = hashing.digest(shard.keep.tobytes())
    if recipe is not None and shard.grades is not None:
        found["grades"] = hashing.hash_columns(shard.grades, GRADES, list_grade_columns(recipe))
    if recipe is not None and shard.prompts is not None:
        found["prompts"] = hashing.hash_columns(shard.prompts, PROMPTS, list_prompt_columns(recipe))
    if shard.source != "student":
        found["source"] = shard.source
    return found
