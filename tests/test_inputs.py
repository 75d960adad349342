"""Records of what stages read, against edits of every kind of file that params.yaml can name: which records change."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import inputs
from pipeline.settings import params
from pipeline.storage.whole import read_json
from stages import inputs as stage
from tests import dag, tiny_models

GRADER = "def grade(response, answer):\n    return response == answer\n"


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that names a file or folder wherever settings can."""
    project = dag.new_project(tmp_path_factory.mktemp("inputs") / "project")
    (project / "mine.py").write_text(GRADER)
    for name in ("adapter", "set"):
        (project / name).mkdir()
    (project / "adapter/adapter_config.json").write_text("{}")
    (project / "set/train.jsonl").write_text('{"prompt": "one more", "answer": "1", "hint": null}\n')
    tiny_models.bigram(project / "models/reference", 3)
    sources = [*dag.settings()["prompts"]["sources"], {"split": "sft", "dataset": "set"}]
    dag.change(
        project,
        prompts__sources=sources,
        grade__grader="mine:grade",
        sft=dag.settings()["sft"] | {"steps": 0, "teacher": "models/teacher"},
        score__views__other={"model": "models/reference", "target": False, "support": {"top_k": 2}},
    )
    return project


@pytest.fixture
def project(untouched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shutil.copytree(untouched, tmp_path / "project"))
    return tmp_path / "project"


def record(project: Path) -> dict[str, dict[str, Any]]:
    settings, cache = params.load_params(project / "params.yaml"), Path(".potstill/hashes.json")
    stage.run(settings, out=Path("data/inputs"), models=Path("data/models"), cache=cache)
    return {path.stem: read_json(path) for path in Path("data/inputs").glob("*.json")}


def append(name: str) -> Callable[[Path], None]:
    def apply(project: Path) -> None:
        with (project / name).open("ab") as file:
            file.write(b"\n")

    return apply


