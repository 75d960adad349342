"""Fine-tune the student on the teacher's responses: checkpoint r0, from which on-policy distillation starts.

The checkpoint records which teacher it learned from; scores by another are refused later. With `sft.steps: 0` an
already trained student is passed through, and `sft.teacher` says whose data it learned from.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from pipeline import command
from pipeline.command import MachineFile, ParamsFile, StageSummary, StoreFolder, TimingFile
from pipeline.errors import ShardError
from pipeline.models.lineage import UNKNOWN, name_teacher
from pipeline.models.record import Model, read_model, record_model
from pipeline.settings import params
from pipeline.settings.machine import Machine
from pipeline.settings.recipe import load_recipe
from pipeline.storage.bucket import Bucket
from pipeline.storage.grades import read_grades
from pipeline.storage.manifest import check_folders, write_manifest
from pipeline.storage.shards import list_shards
from pipeline.storage.store import Store

VERSION = 1  # raise it when equal settings would give another student
log = logging.getLogger("sft")


@dataclass(frozen=True)
class SftFolders:
    """The files and folders that checkpoint r0 is trained from, and those made beside it.

    Attributes:
        student: the student's record.
        teacher: the teacher's record.
        rollouts: the teacher's responses.
        grades: of these.
        empty: folders to make for what other rounds have and r0 has not: rollouts, grades and scores.
    """

    student: Path
    teacher: Path
    rollouts: Path
    grades: Path
    empty: tuple[Path, ...] = ()


def run(settings: params.Sft, machine: Machine, store: Store, folders: SftFolders, out: Path) -> StageSummary:
    """Train r0, or find it."""
    # These bring torch, for which `--help` need not wait.
    from pipeline.training.checkpoints import Origin, hash_shard, identify_checkpoint, obtain_checkpoint
    from pipeline.training.rows import Rows
    from pipeline.training.run import Run

    start, taught_by = read_model(folders.student), read_model(folders.teacher)
    sources = _list_sources(settings, folders) if settings.steps else []
    if settings.steps:
        sft_teacher = name_teacher(taught_by.name, taught_by.weights_hash)
        # The student learns to end its turn as the teacher does, which is not always how its own base model does.
        eos_ids = sorted({*start.eos_ids, *taught_by.eos_ids})
        data = {source.rollouts.name: hash_shard(source) for source in sources}
    else:
        sft_teacher, eos_ids, data = _name_stated_teacher(settings, taught_by), list(start.eos_ids), {}
    recipe = load_recipe("sft")
    identity = identify_checkpoint(
        "sft", VERSION, start, recipe, settings, data=data, sft_teacher=sft_teacher["weights"], eos_ids=eos_ids
    )

    def make_run(state: Path) -> Run:
        rows = Rows(sources)
        if settings.steps and not rows.count:
            raise ShardError(
                f"{folders.grades}: no response is graded correct, so `sft.keep: correct` leaves nothing to learn from."
            )
        return Run(recipe, rows, settings, machine, state)

    origin = Origin(identity, start, eos_ids, {"sft_teacher": sft_teacher, "parents": {"start": start.name}})
    obtained = obtain_checkpoint(store, out, origin, make_run)
    for folder in folders.empty:
        folder.mkdir(parents=True, exist_ok=True)
        write_manifest(folder, {})
    log.info("%s: %d steps on responses of %s", out, settings.steps, sft_teacher["name"])
    return StageSummary.from_files(obtained)


def _list_sources(settings: params.Sft, folders: SftFolders) -> list[Bucket]:
    """List the shards to learn from, each compared with its manifest."""
    check_folders(folders.rollouts, folders.grades)
    return [
        Bucket(path, keep=_choose_rows(path, folders.grades / path.name, settings))
        for path in list_shards(folders.rollouts, "teacher_rollouts")
    ]


def _choose_rows(rollouts: Path, graded: Path, settings: params.Sft) -> np.ndarray | None:
    """Choose the rows of a shard to learn from, bool [rows]; None for all."""
    if settings.keep == "all":
        return None
    return np.array([bool(grade.correct) for grade in read_grades(graded, rollouts)])


def _name_stated_teacher(settings: params.Sft, teacher: Model) -> dict[str, str]:
    """Give name and weights of the teacher that the user states for a student that comes trained."""
    assert settings.teacher is not None, "params checks that `steps: 0` names a teacher"
    if settings.teacher == UNKNOWN:
        return name_teacher(UNKNOWN, UNKNOWN)
    named = teacher if settings.teacher == teacher.name else record_model(settings.teacher)
    return name_teacher(named.name, named.weights_hash)


def main(
    student: Annotated[Path, typer.Option(help="The student's record.")],
    teacher: Annotated[Path, typer.Option(help="The teacher's record.")],
    rollouts: Annotated[Path, typer.Option(help="The teacher's responses.")],
    graded: Annotated[Path, typer.Option("--grades", help="Their grades.")],
    out: Annotated[Path, typer.Option(help="Where the checkpoint goes.")],
    machine_file: MachineFile,
    store: StoreFolder,
    empty: Annotated[list[Path] | None, typer.Option(help="A folder of round r0 that holds nothing.")] = None,
    timing: TimingFile = None,
    params_file: ParamsFile = command.PARAMS,
) -> None:
    """Read the settings and run the stage."""
    settings, machine = command.read_settings(params_file, machine_file)
    folders = SftFolders(student=student, teacher=teacher, rollouts=rollouts, grades=graded, empty=tuple(empty or ()))
    made = run(settings.sft, machine, Store(store), folders, out)
    made.note(timing, "sft")


if __name__ == "__main__":
    command.run_stage(main)
