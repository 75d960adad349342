"""Score every rollout once: each view's model says what it would have written, token by token.

A shard of rollouts gives one shard of scores for each view, of the same name. What the store has already is not
scored again, in whichever round or experiment it was made. With `--source teacher` the rollouts are the teacher's own,
and views with `teacher_rollouts: true` alone score them.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline import command
from pipeline.command import MachineFile, ParamsFile, StageSummary, StoreFolder, TimingFile
from pipeline.engines.engine import OnDemand, context_limit
from pipeline.errors import SettingsError
from pipeline.models.record import Model, read_model, record_model
from pipeline.progress import Bar
from pipeline.scoring.checks import check_lengths, check_models, check_rows
from pipeline.scoring.context_effect import check_contexts_differ, views_to_compare
from pipeline.scoring.write import VERSION as SCORING_VERSION
from pipeline.scoring.write import Job, identify_scores, write_scores
from pipeline.settings import params
from pipeline.settings.machine import Machine
from pipeline.settings.views import View
from pipeline.storage.bucket import Bucket, list_buckets
from pipeline.storage.manifest import write_manifest
from pipeline.storage.shards import count_rows_and_tokens
from pipeline.storage.store import Folder, Store

VERSION = SCORING_VERSION
Source = Literal["student", "teacher"]
log = logging.getLogger("score")


def run(
    settings: params.Score,
    machine: Machine,
    store: Store,
    buckets: list[Bucket],
    teacher: Path,
    student: Path,
    previous: Path,
    teacher_out: Path,
    views_out: Path,
    source: Source = "student",
) -> StageSummary:
    """Score what is missing, view by view, and link everything into the outputs.

    Args:
        settings: with the views.
        machine: where and how fast.
        store: of finished shards.
        buckets: the responses, and what their contexts are made from.
        teacher: its record.
        student: the one of the round before.
        previous: scores of the round before.
        teacher_out: where the view `teacher` goes.
        views_out: where the others go, a folder each.
        source: whose responses they are.
    """
    views = {name: view for name, view in settings.views.items() if source == "student" or view.teacher_rollouts}
    by_view = {name: _model(name, view, teacher, student) for name, view in settings.views.items()}
    # Which teacher wrote and scored is asked of the student's responses alone.
    check_models(settings, by_view, [bucket.rollouts for bucket in buckets] if source == "student" else [])
    _check(settings, store, {name: by_view[name] for name in views}, buckets)
    for path in [*(bucket.rollouts for bucket in buckets), *previous.rglob("*.parquet")]:
        store.adopt(path)
    folders: dict[str, Folder] = {}
    for name, view in views.items():
        asked = [
            _first_pass(settings, machine, store, _jobs(buckets, settings.views[other], by_view[other]))
            for other in view.support.same_as
        ]
        jobs = _jobs(buckets, view, by_view[name], asked)
        folder = Folder(store, teacher_out if name == "teacher" else views_out / name)
        _obtain(settings, machine, folder, jobs, name)
        folder.close()
        for other in views_to_compare(name, views, by_view):
            if other in folders:
                check_contexts_differ({other: folders[other].path, name: folder.path})
        folders[name] = folder
    _remove_others(views_out, set(folders))
    made = StageSummary.from_folders(*(folders[name] for name in sorted(folders, key=lambda name: name != "teacher")))
    per_token = made.bytes / max(1, made.tokens)
    log.info(
        "%d views of %d tokens in %s, %.0f bytes per token", len(folders), made.tokens, teacher_out.parent, per_token
    )
    return made


def _model(name: str, view: View, teacher: Path, student: Path) -> Model:
    """The record of a view's model."""
    match view.model:
        case "teacher":
            return read_model(teacher)
        case "student":
            return read_model(student)
    model, reference = record_model(view.model), read_model(teacher)
    if model.tokenizer != reference.tokenizer or model.vocabulary != reference.vocabulary:
        raise SettingsError(f"score.views.{name}.model: {model.name} has another vocabulary than {reference.name}.")
    return model


def _check(settings: params.Score, store: Store, by_view: dict[str, Model], buckets: list[Bucket]) -> None:
    """What settings, headers and contexts tell, before a model loads."""
    for name in by_view:
        check_rows(name, settings.views[name], buckets)
    for name, model in by_view.items():
        view = settings.views[name]
        for job in _jobs(buckets, view, model):
            # What another view's ids add to the identity is not known yet.
            if view.support.same_as or not store.has(identify_scores(job, settings, _tail(settings))):
                check_lengths(name, view, model, job.bucket, context_limit(model, settings))


def _obtain(settings: params.Score, machine: Machine, folder: Folder, jobs: list[Job], name: str) -> None:
    wanted = [(job, identify_scores(job, settings, _tail(settings))) for job in jobs]
    missing = [
        count_rows_and_tokens(job.bucket.rollouts)[0] for job, identity in wanted if not folder.store.has(identity)
    ]
    log.info("view %s: %d of %d shards to score with %s", name, len(missing), len(jobs), jobs[0].model.name)
    with OnDemand(jobs[0].model, settings, machine) as model, Bar(sum(missing), f"score {name}") as bar:
        for job, identity in wanted:
            folder.obtain(job.bucket.rollouts.name, identity, partial(_write, identity, job, model, bar))


def _write(identity: dict[str, Any], job: Job, model: OnDemand, bar: Bar | None, path: Path) -> None:
    write_scores(path, identity, job, model.open(), bar)


def _first_pass(settings: params.Score, machine: Machine, store: Store, jobs: list[Job]) -> list[Path]:
    """Another view's own ids, without those that it asks for itself: two views may ask for each other's."""
    paths = []
    with OnDemand(jobs[0].model, settings, machine) as model:
        for job in jobs:
            support = job.view.support.model_copy(update={"same_as": (), "behaviour": False})
            alone = replace(job, view=job.view.model_copy(update={"support": support}))
            identity = identify_scores(alone, settings, _tail(settings))
            obtained = store.obtain(identity, partial(_write, identity, alone, model, None))
            paths.append(store.path(obtained.entry.fingerprint, ".parquet"))
    return paths


def _jobs(buckets: list[Bucket], view: View, model: Model, asked: Sequence[list[Path]] = ()) -> list[Job]:
    """One view of every shard; `asked` are other views' scores of the same shards."""
    return [Job(bucket, view, model, tuple(paths)) for bucket, *paths in zip(buckets, *asked, strict=True)]


def _tail(settings: params.Score) -> str:
    return "derived" if settings.engine == "vllm" and not settings.hidden_states else "exact"


def _remove_others(views_out: Path, names: set[str]) -> None:
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
    source: Annotated[Source, typer.Option(help="Whose responses the rollouts are.")] = "student",
    round_: Annotated[str, typer.Option("--round", help="The round's name, for the timing file.")] = "",
    timing: TimingFile = None,
    params_file: ParamsFile = command.PARAMS,
    machine_file: MachineFile = command.MACHINE,
    store: StoreFolder = command.STORE,
) -> None:
    """Read the settings and run the stage."""
    settings, machine = command.read_settings(params_file, machine_file)
    buckets = list_buckets(rollouts, prompts, grades)
    folders = teacher, student, previous, teacher_out, views_out
    made = run(settings.score, machine, Store(store), buckets, *folders, source)
    made.note(timing, "score", round_)


if __name__ == "__main__":
    command.run_stage(main)
