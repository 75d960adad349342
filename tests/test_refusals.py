"""Mistakes of a user's are told before the expensive part, by file or setting, and lose nothing that was finished.

Each is made in a finished project (tests/dag.py). The stage that meets it must raise one of pipeline/errors.py, whose
text names what the user wrote; no model may have been opened, and the store must hold all that it held.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.engines import open as engines_open
from pipeline.errors import (
    ConsistencyError,
    EngineError,
    ModelError,
    PotstillError,
    PromptError,
    SettingsError,
    ShardError,
)
from pipeline.storage.store import Store
from tests import dag, tiny_models
from tests.dag import Stage


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Stage]]:
    """A project in which one round ran, and its stages by name."""
    project = dag.new_project(tmp_path_factory.mktemp("finished") / "project", rounds={"r1": {"prev": "r0"}})
    order = dag.stages(project)
    with contextlib.chdir(project):
        dag.run(project, order=order)
    return project, {stage.name: stage for stage in order}


@pytest.fixture
def project(finished, tmp_path, monkeypatch) -> Path:
    copy = dag.copy(finished[0], tmp_path / "project")
    monkeypatch.chdir(copy)
    return copy


def cut_off(path: Path, share: float = 0.5) -> None:
    """Replace a file, which may be a hard link, by its beginning."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: int(len(data) * share)])


def another_teacher(project: Path) -> None:
    """The teacher becomes another model than the one whose responses the student learned from."""
    shutil.rmtree(project / "models/teacher")
    tiny_models.bigram(project / "models/teacher", seed=7)
    (project / "models/teacher/chat_template.jinja").write_text(dag.TEMPLATE)


def no_tokenizer(project: Path) -> None:
    for path in (project / "models/student").glob("tokenizer*"):
        path.unlink()


def other_vocabulary(project: Path) -> None:
    shutil.rmtree(project / "models/student")
    tiny_models.bigram(project / "models/student", letters=f"{tiny_models.LETTERS}!")


def all_prompts_are_evaluation_prompts(project: Path) -> None:
    shutil.copy(project / "evaluation.jsonl", project / "opd.jsonl")


def prompt_without_text(project: Path) -> None:
    rows = dag.read_prompts(project, "opd")
    dag.write_prompts(project, "opd", [*rows[:4], rows[4] | {"prompt": " "}, *rows[5:]])


def scored_by_another(project: Path) -> None:
    """What `score` refuses, and the settings allowed it by name; `train` is not allowed it."""
    another_teacher(project)
    dag.change(project, score__allow_sft_teacher="models/teacher")
    dag.run(project, ["models", "score@r1"])


def view(context: object = "plain", **more: object) -> Callable[[Path], None]:
    """One more view, `more`."""
    return lambda project: dag.change(project, score__views__more={"context": context, "support": {"top_k": 4}} | more)


@dataclass(frozen=True)
class Mistake:
    """What is wrong with a project, which stage meets it, and what its error must say."""

    make: Callable[[Path], None]
    stage: str
    error: type[PotstillError]
    says: tuple[str, ...]


