"""Files of a finished project, of every kind, damaged by a bit or by their end, in the stages that read them.

A trial's number decides file and damage. A stage that reads the file runs again: it ends in one paragraph that names
the damaged file, and after the command that it prints all is as before; or it ends well, and so do its outputs.
"""

import random
import re
import shlex
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import PotstillError
from tests import dag
from tests.campaigns import trials
from tests.dag import Stage

pytestmark = [pytest.mark.slow, pytest.mark.campaign]

TRIALS = trials(1000)
SHARES = 4


def flip(whole: bytes, draw: random.Random) -> bytes:
    changed = bytearray(whole)
    changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(whole: bytes, draw: random.Random) -> bytes:
    return whole[: draw.randrange(len(whole))]


def empty(whole: bytes, _: random.Random) -> bytes:
    return bytes(len(whole))


DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [flip, flip, flip, cut, empty]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Stage]]:
    """A project in which everything ran, the report too."""
    project = dag.new_project(tmp_path_factory.mktemp("files") / "project", rounds={"r1": {"prev": "r0"}})
    order = dag.stages(project)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        for stage in order:
            stage.delete_outs(project)
            stage.run()
    return project, order


def kinds(project: Path) -> dict[str, list[Path]]:
    """The files that stages made, by what they are: outputs by their folder and ending, and those of the store."""
    found = defaultdict(list)
    for path in sorted((project / "data").rglob("*")):
        if path.is_file() and "report" not in path.parts:
            found[f"{path.relative_to(project).parts[1]} {path.name if path.suffix != '.parquet' else ''}"].append(path)
    for path in sorted((project / ".potstill/store").rglob("*")):
        if path.is_file():
            found[f"store {''.join(path.suffixes)}"].append(path)
    return found


def find_readers(stages: list[Stage], path: Path) -> list[Stage]:
    """The stages that read a file: those that depend on it; of one in the store, all that made something there."""
    if path.parts[0] == ".potstill":
        return [stage for stage in stages if stage.name not in ("inputs", "report")]
    return [stage for stage in stages if any(path.is_relative_to(dep) for dep in stage.deps)]


def find_name(path: Path) -> str:
    """What an error is to name: the file; in the store, the entry, which may be a folder or have a note beside it."""
    return path.parts[3].partition(".")[0] if path.parts[0] == ".potstill" else str(path)


def contents(project: Path, stage: Stage) -> dict[str, dict[str, str]]:
    return {out: dag.contents(project / out) for out in stage.outs if not out.startswith("data/timings")}


def run(stage: Stage) -> PotstillError | None:
    """Run a stage; the mistake that it told of, if any."""
    try:
        stage.run()
    except PotstillError as error:
        return error
    return None


@pytest.mark.parametrize("share", range(SHARES))
def test_damage_is_told_and_what_is_printed_repairs_it(finished, share, tmp_path, monkeypatch):
    reference, stages = finished
    by_kind = kinds(reference)
    told = 0
    for number in list(TRIALS)[share::SHARES]:
        draw = random.Random(number)
        path = draw.choice(by_kind[draw.choice(sorted(by_kind))]).relative_to(reference)
        if not (readers := find_readers(stages, path)):
            continue
        stage, damage = draw.choice(readers), draw.choice(DAMAGES)
        project = tmp_path / str(number)
        subprocess.run(["cp", "-a", reference, project], check=True)  # keeps output and store one inode
        monkeypatch.chdir(project)
        path.write_bytes(damage(path.read_bytes(), draw))
        names = {find_name(each.relative_to(project)) for each in project.rglob("*") if each.samefile(path)}
        what = f"trial {number}: {damage.__name__} {path}, read by {stage.name}"
        stage.delete_outs(project)
        if (error := run(stage)) is not None:
            told += 1
            assert any(name in str(error) for name in names), f"{what}: {error}"
            repair(reference, stages, stage, error)
        if error is None or stage.name != "report":  # the page of a repaired project tells of other seconds
            assert contents(project, stage) == contents(reference, stage), what
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(project)
    assert told


def repair(reference: Path, stages: list[Stage], failed: Stage, error: PotstillError) -> None:
    """Do as a user does: the printed command, then `dvc repro`, until it ends well.

    DVC runs what lost a file of its outputs, and what failed.
    """
    for _ in range(3):
        commands = re.findall(r"`((?:find|rm) .+?)`", str(error))
        assert commands, error
        for each in commands:
            subprocess.run(shlex.split(each), check=True)
        lost = [each for each in stages if any(names_in(Path(), out) != names_in(reference, out) for out in each.outs)]
        try:
            for stage in stages:
                if stage in lost or stage == failed:
                    failed = stage
                    stage.delete_outs(Path.cwd())
                    stage.run()
            return
        except PotstillError as again:
            error = again
    raise error


def names_in(project: Path, out: str) -> set[Path]:
    """The paths of an output, relative to the project."""
    found = [project / out, *(project / out).rglob("*")]
    return {path.relative_to(project) for path in found if path.exists()}
