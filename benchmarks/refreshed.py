"""Training in parts: each on prompts of its own, answered by the student as the part before left it, then scored.

In all, as many rollouts are written and scored as in one round, and as many steps are taken; with one part for each
bucket a rollout is at most one part's steps old, which is what a live teacher's would be.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.runs import ROUND_1, Facts, Run
from pipeline import command
from pipeline.project import find_machine, find_store
from pipeline.settings import params
from pipeline.settings.machine import load_machine
from pipeline.storage.store import Store
from stages import refresh, score, train

OWN = ("prompts", "rollouts", "grades", "teacher_scores")


@dataclass(frozen=True)
class Refreshed:
    """One training in parts.

    Attributes:
        name: of the row that it belongs to.
        objective: a recipe that reads no view but the teacher's.
        seed: of everything that is drawn.
        changes: settings of `train` that differ from the project's; the steps are those of all parts together.
        parts: how often the student writes; None: for each shard anew.
    """

    name: str
    objective: str | Mapping[str, Any]
    seed: int
    changes: Mapping[str, Any]
    parts: int | None

    def measured(self) -> Facts:
        """Write, score and train part by part; the metrics of the last student, and the seconds of all trainings."""
        settings = params.load_params(command.PARAMS)
        steps = self.changes.get("steps", settings.train.steps)
        shards = sorted(Path("data/prompts/opd").glob("*.parquet"))
        held_out = shards.pop(settings.prompts.held_out)
        parts = self.parts or len(shards)
        student, facts, seconds = ROUND_1.student, Facts(), 0.0
        for part in range(parts):
            own = Run(f"{self.name}/{part}", self.objective, self.seed, {**self.changes, "steps": steps // parts})
            folders = _folders(own.out / "data", student)
            _write(settings, folders, shards[part::parts], f"part-{part}", self.seed)
            _hold_out(folders, held_out.name)
            facts = replace(own, folders=folders).measured()
            student, seconds = own.out / "model", seconds + (facts["train_seconds"] or 0.0)
        return facts | {"train_seconds": seconds}


def _folders(root: Path, student: Path) -> train.TrainFolders:
    inside = {name: root / name for name in (*OWN, "view_scores", "teacher_rollout_scores")}
    return replace(ROUND_1, student=student, **inside)


def _write(settings: params.Params, folders: train.TrainFolders, prompts: list[Path], part: str, seed: int) -> None:
    """The rollouts of one part, their grades, and the teacher's scores of them."""
    machine, store = load_machine(find_machine()), Store(find_store())
    for path in prompts:
        link(path, folders.prompts)
    writing = settings.refresh.model_copy(update={"seed": seed})
    written = refresh.RefreshFolders(
        prompts=folders.prompts,
        student=folders.student,
        previous=Path("data/rollouts/r0"),
        rollouts=folders.rollouts,
        grades=folders.grades,
        drift=folders.rollouts.with_name("drift.json"),
    )
    refresh.run(writing, settings.grade, machine, store, part, written)
    views = {"teacher": settings.score.views["teacher"].model_copy(update={"support": _alone(settings)})}
    scoring = settings.score.model_copy(update={"views": views})
    scored = score.ScoreFolders(
        rollouts=folders.rollouts,
        prompts=folders.prompts,
        grades=folders.grades,
        teacher=Path("data/models/teacher.json"),
        student=folders.student,
        previous=Path("data/scores/r0"),
        teacher_out=folders.teacher_scores,
        views_out=folders.view_scores,
    )
    score.run(scoring, machine, store, scored)


def _alone(settings: params.Params) -> Any:
    """The teacher's own ids alone: other views are not scored here."""
    return settings.score.views["teacher"].support.model_copy(update={"same_as": ()})


def _hold_out(folders: train.TrainFolders, name: str) -> None:
    """The held-out shard of round 1 in every part, so that validation is on the same rollouts throughout."""
    for kind in OWN:
        link(getattr(ROUND_1, kind) / name, getattr(folders, kind))


def link(path: Path, folder: Path) -> None:
    """Put a hard link to a file into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / path.name).unlink(missing_ok=True)
    os.link(path, folder / path.name)
