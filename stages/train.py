"""Distil: train the student from the shards, with no teacher loaded.

Which rollouts, views and columns the recipe reads decides the checkpoint's identity; where that is unchanged, the
checkpoint is found, not trained again.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from pipeline import command
from pipeline.command import MachineFile, ParamsFile, StageSummary, StoreFolder, TimingFile
from pipeline.errors import ShardError
from pipeline.models.lineage import check_teacher, read_checkpoint_teacher, read_scorer
from pipeline.models.record import Model, read_model
from pipeline.settings import params
from pipeline.settings.machine import Machine
from pipeline.settings.recipe import Recipe
from pipeline.storage.bucket import Bucket
from pipeline.storage.manifest import check_folders
from pipeline.storage.prompts import PROMPTS
from pipeline.storage.shards import list_shards, read_shard
from pipeline.storage.store import Store
from pipeline.training.facts import list_grade_columns, list_prompt_columns

VERSION = 1  # raise it when equal shards and settings would give another student
log = logging.getLogger("train")


@dataclass(frozen=True)
class TrainFolders:
    """The files and folders that a student is trained from.

    Attributes:
        student: the checkpoint of the round before.
        prompts: of the opd split; they name the held-out bucket.
        rollouts: of the round, all of one bucket in one shard.
        grades: of these.
        teacher_scores: the view `teacher` of these.
        view_scores: the other views, a folder each.
        teacher_rollouts: the teacher's own responses.
        teacher_grades: of these.
        teacher_rollout_scores: views of these, a folder each.
    """

    student: Path
    prompts: Path
    rollouts: Path
    grades: Path
    teacher_scores: Path
    view_scores: Path
    teacher_rollouts: Path
    teacher_grades: Path
    teacher_rollout_scores: Path


def run(settings: params.Train, machine: Machine, store: Store, folders: TrainFolders, out: Path) -> StageSummary:
    """Train a round's student, or find it."""
    # These bring torch, for which `--help` need not wait.
    from pipeline.training.checkpoints import Origin, hash_shard, identify_checkpoint, obtain_checkpoint
    from pipeline.training.requirements import check_requirements
    from pipeline.training.rows import Rows
    from pipeline.training.run import Run

    start, sft_teacher = read_model(folders.student), read_checkpoint_teacher(folders.student)
    recipe = settings.recipe
    _check_whole(recipe, folders)
    sources = _list_round(recipe, folders)
    for source in sources:
        for view in recipe.learned_views:
            _check_teacher(source.scores[view], start, sft_teacher, settings)
    trained, held_out = _split_held_out(sources, folders.prompts)
    learned = _list_student(trained, recipe, folders)
    if "teacher" in recipe.sources:
        learned += _list_teacher(recipe, folders)
    check_requirements(recipe, learned, settings)
    identity = identify_checkpoint(
        "train", VERSION, start, recipe, settings,
        data={_entry_name(source): hash_shard(source, recipe) for source in learned},
        held_out={source.rollouts.name: hash_shard(source) for source in held_out},
        validate_every=settings.validate_every,
    )  # fmt: skip

    def make_run(state: Path) -> Run:
        special_ids = start.load_tokenizer().all_special_ids if "special" in recipe.reads else ()
        rows, held_out_rows = Rows(learned, recipe, special_ids), Rows(held_out) if held_out else None
        return Run(recipe, rows, settings, machine, state, held_out_rows, settings.validate_every)

    about = {"sft_teacher": sft_teacher, "recipe": recipe.name, "parents": {"start": str(folders.student)}}
    obtained = obtain_checkpoint(store, out, Origin(identity, start, start.eos_ids, about), make_run)
    log.info("%s: %d steps of `%s` from %s", out, settings.steps, recipe.name, folders.student)
    return StageSummary.from_files(obtained)


def _check_whole(recipe: Recipe, folders: TrainFolders) -> None:
    """Refuse damage in the round's files; in other views, and the teacher's responses, where the recipe reads them."""
    views = [folders.view_scores / view for view in recipe.views if view != "teacher"]
    check_folders(folders.rollouts, folders.prompts, folders.grades, folders.teacher_scores, *views)
    if "teacher" in recipe.sources:
        views = [folders.teacher_rollout_scores / view for view in recipe.teacher_views]
        check_folders(folders.teacher_rollouts, folders.teacher_grades, *views)


def _list_round(recipe: Recipe, folders: TrainFolders) -> list[Bucket]:
    """List the round's shards with every view that the recipe or validation reads."""
    views = {*recipe.views, "teacher"}
    scores = {view: folders.teacher_scores if view == "teacher" else folders.view_scores / view for view in views}
    return [
        Bucket(path, scores={view: _find_scores(folder, view, path, recipe) for view, folder in scores.items()})
        for path in list_shards(folders.rollouts, "refresh")
    ]


