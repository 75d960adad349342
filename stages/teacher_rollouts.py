"""Write the SFT data: the teacher's responses to the prompts of the sft split, and their grades.

A shard of prompts gives one shard of rollouts and one of grades, each of the same name. What the store has already
is not written again: a stopped run goes on where it was.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pipeline import command
from pipeline.command import MachineFile, ParamsFile, StageSummary, StoreFolder, TimingFile
from pipeline.engines.open import OnDemand
from pipeline.grading.write import grade_shards
from pipeline.models.record import read_model
from pipeline.rollouts.write import Author, Writing, identify_rollouts, obtain_rollouts
from pipeline.settings import params
from pipeline.settings.machine import Machine
from pipeline.storage.manifest import check_folders
from pipeline.storage.shards import list_shards
from pipeline.storage.store import Folder, Store

VERSION = 1  # raise it when the responses would change; older shards are then written anew
log = logging.getLogger("teacher_rollouts")


@dataclass(frozen=True)
class TeacherRolloutsFolders:
    """What the teacher's rollouts are written from, and where they go.

    Attributes:
        prompts: of the sft split.
        teacher: a file, its record.
        rollouts: the new ones.
        grades: of these.
    """

    prompts: Path
    teacher: Path
    rollouts: Path
    grades: Path


def run(
    settings: params.TeacherRollouts,
    grade: params.GradeSettings,
    machine: Machine,
    store: Store,
    folders: TeacherRolloutsFolders,
) -> StageSummary:
    """Write what is missing, grade it, and link both into the outputs."""
    check_folders(folders.prompts)
    model = read_model(folders.teacher)
    sources = list_shards(folders.prompts, "prompts")
    writing = Writing(model, settings, settings.sampling, settings.samples, settings.seed)
    identities = [identify_rollouts("teacher_rollouts", VERSION, source, writing) for source in sources]
    folder, graded = Folder(store, folders.rollouts), Folder(store, folders.grades)
    pairs = list(zip(sources, identities, strict=True))
    with OnDemand(model, settings, machine) as engine:
        obtain_rollouts(folder, pairs, Author(engine, "teacher"), log.name)
    grade_shards(graded, grade, sources, folders.rollouts)
    folder.close()
    graded.close()
    made = StageSummary.from_folders(folder, graded)
    log.info("%d responses of %d tokens by %s in %s", folder.rows, made.tokens, model.name, folders.rollouts)
    return made


def leave_empty(store: Store, folders: TeacherRolloutsFolders) -> StageSummary:
    """Write no responses: nobody would read them."""
    empty = Folder(store, folders.rollouts), Folder(store, folders.grades)
    for folder in empty:
        folder.close()
    log.info("nothing is written: with `sft.steps: 0` and these views, nobody reads what the teacher writes")
    return StageSummary.from_folders(*empty)


def main(
    prompts: Annotated[Path, typer.Option(help="Prompts of the sft split.")],
    teacher: Annotated[Path, typer.Option(help="The teacher's record.")],
    rollouts_out: Annotated[Path, typer.Option("--rollouts", help="Where the rollouts go.")],
    grades_out: Annotated[Path, typer.Option("--grades", help="Where the grades go.")],
    machine_file: MachineFile,
    store: StoreFolder,
    timing: TimingFile = None,
    params_file: ParamsFile = command.PARAMS,
) -> None:
    """Read the settings and run the stage."""
    settings, machine = command.read_settings(params_file, machine_file)
    folders = TeacherRolloutsFolders(prompts=prompts, teacher=teacher, rollouts=rollouts_out, grades=grades_out)
    if settings.reads_teacher_rollouts:
        made = run(settings.teacher_rollouts, settings.grade, machine, Store(store), folders)
    else:
        made = leave_empty(Store(store), folders)
    made.note(timing, "teacher_rollouts")


if __name__ == "__main__":
    command.run_stage(main)
