"""Fine-tune the student on the teacher's responses: checkpoint r0, from which on-policy distillation starts.

The checkpoint records which teacher it learned from; scores by another are refused later. With `sft.steps: 0` an
already trained student is passed through, and `sft.teacher` says whose data it learned from.
"""

import logging
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from pipeline import command, grades, lineage, manifest, models, params, shards
from pipeline.command import Made
from pipeline.errors import ShardError
from pipeline.store import Store

VERSION = 1  # raise it when equal settings would give another student
log = logging.getLogger("sft")


def run(
    settings: params.Sft,
    machine: params.Machine,
    store: Store,
    student: Path,
    teacher: Path,
    rollouts: Path,
    graded: Path,
    out: Path,
    empty: list[Path],
) -> Made:
    """Train r0, or find it; the empty folders are what round r0 has of rollouts, grades and scores."""
    from pipeline import checkpoints, recipes, training
    from pipeline.loading import Rows, Shard

    start, taught_by = models.read(student), models.read(teacher)
    sources = [
        Shard(path, {}, _kept(path, graded / path.name, settings))
        for path in shards.in_order(rollouts, "teacher_rollouts")
    ]
    if settings.steps:
        sft_teacher = lineage.sft_teacher(taught_by.name, taught_by.weights)
        # The student learns to end its turn as the teacher does, which is not always how its own base model does.
        eos_ids = sorted({*start.eos_ids, *taught_by.eos_ids})
        data = {source.rollouts.name: checkpoints.content(source) for source in sources}
    else:
        sft_teacher, eos_ids, data = _stated(settings, taught_by), list(start.eos_ids), {}
    recipe = recipes.load("sft")
    identity = checkpoints.identity(
        "sft", VERSION, start, recipe, settings, data=data, sft_teacher=sft_teacher["weights"], eos_ids=eos_ids
    )

    def plan(state: Path) -> training.Run:
        rows = Rows(sources)
        if not rows.count:
            raise ShardError(
                f"{graded}: no response is graded correct, so `sft.keep: correct` leaves nothing to learn from."
            )
        return training.Run(recipe, rows, settings, machine, state)

    facts = {"sft_teacher": sft_teacher, "parents": {"start": start.name}}
    obtained = checkpoints.obtain(store, out, identity, start, plan, facts, eos_ids)
    for folder in empty:
        folder.mkdir(parents=True, exist_ok=True)
        manifest.write(folder, {})
    log.info("%s: %d steps on responses of %s", out, settings.steps, sft_teacher["name"])
    return Made.of_each(obtained)


def _kept(rollouts: Path, graded: Path, settings: params.Sft) -> np.ndarray | None:
    if settings.keep == "all":
        return None
    return np.array([bool(grade.correct) for grade in grades.read(graded, rollouts)])


def _stated(settings: params.Sft, teacher: models.Model) -> dict[str, str]:
    """The teacher that the user names for a student that comes trained."""
    assert settings.teacher is not None, "params checks that `steps: 0` names a teacher"
    if settings.teacher == lineage.UNKNOWN:
        return lineage.sft_teacher(lineage.UNKNOWN, lineage.UNKNOWN)
    named = teacher if settings.teacher == teacher.name else models.record(settings.teacher)
    return lineage.sft_teacher(named.name, named.weights)


def main(
    student: Annotated[Path, typer.Option(help="The student's record.")],
    teacher: Annotated[Path, typer.Option(help="The teacher's record.")],
    rollouts: Annotated[Path, typer.Option(help="The teacher's responses.")],
    graded: Annotated[Path, typer.Option("--grades", help="Their grades.")],
    out: Annotated[Path, typer.Option(help="Where the checkpoint goes.")],
    empty: Annotated[list[Path] | None, typer.Option(help="A folder of round r0 that holds nothing.")] = None,
    timing: command.TimingFile = None,
    params_file: command.ParamsFile = command.PARAMS,
    machine_file: command.MachineFile = command.MACHINE,
    store: command.StoreFolder = command.STORE,
) -> None:
    """Read the settings and run the stage."""
    settings, machine = command.settings(params_file, machine_file)
    made = run(settings.sft, machine, Store(store), student, teacher, rollouts, graded, out, empty or [])
    made.note(timing, "sft")


if __name__ == "__main__":
    command.run(main)
