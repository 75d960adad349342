"""Score every rollout once: each view's model says what it would have written, token by token.

A shard of rollouts gives one shard of scores for each view, of the same name. What the store has already is not
scored again, in whichever round or experiment it was made. With `--source teacher` the rollouts are the teacher's own,
and views with `teacher_rollouts: true` alone score them.
"""

import logging
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline import command
from pipeline.command import MachineFile, ParamsFile, StageSummary, StoreFolder, TimingFile
from pipeline.errors import SettingsError
from pipeline.models.record import Model, read_model, record_model
from pipeline.scoring import VERSION as SCORING_VERSION
from pipeline.scoring.checks import check_plan, check_views, check_writers
from pipeline.scoring.obtain import obtain_scores
from pipeline.scoring.plan import plan_scores
from pipeline.settings import params
from pipeline.settings.machine import Machine
from pipeline.settings.views import View
from pipeline.storage.bucket import list_buckets
from pipeline.storage.manifest import check_folders, write_manifest
from pipeline.storage.store import Store

VERSION = SCORING_VERSION
Source = Literal["student", "teacher"]
log = logging.getLogger("score")


@dataclass(frozen=True)
class ScoreFolders:
    """The files and folders that the stage reads and writes.

    Attributes:
        rollouts: the responses.
        prompts: of the rollouts, for contexts.
        grades: of the rollouts, for contexts.
        teacher: its record.
        student: the one of the round before.
        previous: scores of the round before.
        teacher_out: where the view `teacher` goes.
        views_out: where the others go, a folder each.
    """

    rollouts: Path
    prompts: Path
    grades: Path
    teacher: Path
    student: Path
    previous: Path
    teacher_out: Path
    views_out: Path


def run(
    settings: params.Score, machine: Machine, store: Store, folders: ScoreFolders, source: Source = "student"
) -> StageSummary:
    """Score what is missing, view by view, and link everything into the outputs.

    Args:
        settings: with the views.
        machine: where and how fast.
        store: of finished shards.
        folders: what is read and written.
        source: whose responses the rollouts are.
    """
    check_folders(folders.rollouts, folders.prompts, folders.grades, folders.previous)
    names = [name for name, view in settings.views.items() if source == "student" or view.teacher_rollouts]
    models = {name: _read_model(name, view, folders) for name, view in settings.views.items()}
    check_views(settings, models)
    buckets = list_buckets(folders.rollouts, folders.prompts, folders.grades) if names else []
    plan = plan_scores(settings, models, names, buckets, store)
    # Which teacher wrote and scored is asked of the student's responses alone.
    check_writers(settings, models, plan.buckets if source == "student" else ())
    check_plan(plan, settings)
    for each in plan.buckets:
        store.adopt(each.bucket.rollouts, each.about["identity"])
    for path in folders.previous.rglob("*.parquet"):
        store.adopt(path)
    out = {name: folders.teacher_out if name == "teacher" else folders.views_out / name for name in names}
    obtained = obtain_scores(plan, settings, machine, store, out)
    _remove_others(folders.views_out, set(names))
    made = StageSummary.from_folders(*(obtained[name] for name in sorted(obtained, key=lambda name: name != "teacher")))
    per_token, where = made.bytes / max(1, made.tokens), folders.teacher_out.parent
    log.info("%d views of %d tokens in %s, %.0f bytes per token", len(names), made.tokens, where, per_token)
    return made


def _read_model(name: str, view: View, folders: ScoreFolders) -> Model:
    """The record of a view's model."""
    match view.model:
        case "teacher":
            return read_model(folders.teacher)
        case "student":
            return read_model(folders.student)
    model, reference = record_model(view.model), read_model(folders.teacher)
    if model.tokenizer != reference.tokenizer:
        raise SettingsError(f"score.views.{name}.model: {model.name} has another tokenizer than {reference.name}.")
    if model.chat_template != reference.chat_template:
        log.warning(
            "score.views.%s: %s has another chat template than %s; on the plain prompt it sees that of the student",
            name, model.name, reference.name,
        )  # fmt: skip
    return model


def _remove_others(views_out: Path, names: Collection[str]) -> None:
    """Leave no view of an earlier run; the empty manifest is there because DVC warns of empty folders."""
    views_out.mkdir(parents=True, exist_ok=True)
    for path in views_out.iterdir():
        if path.is_dir() and path.name not in names:
            shutil.rmtree(path)
    write_manifest(views_out, {})


def main(
    rollouts: Annotated[Path, typer.Option(help="The round's rollouts.")],
    prompts: Annotated[Path, typer.Option(help="Prompts of the opd split, for contexts.")],
    grades: Annotated[Path, typer.Option(help="Grades of the rollouts, for contexts.")],
    teacher: Annotated[Path, typer.Option(help="The teacher's record.")],
    student: Annotated[Path, typer.Option(help="The student of the round before, for views of itself.")],
    previous: Annotated[Path, typer.Option(help="Scores of the round before.")],
    teacher_out: Annotated[Path, typer.Option("--teacher-out", help="Where the view `teacher` goes.")],
    views_out: Annotated[Path, typer.Option("--views-out", help="Where the other views go, a folder each.")],
    machine_file: MachineFile,
    store: StoreFolder,
    source: Annotated[Source, typer.Option(help="Whose responses the rollouts are.")] = "student",
    round_: Annotated[str, typer.Option("--round", help="The round's name, for the timing file.")] = "",
    timing: TimingFile = None,
    params_file: ParamsFile = command.PARAMS,
) -> None:
    """Read the settings and run the stage."""
    settings, machine = command.read_settings(params_file, machine_file)
    folders = ScoreFolders(
        rollouts=rollouts, prompts=prompts, grades=grades, teacher=teacher, student=student, previous=previous,
        teacher_out=teacher_out, views_out=views_out,
    )  # fmt: skip
    made = run(settings.score, machine, Store(store), folders, source)
    made.note(timing, "score", round_)


if __name__ == "__main__":
    command.run_stage(main)
