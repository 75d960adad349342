"""Write the SFT data: the teacher's responses to the prompts of the sft split, and their grades.

A shard of prompts gives one shard of rollouts and one of grades, each of the same name. What the store has already
is not written again: a stopped run goes on where it was.
"""

import logging
from pathlib import Path
from typing import Annotated

import typer

from pipeline import command, grades, models, params, rollouts, shards
from pipeline.command import Made
from pipeline.engines import OnDemand
from pipeline.rollouts import Author
from pipeline.store import Folder, Store

VERSION = 1  # raise it when the responses would change; older shards are then written anew
log = logging.getLogger("teacher_rollouts")


def run(
    settings: params.TeacherRollouts,
    grade: params.Grade,
    machine: params.Machine,
    store: Store,
    prompt_folder: Path,
    teacher: Path,
    rollouts_out: Path,
    grades_out: Path,
) -> Made:
    """Write what is missing, grade it, and link both into the outputs."""
    model = models.read(teacher)
    sources = shards.in_order(prompt_folder, "prompts")
    identities = [
        rollouts.identity(
            "teacher_rollouts", VERSION, source, model, settings, settings.sampling, settings.samples, settings.seed
        )
        for source in sources
    ]
    folder, graded = Folder(store, rollouts_out), Folder(store, grades_out)
    pairs = list(zip(sources, identities, strict=True))
    with OnDemand(model, settings, machine) as engine:
        rollouts.obtain(folder, pairs, Author(engine, "teacher"), log.name)
    grades.fill(graded, grade, sources, rollouts_out)
    folder.close()
    graded.close()
    made = Made.of(folder, graded)
    log.info("%d responses of %d tokens by %s in %s", folder.rows, made.tokens, model.name, rollouts_out)
    return made


def main(
    prompt_folder: Annotated[Path, typer.Option("--prompts", help="Prompts of the sft split.")],
    teacher: Annotated[Path, typer.Option(help="The teacher's record.")],
    rollouts_out: Annotated[Path, typer.Option("--rollouts", help="Where the rollouts go.")],
    grades_out: Annotated[Path, typer.Option("--grades", help="Where the grades go.")],
    timing: command.TimingFile = None,
    params_file: command.ParamsFile = command.PARAMS,
    machine_file: command.MachineFile = command.MACHINE,
    store: command.StoreFolder = command.STORE,
) -> None:
    """Read the settings and run the stage."""
    settings, machine = command.settings(params_file, machine_file)
    run(
        settings.teacher_rollouts,
        settings.grade,
        machine,
        Store(store),
        prompt_folder,
        teacher,
        rollouts_out,
        grades_out,
    ).note(timing, "teacher_rollouts")


if __name__ == "__main__":
    command.run(main)
