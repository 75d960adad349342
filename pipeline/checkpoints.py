"""Checkpoints by fingerprint: training once for one identity, resumed where it was stopped, found ever after."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import head, loading, models, objectives, params, recipes, shards, training
from pipeline.made_with import versions
from pipeline.store import Obtained, Store
from pipeline.student import open_student


def identity(
    stage: str, version: int, start: models.Model, recipe: recipes.Recipe, settings: params.Training, **more: Any
) -> dict[str, Any]:
    """Everything that decides a checkpoint's weights.

    Args:
        stage: that trains it.
        version: of the stage.
        start: the model that training starts from.
        recipe: the objective; of it the terms alone enter, not its prose.
        settings: of training; `save_every` changes no number.
        more: the data, by content; the teacher of the SFT data.
    """
    shared = (training.VERSION, loading.VERSION, objectives.VERSION, head.VERSION)
    return {
        "stage": stage,
        "version": [version, *shared],
        "start": start.identity,
        "terms": [term.model_dump(exclude_defaults=True) for term in recipe.terms],
        "settings": settings.model_dump(mode="json", include=_LEARNING),
        **more,
    }


_LEARNING = {
    "steps", "batch", "learning_rate", "schedule", "warmup", "betas", "weight_decay", "clip", "precision", "seed",
}  # fmt: skip
"""The settings of training that change its numbers; `save_every` does not."""


def obtain(
    store: Store,
    out: Path,
    identity: Mapping[str, Any],
    start: models.Model,
    plan: Callable[[Path], training.Run],
    facts: Mapping[str, Any],
    eos_ids: Sequence[int],
) -> Obtained:
    """Train a checkpoint, or find it, and link it to its folder.

    Args:
        store: of finished files.
        out: the checkpoint's folder.
        identity: as `identity` gives it.
        start: the model that training starts from.
        plan: gives the run, for the folder of its training state; called only if something is to be trained.
        facts: what `potstill.json` says besides.
        eos_ids: what ends the checkpoint's responses.
    """
    state = store.root.parent / "training" / shards.fingerprint(dict(identity))

    def make(path: Path) -> None:
        fitted = training.fit(open_student(start), plan(state))
        made_with = versions("torch", "transformers", "lightning")
        training.save(path, fitted, start, eos_ids, identity, {"made_with": made_with, **facts})

    obtained = store.obtain(dict(identity), make, suffix="", target=out)
    shutil.rmtree(state, ignore_errors=True)
    return obtained


def content(shard: loading.Shard) -> dict[str, Any]:
    """What training reads of a shard, by content: an edit to any other column trains nothing anew."""
    read = {"rollouts": shards.content(shard.rollouts, shards.ROLLOUTS, loading.ROLLOUT_COLUMNS)}
    views = {view: shards.content(path, shards.SCORES, loading.SCORE_COLUMNS) for view, path in shard.scores.items()}
    kept = {} if shard.keep is None else {"keep": shards.digest(shard.keep.tobytes())}
    return {**read, "views": views, **kept}
