"""Distil: train the student from the shards, with no teacher loaded.

Which rollouts, views and columns the recipe reads decides the checkpoint's identity; where that is unchanged, the
checkpoint is found, not trained again.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import command, lineage, models, params, shards
from pipeline.command import Made
from pipeline.errors import ShardError
from pipeline.recipes import Recipe
from pipeline.store import Store

if TYPE_CHECKING:  # brings torch, for which `--help` need not wait
    from pipeline.loading import Shard

VERSION = 1  # raise it when equal shards and settings would give another student
log = logging.getLogger("train")


@dataclass(frozen=True)
class Folders:
    """What a student is trained from.

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


def run(settings: params.Train, machine: params.Machine, store: Store, folders: Folders, out: Path) -> Made:
    """Train a round's student, or find it."""
    from pipeline import checkpoints, needs, training
    from pipeline.loading import Rows

    start, sft_teacher = models.read(folders.student), lineage.of_checkpoint(folders.student)
    recipe = settings.recipe
    sources = _of_round(recipe, folders)
    for source in sources:
        for view in recipe.learned_views:
            _check_teacher(source.scores[view], start, sft_teacher, settings)
    trained, held_out = _split(sources, folders.prompts)
    learned = _of_student(trained, recipe, folders)
    if "teacher" in recipe.sources:
        learned += _of_teacher(recipe, folders)
    needs.check(recipe, learned, settings)
    identity = checkpoints.identity(
        "train", VERSION, start, recipe, settings,
        data={_name(source): checkpoints.content(source, recipe) for source in learned},
        held_out={source.rollouts.name: checkpoints.content(source) for source in held_out},
        validate_every=settings.validate_every,
    )  # fmt: skip

    def plan(state: Path) -> training.Run:
        return training.Run(
            recipe,
            Rows(learned, recipe, start.load_tokenizer().all_special_ids if "special" in recipe.reads else ()),
            settings,
            machine,
            state,
            Rows(held_out) if held_out else None,
            settings.validate_every,
        )

    about = {"sft_teacher": sft_teacher, "recipe": recipe.name, "parents": {"start": str(folders.student)}}
    obtained = checkpoints.obtain(store, out, identity, start, plan, about, start.eos_ids)
    log.info("%s: %d steps of `%s` from %s", out, settings.steps, recipe.name, folders.student)
    return Made.of_each(obtained)


def _of_round(recipe: Recipe, folders: Folders) -> "list[Shard]":
    """The round's shards with every view that the recipe or validation reads."""
    from pipeline.loading import Shard

    views = {*recipe.views, "teacher"}
    scores = {view: folders.teacher_scores if view == "teacher" else folders.view_scores / view for view in views}
    return [
        Shard(path, {view: _scores(folder, view, path, recipe) for view, folder in scores.items()})
        for path in shards.in_order(folders.rollouts, "refresh")
    ]


def _of_student(trained: "list[Shard]", recipe: Recipe, folders: Folders) -> "list[Shard]":
    """The round's shards with what the recipe reads of them.

    The teacher's scores are read for validation; a recipe that learns from other views does not train on them.
    """
    from pipeline import facts
    from pipeline.loading import Shard

    return [
        Shard(
            source.rollouts,
            {view: source.scores[view] for view in recipe.views},
            grades=folders.grades / source.rollouts.name if facts.grade_columns(recipe) else None,
            prompts=folders.prompts / source.rollouts.name if facts.prompt_columns(recipe) else None,
        )
        for source in trained
    ]


def _of_teacher(recipe: Recipe, folders: Folders) -> "list[Shard]":
    """The same of the teacher's own responses."""
    from pipeline import facts
    from pipeline.loading import Shard

    scores = folders.teacher_rollout_scores
    return [
        Shard(
            path,
            {view: _teacher_scores(scores / view, view, path, recipe) for view in recipe.teacher_views},
            grades=folders.teacher_grades / path.name if facts.grade_columns(recipe) else None,
            source="teacher",
        )
        for path in shards.in_order(folders.teacher_rollouts, "teacher_rollouts")
    ]


def _name(source: "Shard") -> str:
    """Of its entry in the identity; a bucket has one shard of each source."""
    return source.rollouts.name if source.source == "student" else f"{source.source}/{source.rollouts.name}"


def _scores(folder: Path, view: str, rollouts: Path, recipe: Recipe) -> Path:
    """A view's scores of a shard; missing ones are refused."""
    path = folder / rollouts.name
    if not path.exists():
        raise ShardError(
            f"{path} is missing: train.objective `{recipe.name}` needs {recipe.told(view)}. Name it "
            "in score.views and run `dvc repro score`."
        )
    return path


def _teacher_scores(folder: Path, view: str, rollouts: Path, recipe: Recipe) -> Path:
    """A view's scores of a shard of the teacher's own responses; missing ones are refused."""
    path = folder / rollouts.name
    if not path.exists():
        raise ShardError(
            f"{path} is missing: train.objective `{recipe.name}` needs {recipe.told(view)} over the "
            f"teacher's own responses, too. Set `score.views.{view}.teacher_rollouts: true` and run "
            "`dvc repro score_teacher`."
        )
    return path


def _check_teacher(path: Path, start: models.Model, sft_teacher: dict[str, str], settings: params.Train) -> None:
    """Refuse another teacher; the student itself, in another context, is none."""
    scorer = lineage.of_scores(path)
    if scorer["weights"] != start.weights:
        lineage.check(sft_teacher, scorer, str(path), settings.allow_sft_teacher, "train")


def _split(sources: "list[Shard]", prompts: Path) -> "tuple[list[Shard], list[Shard]]":
    """The shards to train on, and the held-out one with the view that validation reads."""
    trained, held_out = [], []
    for source in sources:
        column = shards.read(prompts / source.rollouts.name, shards.PROMPTS, ["split"]).column("split")
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
    round_: Annotated[str, typer.Option("--round", help="The round's name, for the timing file.")] = "",
    timing: command.TimingFile = None,
    params_file: command.ParamsFile = command.PARAMS,
    machine_file: command.MachineFile = command.MACHINE,
    store: command.StoreFolder = command.STORE,
) -> None:
    """Read the settings and run the stage."""
    settings, machine = command.settings(params_file, machine_file)
    folders = Folders(
        student=student, prompts=prompts, rollouts=rollouts, grades=graded,
        teacher_scores=teacher_scores, view_scores=view_scores,
        teacher_rollouts=teacher_rollouts, teacher_grades=teacher_grades, teacher_rollout_scores=teacher_rollout_scores,
    )  # fmt: skip
    made = run(settings.train, machine, Store(store), folders, out)
    made.note(timing, "train", round_)


if __name__ == "__main__":
    command.run(main)
