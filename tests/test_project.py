"""Where a project is, from its folder, a subfolder and an experiment's copy; and files of DVC's own that a kill cut."""

import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline import project
from pipeline.models.record import read_model
from pipeline.storage.dvc_files import repair_dvc_files
from tests import dag, dvc_project


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "project" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "project" / "dvc.yaml").touch()
    return tmp_path / "project"


def copy_of_an_experiment(root: Path) -> Path:
    copy = root / ".dvc/tmp/exps/tmp1234"
    copy.mkdir(parents=True)
    shutil.copy(root / "dvc.yaml", copy)
    return copy


def test_a_project_is_found_from_its_folder_and_below(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for below, expected in ((".", "data"), ("deep", "../data"), ("deep/er", "../../data")):
        monkeypatch.chdir(root / below)
        assert str(project.find_data()) == expected
        assert project.find_store().resolve() == root / ".potstill/store"


def test_without_a_project_above_it_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (project.find_data(), project.find_machine()) == (Path("data"), Path(".potstill/machine.yaml"))


def test_an_experiments_copy_uses_the_projects_store_and_its_own_data(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy_of_an_experiment(root))
    assert project.find_data().resolve() == Path.cwd() / "data"
    assert project.find_machine().resolve() == root / ".potstill/machine.yaml"


def test_the_environment_may_name_another_place(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(project.HOME, "~/elsewhere")
    for folder in (root, copy_of_an_experiment(root)):
        monkeypatch.chdir(folder)
        assert project.find_store() == Path.home() / "elsewhere/store"


def test_a_models_record_is_read_from_anywhere(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = dag.new_project(root.parent / "made")
    with monkeypatch.context() as inside:
        inside.chdir(made)
        dag.run(made, order=[stage for stage in dag.stages(made) if stage.name == "models"])
        expected = read_model(Path("data/models/teacher.json"))
    monkeypatch.chdir(root)
    found = read_model(made / "data/models/teacher.json")
    assert Path(found.location).resolve() == (made / expected.location).resolve()
    found.check_unchanged()


@pytest.fixture(scope="module")
def with_dvc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of one stage, which DVC ran, in git."""
    folder = tmp_path_factory.mktemp("with_dvc")
    (folder / "dvc.yaml").write_text(
        "stages: {a: {cmd: echo 1 > a, outs: [a]}, b: {cmd: cat a > b, deps: [a], outs: [b]}}"
    )
    for command in ("git init -q", "dvc init -q", "dvc repro -q", "git add .", "git commit -qm all"):
        dvc_project.run(folder, *command.split())
    return folder


@pytest.fixture
def ran(with_dvc: Path, tmp_path: Path) -> Path:
    return shutil.copytree(with_dvc, tmp_path / "ran", symlinks=True)


@pytest.mark.parametrize("is_tracked", [True, False])
@pytest.mark.parametrize(
    "left", [b"", b"\0" * 300, b"schema: '2.0'\nstages:\n  a:\n    cmd: [", b"schema: '2.0'\nstages:\n  a:"]
)
def test_a_lock_file_cut_by_a_power_cut_is_set_aside_and_dvc_runs_again(
    ran: Path, left: bytes, is_tracked: bool
) -> None:
    if not is_tracked:
        shutil.rmtree(ran / ".git")
        dvc_project.run(ran, "dvc", "config", "core.no_scm", "true")
    (ran / "dvc.lock").write_bytes(left)
    dvc_project.run(ran, "dvc", "repro", fails=True)
    (told,) = repair_dvc_files(ran)
    assert str(ran / "dvc.lock.damaged") in told
    assert (ran / "dvc.lock").exists() == is_tracked == ("the committed one is back" in told)
    assert (ran / "dvc.lock.damaged").read_bytes() == left
    dvc_project.run(ran, "dvc", "repro")
    assert (ran / "dvc.lock").read_text().startswith("schema")


@pytest.mark.parametrize("left", [b"", b"\0\0", b'{"write": {"'])
def test_a_note_of_who_is_at_work_cut_by_a_kill_is_removed_and_dvc_runs_again(ran: Path, left: bytes) -> None:
    (ran / "a").unlink()
    (ran / ".dvc/tmp/rwlock").write_bytes(left)
    dvc_project.run(ran, "dvc", "repro", fails=True)
    (told,) = repair_dvc_files(ran)
    assert ".dvc/tmp/rwlock" in told
    dvc_project.run(ran, "dvc", "repro")


def test_files_of_dvcs_that_can_be_read_are_left_alone(ran: Path) -> None:
    before = {path: path.read_bytes() for path in (ran / "dvc.lock", ran / ".dvc/tmp/rwlock")}
    assert repair_dvc_files(ran) == []
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.slow
def test_an_experiment_of_dvcs_finds_what_the_project_has_finished(tmp_path: Path) -> None:
    """And says so: its own copy has neither store nor settings of the machine."""
    made = dvc_project.new_project(tmp_path / "project", rounds={"r1": {"prev": "r0"}})
    shutil.copy(dag.ROOT / ".gitignore", made)
    dvc_project.run(made, "git", "init", "-q")
    dvc_project.run(made, "dvc", "config", "core.no_scm", "false")
    dvc_project.run(made, "git", "add", ".")
    dvc_project.run(made, "git", "commit", "-qm", "all")
    dvc_project.run(made, "dvc", "repro", "sft")
    stored = set((made / ".potstill/store").iterdir())
    printed = dvc_project.run(made, "dvc", "exp", "run", "--temp", "-S", "sft.steps=3", "sft")
    assert "stages.sft" in printed
    assert set((made / ".potstill/store").iterdir()) > stored, "the experiment's r0 is in the project's store"
    again = subprocess.run(
        ["dvc", "exp", "run", "--temp", "-f", "-S", "sft.steps=3", "sft"],
        cwd=made, env=dvc_project.ENVIRONMENT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "sft: nothing was made: all 1 files were found in the store" in again.stdout + again.stderr
