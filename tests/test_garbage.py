"""What `verify` counts and names, and what `gc` may remove, of a project in which everything is whole."""

import os
import shutil
from pathlib import Path

import pytest

from pipeline.models.seal import write_sealed
from pipeline.storage.garbage import find_garbage
from pipeline.storage.store import Store
from tests import example_data

LATER = 1e11
"""A time long after any file was written, seconds."""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A project that a test may spoil."""
    example_data.make(tmp_path)
    return tmp_path


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_verify_counts_what_is_whole(own: Path, capsys: pytest.CaptureFixture[str]):
    example_data.run_potstill(own, "verify")
    files = len([path for path in _files(own / "data") if path.suffix == ".parquet"])
    assert f"{files} files in " in capsys.readouterr().out


def test_verify_names_damaged_files(own: Path, capsys: pytest.CaptureFixture[str]):
    cut = own / "data/scores/r1/teacher/00001.parquet"
    whole = cut.read_bytes()
    cut.unlink()
    cut.write_bytes(whole[:-100])
    missing = own / "data/grades/r2/00002.parquet"
    missing.unlink()
    with pytest.raises(SystemExit) as end:
        example_data.run_potstill(own, "verify")
    assert end.value.code == 1
    told = capsys.readouterr()
    assert str(cut) in told.out
    assert str(missing) in told.out
    assert "2 files are not as they were written, of 71" in told.err
    example_data.run_potstill(own, "verify", str(own / "data/rollouts/r1"))


def test_verify_takes_a_checkpoint_alone(own: Path, capsys: pytest.CaptureFixture[str]):
    write_sealed(own / "data/models/r1", {"identity": {}})
    example_data.run_potstill(own, "verify", str(own / "data/models/r1"))
    assert "0 folders, and 1 checkpoints, are as they were written" in capsys.readouterr().out


def test_verify_refuses_to_verify_nothing(tmp_path: Path):
    with pytest.raises(SystemExit) as end:
        example_data.run_potstill(tmp_path, "verify")
    assert end.value.code == 1


def test_gc_lists_nothing_that_an_output_refers_to(own: Path):
    assert find_garbage(own / "data", own / ".potstill", 0.0, LATER) == []


def test_gc_spares_what_only_a_manifest_names(own: Path):
    """An output that was copied, not linked, is an output all the same."""
    path = own / "data/rollouts/r1/00001.parquet"
    copy = path.read_bytes()
    path.unlink()
    path.write_bytes(copy)
    assert find_garbage(own / "data", own / ".potstill", 0.0, LATER) == []


def test_gc_spares_what_only_a_link_holds(own: Path):
    """DVC's cache links shards of experiments that no manifest in the workspace names any more."""
    cache = own / "cache"
    cache.mkdir()
    for number, path in enumerate(sorted((own / "data/rollouts/r2").glob("*.parquet"))):
        os.link(path, cache / str(number))
    shutil.rmtree(own / "data/rollouts/r2")
    assert find_garbage(own / "data", own / ".potstill", 0.0, LATER) == []
    shutil.rmtree(cache)
    assert len(find_garbage(own / "data", own / ".potstill", 0.0, LATER)) == 2, "the kept shard is still in r1"


def test_gc_removes_only_when_told(own: Path, capsys: pytest.CaptureFixture[str]):
    shutil.rmtree(own / "data/scores/r2")
    before = _files(own / ".potstill")
    arguments = ["gc", "--older-than-days", "0", "--state", str(own / ".potstill")]
    example_data.run_potstill(own, *arguments)
    assert _files(own / ".potstill") == before
    assert "4 entries" in capsys.readouterr().out
    example_data.run_potstill(own, *arguments, "--remove")
    assert len(before - _files(own / ".potstill")) == 8, "four shards and the notes on them"
    example_data.run_potstill(own, "verify")


def test_gc_spares_the_young(own: Path, capsys: pytest.CaptureFixture[str]):
    shutil.rmtree(own / "data/scores/r2")
    example_data.run_potstill(own, "gc", "--remove", "--state", str(own / ".potstill"))
    assert "0 entries" in capsys.readouterr().out


def test_gc_lists_folders_half_written_files_and_finished_training(own: Path):
    state = own / ".potstill"
    identity = {"stage": "train"}
    made = Store(state / "store").obtain(identity, _checkpoint, "").entry.fingerprint
    half = state / "store" / made[:2] / f"{made}.making-0123.parquet"
    half.write_bytes(b"PAR1")
    for name in (made, "unfinished"):
        (state / "training" / name).mkdir(parents=True)
        (state / "training" / name / "state.pt").write_bytes(b"weights")
    found = find_garbage(own / "data", state, 0.0, LATER)
    assert {leftover.paths[0].name for leftover in found} == {made, half.name}
    assert [leftover.paths[0].parent.name for leftover in found] == [made[:2], made[:2], "training"]
    for leftover in found:
        leftover.remove()
    assert find_garbage(own / "data", state, 0.0, LATER) == []
    assert (state / "training" / "unfinished" / "state.pt").exists()


def _checkpoint(path: Path) -> None:
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"weights")