def replaced(project: Path) -> None:
    """As an editor saves: another file of the same size and time."""
    before = (project / "opd.jsonl").stat()
    other = project / "other"
    other.write_bytes((project / "opd.jsonl").read_bytes().replace(b"0+1", b"0+2"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(project / "opd.jsonl")


GRADED = {"teacher_rollouts", "refresh", "evaluate"}
EDITS: dict[str, tuple[Callable[[Path], Any], set[str]]] = {
    "nothing": (lambda _: None, set()),
    "rows appended to a source": (append("opd.jsonl"), {"prompts"}),
    "a source replaced by one of the same size and time": (replaced, {"prompts"}),
    "rows appended in a data set's folder": (append("set/train.jsonl"), {"prompts"}),
    "a file added to a data set's folder": (append("set/more.jsonl"), {"prompts"}),
    "a grader's function": (append("mine.py"), GRADED),
    "weights of the student": (append("models/student/model.safetensors"), {"models"}),
    "weights of the teacher": (append("models/teacher/model.safetensors"), {"models", "sft"}),
    "the teacher's template": (append("models/teacher/chat_template.jinja"), {"models", "sft"}),
    "weights of a view's model": (append("models/reference/model.safetensors"), {"score"}),
    "a file that nobody names": (append("unused.jsonl"), set()),
    "a hidden file": (append("models/teacher/.cache"), set()),
    "a file that was only touched": (lambda project: (project / "opd.jsonl").touch(), set()),
    "another recipe": (lambda project: dag.change(project, train__objective="topk_forward_kl"), {"train"}),
}


@pytest.mark.parametrize(("edit", "changed"), EDITS.values(), ids=list(EDITS))
def test_an_edit_changes_the_records_of_the_stages_that_read_it(
    project: Path, edit: Callable[[Path], Any], changed: set[str]
) -> None:
    before = record(project)
    assert set(before) == {"models", "prompts", "teacher_rollouts", "sft", "refresh", "score", "train", "evaluate"}
    edit(project)
    after = record(project)
    assert {name for name in before if before[name] != after[name]} == changed


def test_an_edited_adapter_changes_the_records_of_those_who_put_it_on(project: Path) -> None:
    views = {"teacher": {"support": {"top_k": 4}}}
    adapted = {"engine": "hf", "adapter": "adapter"}
    sampling = {"sampling": {"max_tokens": 8}}
    dag.change(project, teacher_rollouts=adapted | sampling, score=adapted | {"views": views})
    before = record(project)
    append("adapter/adapter_config.json")(project)
    after = record(project)
    assert {name for name in before if before[name] != after[name]} == {"teacher_rollouts", "score"}


def test_a_recipes_prose_is_no_part_of_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, load = record(project), inputs.load_recipe
    monkeypatch.setattr(inputs, "load_recipe", lambda name: load(name).model_copy(update={"paper": "none"}))
    assert record(project) == before
    monkeypatch.setattr(inputs, "load_recipe", lambda _: load("gkd"))
    after = record(project)
    assert {name for name in before if before[name] != after[name]} == {"sft", "train"}


def test_a_file_that_is_not_on_this_machine_is_as_it_was_recorded(project: Path) -> None:
    before = record(project)
    for name in ("opd.jsonl", "mine.py", "models/teacher/model.safetensors"):
        (project / name).rename(project / f"{name}.away")
    (project / "models/student").rename(project / "away")
    after = record(project)
    assert {name: after[name] for name in ("prompts", *GRADED)} == {name: before[name] for name in ("prompts", *GRADED)}
    assert after["models"]["models.student"] == before["models"]["models.student"]
    assert after["models"]["models.teacher"] != before["models"]["models.teacher"]


@pytest.mark.slow  # DVC is asked for a record elsewhere
@pytest.mark.parametrize("name", ["opd.jsonl", "a" * 300, "a\0b", "loop"])
def test_what_is_no_file_here_and_was_never_recorded_has_no_hash(project: Path, name: str) -> None:
    (project / "opd.jsonl").unlink()
    (project / "loop").symlink_to("loop")
    dag.change(project, prompts__sources=[{"split": "opd", "path": name}])
    assert record(project)["prompts"] == {"version": 1, "prompts.sources.0": None}


def test_what_stages_make_and_the_hub_has_is_not_recorded(project: Path) -> None:
    dag.change(
        project,
        models={"teacher": "owner/name@main", "student": "models/student"},
        sft={**dag.settings()["sft"], "steps": 0, "teacher": "unknown"},
        score__views__other={"model": "data/models/r0", "target": False, "support": {"top_k": 2}},
    )
    (project / "data/models/r0").mkdir(parents=True)
    found = record(project)
    assert set(found["models"]) == {"version", "models.student"}
    assert set(found["sft"]) == {"version", "recipe"}
    assert set(found["score"]) == {"version"}


def test_a_file_of_the_users_among_what_stages_make_is_recorded(project: Path) -> None:
    shutil.copytree(project / "models/student", project / "data/models/mine")
    (project / "opd.jsonl").rename(project / "data/opd.jsonl")
    dag.change(
        project,
        models={"teacher": "models/teacher", "student": "data/models/mine"},
        prompts__sources=[{"split": "opd", "path": "data/opd.jsonl"}],
    )
    found = record(project)
    assert found["models"]["models.student"] is not None
    assert found["prompts"]["prompts.sources.0"] is not None


def test_a_file_is_read_once_while_it_is_not_written(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(project)
    files = list((project / "data/inputs").iterdir())
    stamps = [path.stat().st_mtime_ns for path in files]
    monkeypatch.setattr(inputs.hashing, "hash_path", None)
    record(project)
    assert [path.stat().st_mtime_ns for path in files] == stamps
    (project / ".potstill/hashes.json").write_text("")
    with pytest.raises(TypeError):
        record(project)