def _list_student(trained: list[Bucket], recipe: Recipe, folders: TrainFolders) -> list[Bucket]:
    """List the round's shards with what the recipe reads of them.

    The teacher's scores are read for validation; a recipe that learns from other views does not train on them.
    """
    return [
        Bucket(
            source.rollouts,
            scores={view: source.scores[view] for view in recipe.views},
            grades=folders.grades / source.rollouts.name if list_grade_columns(recipe) else None,
            prompts=folders.prompts / source.rollouts.name if list_prompt_columns(recipe) else None,
        )
        for source in trained
    ]


def _list_teacher(recipe: Recipe, folders: TrainFolders) -> list[Bucket]:
    """List the shards of the teacher's own responses with what the recipe reads of them."""
    scores = folders.teacher_rollout_scores
    return [
        Bucket(
            path,
            scores={view: _find_scores(scores / view, view, path, recipe, "teacher") for view in recipe.teacher_views},
            grades=folders.teacher_grades / path.name if list_grade_columns(recipe) else None,
            source="teacher",
        )
        for path in list_shards(folders.teacher_rollouts, "teacher_rollouts")
    ]


def _entry_name(source: Bucket) -> str:
    """Name a shard in the identity: a bucket has one of the student's and one of the teacher's."""
    return source.rollouts.name if source.source == "student" else f"{source.source}/{source.rollouts.name}"


def _find_scores(folder: Path, view: str, rollouts: Path, recipe: Recipe, source: str = "student") -> Path:
    """Find a view's scores of a shard of responses by `source`, and refuse missing ones."""
    path = folder / rollouts.name
    if path.exists():
        return path
    needs = f"{path} is missing: train.objective `{recipe.name}` needs {recipe.describe_view(view)}"
    if source == "student":
        raise ShardError(f"{needs}. Name it in score.views and run `dvc repro score`.")
    raise ShardError(
        f"{needs} over the teacher's own responses, too. Set `score.views.{view}.teacher_rollouts: true` and run "
        "`dvc repro score_teacher`."
    )


def _check_teacher(path: Path, start: Model, sft_teacher: dict[str, str], settings: params.Train) -> None:
    """Refuse scores by another teacher than that of SFT; the student itself, in another context, is no teacher."""
    scorer = read_scorer(path)
    if scorer["weights"] != start.weights_hash:
        check_teacher(sft_teacher, scorer, str(path), settings.allow_sft_teacher, "train")


def _split_held_out(sources: list[Bucket], prompts: Path) -> tuple[list[Bucket], list[Bucket]]:
    """Split off the held-out shard, which keeps only the view that validation reads."""
    trained, held_out = [], []
    for source in sources:
        column = read_shard(prompts / source.rollouts.name, PROMPTS, ["split"]).column("split")
        if column[0].as_py() == "validation":
            held_out.append(replace(source, scores={"teacher": source.scores["teacher"]}))
        else:
            trained.append(source)
    return trained, held_out


def main(
    student: Annotated[Path, typer.Option(help="The checkpoint to train: that of the round before.")],
    prompts: Annotated[Path, typer.Option(help="Prompts of the opd split: they name the held-out bucket.")],
    teacher_rollouts: Annotated[Path, typer.Option(help="The teacher's own responses, for recipes that read them.")],
    teacher_grades: Annotated[Path, typer.Option(help="Their grades.")],
    rollouts: Annotated[Path, typer.Option(help="The round's rollouts.")],
    graded: Annotated[Path, typer.Option("--grades", help="Their grades.")],
    teacher_scores: Annotated[Path, typer.Option("--teacher-scores", help="The teacher's scores of them.")],
    view_scores: Annotated[Path, typer.Option("--view-scores", help="Other views' scores, a folder each.")],
    teacher_rollout_scores: Annotated[
        Path, typer.Option("--teacher-rollout-scores", help="Views' scores of the teacher's own responses.")
    ],
    out: Annotated[Path, typer.Option(help="Where the checkpoint goes.")],
    machine_file: MachineFile,
    store: StoreFolder,
    round_: Annotated[str, typer.Option("--round", help="The round's name, for the timing file.")] = "",
    timing: TimingFile = None,
    params_file: ParamsFile = command.PARAMS,
) -> None:
    """Read the settings and run the stage."""
    settings, machine = command.read_settings(params_file, machine_file)
    folders = TrainFolders(
        student=student, prompts=prompts, rollouts=rollouts, grades=graded,
        teacher_scores=teacher_scores, view_scores=view_scores,
        teacher_rollouts=teacher_rollouts, teacher_grades=teacher_grades, teacher_rollout_scores=teacher_rollout_scores,
    )  # fmt: skip
    made = run(settings.train, machine, Store(store), folders, out)
    made.note(timing, "train", round_)


if __name__ == "__main__":
    command.run_stage(main)