MISTAKES = {
    "a shard of rollouts cut off, met by score": Mistake(
        lambda project: cut_off(project / "data/rollouts/r1/00001.parquet"),
        "score@r1", ShardError, ("data/rollouts/r1/00001.parquet", "cut off or damaged", "potstill verify"),
    ),
    "a shard of rollouts cut off, met by train": Mistake(
        lambda project: cut_off(project / "data/rollouts/r1/00001.parquet"),
        "train@r1", ShardError, ("data/rollouts/r1/00001.parquet", "cut off or damaged"),
    ),
    "a shard of scores cut off": Mistake(
        lambda project: cut_off(project / "data/scores/r1/teacher/00002.parquet"),
        "train@r1", ShardError, ("data/scores/r1/teacher/00002.parquet", "cut off or damaged"),
    ),
    "a shard of prompts cut off": Mistake(
        lambda project: cut_off(project / "data/prompts/opd/00003.parquet"),
        "refresh@r1", ShardError, ("data/prompts/opd/00003.parquet", "cut off or damaged"),
    ),
    "an empty file for a shard": Mistake(
        lambda project: cut_off(project / "data/rollouts/r1/00000.parquet", 0),
        "score@r1", ShardError, ("data/rollouts/r1/00000.parquet", "cut off or damaged"),
    ),
    "another teacher, met by score": Mistake(
        lambda project: (another_teacher(project), dag.run(project, ["models"]), None)[-1],
        "score@r1", ConsistencyError, ("data/rollouts/r1/", "models/teacher", "score.allow_sft_teacher"),
    ),
    "another teacher's scores, met by train": Mistake(
        scored_by_another,
        "train@r1", ConsistencyError, ("data/scores/r1/teacher/", "models/teacher", "train.allow_sft_teacher"),
    ),
    "a student as its own teacher, on the teacher's responses": Mistake(
        lambda project: dag.change(
            project, score__views__own={"model": "student", "support": {"top_k": 2}, "teacher_rollouts": True}
        ),
        "score_teacher@r1", SettingsError, ("score.views.own", "the student itself on the plain prompt"),
    ),
    "top_k over the vocabulary": Mistake(
        lambda project: dag.change(project, score__views__teacher={"support": {"top_k": 99}}),
        "score@r1", EngineError, ("score.views.teacher.support.top_k is 99", "models/teacher", "37"),
    ),
    "given ids over the vocabulary": Mistake(
        view(support={"ids": [3, 37]}),
        "score@r1", SettingsError, ("score.views.more.support.ids has 37", "models/teacher", "0 to 36"),
    ),
    "the student as its own teacher": Mistake(
        view(model="student"),
        "score@r1", SettingsError, ("score.views.more: data/models/r0 is the student itself", "`target: false`"),
    ),
    "the teacher as its own reference": Mistake(
        view(model="models/teacher", target=False),
        "score@r1", SettingsError, ("score.views.more (`target: false`) and score.views.teacher are one model",),
    ),
    "a domain that does not occur": Mistake(
        view(domains=["math"]),
        "score@r1", SettingsError, ("score.views.more.domains names math", "domains are all"),
    ),
    "a context that no row has": Mistake(
        view("feedback"),
        "score@r1", ShardError, ("score.views.more: none of the 24 responses", "24 no feedback", "grade.grader"),
    ),
    "a context that does not fit the model": Mistake(
        view({"kind": "instruction", "template": 130 * "a" + "{prompt}"}),
        "score@r1", EngineError, ("score.views.more: response ", "data/rollouts/r1/00000.parquet", "takes 128"),
    ),
    "teacher and student with different vocabularies": Mistake(
        other_vocabulary, "models", ModelError, ("models/teacher", "models/student", "different tokenizers"),
    ),
    "a model folder without tokenizer": Mistake(
        no_tokenizer, "models", ModelError, ("models/student", "no tokenizer"),
    ),
    "no prompts left after filtering": Mistake(
        all_prompts_are_evaluation_prompts, "prompts", PromptError, ("split: opd", "evaluation prompts left out"),
    ),
    "truncated JSONL": Mistake(
        lambda project: cut_off(project / "opd.jsonl", 0.99),
        "prompts", PromptError, ("opd.jsonl, line 24", "cut off"),
    ),
    "a prompt without text": Mistake(
        prompt_without_text, "prompts", PromptError, ("opd.jsonl, line 5", "`prompt` is empty"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", [pytest.param(mistake, id=name) for name, mistake in MISTAKES.items()])
def test_a_mistake_is_told_before_the_expensive_part_and_nothing_is_lost(mistake, project, finished, monkeypatch):
    mistake.make(project)
    stage = finished[1][mistake.stage]
    kept = {path: path.stat().st_ino for path in Store(project / ".potstill/store").entries()}
    stage.delete_outs(project)
    opened = []
    monkeypatch.setattr(engines_open, "open_engine", lambda model, *_: opened.append(model.name))
    monkeypatch.setattr("pipeline.training.checkpoints.open_student", lambda model, *_: opened.append(model.name))
    with pytest.raises(mistake.error) as told:
        stage.run()
    for text in mistake.says:
        assert text in str(told.value)
    assert not opened
    assert kept == {path: path.stat().st_ino for path in Store(project / ".potstill/store").entries()}


def test_another_teacher_is_accepted_where_the_settings_allow_it_by_name(project):
    scored_by_another(project)
    dag.change(project, train__allow_sft_teacher="models/teacher")
    made = dag.total(dag.run(project, ["train@r1"]))
    assert made == {"train@r1": 1}


def test_a_context_that_changes_nothing_is_told_by_every_run_and_scored_once(project, finished):
    """The first letters of the template differ, and a bigram model sees the last one alone."""
    view({"kind": "hint", "template": "!{prompt}\n\nHint: {hint}"})(project)
    stage = finished[1]["score@r1"]
    for scored in ({"score@r1 more": dag.BUCKETS}, {}):
        stage.delete_outs(project)
        with (
            dag.counting(stage.name) as made,
            pytest.raises(ShardError, match=r"score\.views\.hinted and .*\.more are one"),
        ):
            stage.run()
        assert made == scored


def test_another_teacher_is_not_accepted_by_another_name(project, finished):
    scored_by_another(project)
    dag.change(project, train__allow_sft_teacher="models/other")
    with pytest.raises(ConsistencyError):
        finished[1]["train@r1"].run()


def test_after_the_repair_only_what_was_missing_is_made(project, finished):
    """The shard that was cut off in the output folder is whole in the store."""
    cut_off(project / "data/rollouts/r1/00001.parquet")
    with pytest.raises(ShardError):
        finished[1]["score@r1"].run()
    assert dag.total(dag.run(project, ["refresh@r1", "score@r1", "train@r1"])) == {}


def test_a_file_that_is_cut_off_in_the_store_too_is_told_and_made_anew_once_removed(project, finished):
    """Output and store are one inode, so what cuts the one cuts the other."""
    shard, stage = project / "data/scores/r1/teacher/00001.parquet", finished[1]["score@r1"]
    inode = shard.stat().st_ino
    stored = next(path for path in (project / ".potstill/store").glob("*/*") if path.stat().st_ino == inode)
    cut_off(stored)
    stage.delete_outs(project)
    with pytest.raises(ShardError, match="cut off or was changed") as told:
        stage.run()
    assert str(stored.relative_to(project)) in str(told.value)
    stored.unlink()
    assert dag.total(dag.run(project, ["score@r1", "train@r1"])) == {"score@r1 teacher": 1}


def test_a_shard_that_is_damaged_in_place_is_whole_again_after_the_commands_that_are_printed(project, finished):
    """Output, store and DVC's cache are one inode; as many bytes as before, and none of the file's ends, are wrong."""
    shard, cached = project / "data/rollouts/r1/00001.parquet", project / ".dvc/cache/copy"
    cached.parent.mkdir(parents=True, exist_ok=True)
    os.link(shard, cached)
    whole = shard.read_bytes()
    with shard.open("r+b") as file:
        file.seek(4)
        file.write(bytes(296))
    with pytest.raises(ShardError, match="is cut off or damaged") as told:
        finished[1]["score@r1"].run()
    command = re.search("`(find .+?)`", str(told.value))
    assert command is not None
    subprocess.run(shlex.split(command[1]), cwd=project, check=True)
    assert not cached.exists()
    assert dag.total(dag.run(project, ["refresh@r1", "score@r1", "train@r1"])) == {"refresh@r1": 1}
    assert shard.read_bytes() == whole


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a shard of rollouts cut off, met by score", "truncated JSONL"])
def test_the_command_line_ends_with_1_and_no_traceback(name, project, finished):
    mistake = MISTAKES[name]
    mistake.make(project)
    argv = [sys.executable, *finished[1][mistake.stage].argv[1:]]
    ended = subprocess.run(
        argv, cwd=project, env=os.environ | {"PYTHONPATH": str(dag.ROOT)}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert f"{mistake.stage.partition('@')[0]}: error: " in ended.stderr
    assert all(text in ended.stderr for text in mistake.says)
