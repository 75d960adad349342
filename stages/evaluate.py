"""Evaluate a checkpoint on the evaluation prompts: greedy, avg@k, pass@k, length, truncation, repetition.

Its responses and their grades are an output, too: which prompts a checkpoint answers worse than another is a question
in SQL. A corrected grader grades them again, and writes nothing.
"""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from pipeline import command
from pipeline.command import MachineFile, ParamsFile, StageSummary, StoreFolder, TimingFile
from pipeline.engines.open import OnDemand
from pipeline.grading.metrics import Answered, compute_metrics, repetition
from pipeline.grading.write import Grading
from pipeline.models.record import Model, read_model
from pipeline.models.seal import CHECKPOINT
from pipeline.progress import Bar
from pipeline.rollouts.fit import check_prompts_fit
from pipeline.rollouts.write import (
    Author,
    Wanted,
    Writing,
    count_missing,
    find_families,
    identify_rollouts,
    write_rollouts,
)
from pipeline.settings import params
from pipeline.settings.machine import Machine
from pipeline.storage.families import Families
from pipeline.storage.grades import read_grades
from pipeline.storage.manifest import check_folders
from pipeline.storage.prompts import read_prompts
from pipeline.storage.ragged import from_lists
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.shards import list_shards, read_groups
from pipeline.storage.store import Folder, Store
from pipeline.storage.whole import read_json, write_json

VERSION = 1  # raise it when a metric would change
log = logging.getLogger("evaluate")

MODES = ("greedy", "sampled")
"""How a checkpoint answers: its likeliest tokens, once; and k samples."""


@dataclass(frozen=True)
class EvaluateFolders:
    """What is evaluated on what, and where the responses and the metrics go.

    Attributes:
        model: a checkpoint, or a model's record.
        prompts: of the evaluation split.
        responses: gets `rollouts` and `grades`, whose shards are called `greedy-` or `sampled-` and as their prompts.
        metrics: a file.
    """

    model: Path
    prompts: Path
    responses: Path
    metrics: Path


def run(
    settings: params.Evaluate,
    grade: params.GradeSettings,
    machine: Machine,
    store: Store,
    name: str,
    folders: EvaluateFolders,
) -> StageSummary:
    """Write and grade the responses that are missing, and measure; `name` is the checkpoint's in the report."""
    check_folders(folders.prompts)
    model = read_model(folders.model)
    prompts = list_shards(folders.prompts, "prompts")
    wanted = _list_wanted(settings, model, prompts)
    families = find_families(store, list(wanted.values()))
    missing = count_missing(store, list(wanted.values()), families)
    rollouts, grades = (Folder(store, folders.responses / kind) for kind in ("rollouts", "grades"))
    with OnDemand(model, settings, machine) as engine, engine.make_bar(missing.unknown, f"evaluate {name}") as bar:
        check_prompts_fit(store, list(wanted.values()), engine)
        for shard, (source, identity) in wanted.items():
            rollouts.obtain(shard, identity, partial(_write, source, identity, engine, bar, families))
    with Grading(grade, store) as grading:
        for shard, (source, _) in wanted.items():
            grades.obtain(shard, *grading.prepare(source, rollouts.path / shard))
    rollouts.close()
    grades.close()
    answered = [_read_answers(rollouts, grades, [f"{mode}-{source.name}" for source in prompts]) for mode in MODES]
    metrics = compute_metrics(name, answered[0], answered[1], settings.samples)
    own = folders.model / CHECKPOINT
    metrics["validation_kl"] = read_json(own).get("validation_kl") if own.exists() else None
    write_json(folders.metrics, metrics)
    log.info(
        "%s: greedy %.1f %%, avg@%d %.1f %%, pass@%d %.1f %% of %d prompts with a grade, of %d",
        name, 100 * metrics["greedy"], settings.samples, 100 * metrics["avg_at_k"], settings.samples,
        100 * metrics["pass_at_k"], metrics["graded"], metrics["prompts"],
    )  # fmt: skip
    return StageSummary.from_folders(rollouts, grades)


def _list_wanted(settings: params.Evaluate, model: Model, prompts: list[Path]) -> dict[str, Wanted]:
    """List the shards of responses by name, each with its prompts and its identity."""
    greedy = settings.sampling.model_copy(update={"temperature": 0.0})
    writings = {
        "greedy": Writing(model, settings, greedy, 1, settings.seed),
        "sampled": Writing(model, settings, settings.sampling, settings.samples, settings.seed),
    }
    return {
        f"{mode}-{source.name}": (source, identify_rollouts("evaluate", VERSION, source, writings[mode]))
        for mode in MODES
        for source in prompts
    }


def _write(source: Path, identity: dict[str, Any], engine: OnDemand, bar: Bar, families: Families, path: Path) -> None:
    write_rollouts(path, identity, read_prompts(source), Author(engine, "student"), bar, families.of(identity))


def _read_answers(rollouts: Folder, grades: Folder, shards: list[str]) -> Answered:
    """Read what metrics are made from, off some shards of responses and their grades."""
    correct: list[bool | None] = []
    lengths: list[int] = []
    repetitions: list[float] = []
    reasons: list[str] = []
    for shard in shards:
        path = rollouts.path / shard
        correct += [each.correct for each in read_grades(grades.path / shard, path)]
        for group in read_groups(path, ROLLOUTS, ("response_ids", "finish_reason")):
            responses = from_lists(group.column("response_ids"))
            lengths += responses.lengths.tolist()
            repetitions += [repetition(response) for response in responses]
            reasons += group.column("finish_reason").to_pylist()
    return Answered(correct, np.array(lengths), reasons, repetitions)


def main(
    name: Annotated[str, typer.Option("--checkpoint", help="The checkpoint's name in the report.")],
    model: Annotated[Path, typer.Option(help="A checkpoint's folder, or a model's record.")],
    prompts: Annotated[Path, typer.Option(help="Prompts of the evaluation split.")],
    responses: Annotated[Path, typer.Option(help="Where the responses and their grades go.")],
    out: Annotated[Path, typer.Option(help="Where the metrics go.")],
    machine_file: MachineFile,
    store: StoreFolder,
    timing: TimingFile = None,
    params_file: ParamsFile = command.PARAMS,
) -> None:
    """Read the settings and run the stage."""
    settings, machine = command.read_settings(params_file, machine_file)
    folders = EvaluateFolders(model=model, prompts=prompts, responses=responses, metrics=out)
    made = run(settings.evaluate, settings.grade, machine, Store(store), name, folders)
    made.note(timing, "evaluate", name)


if __name__ == "__main__":
    command.run_stage(main)
