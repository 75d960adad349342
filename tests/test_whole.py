"""Files that are needed later: written whole, told as damaged, and found by `verify`; what the system refuses, told."""

import ast
import errno
import json
import os
from pathlib import Path

import pytest

from pipeline import command
from pipeline.errors import ShardError, explain_system_error
from pipeline.models.seal import CHECKPOINT, verify_checkpoint, write_sealed
from pipeline.storage import hashing
from pipeline.storage.manifest import MANIFEST, verify_folder, verify_records
from pipeline.storage.scores import SCORES, make_skipped_table
from pipeline.storage.shards import Writer
from pipeline.storage.store import Store
from pipeline.storage.whole import read_json, write_json, write_whole

ROOT = Path(__file__).parent.parent
IDENTITY = {"stage": "score", "rows": {"number": 1}}
IN_PLACE = {
    "pipeline/storage/whole.py": "writes beside the file",
    "pipeline/training/states.py": "writes beside the file, streaming",
    "pipeline/training/checkpoints.py": "writes into a folder that the store syncs and renames",
    "pipeline/demo/models.py": "writes into a folder that the store syncs and renames",
}


def _writes(node: ast.AST) -> bool:
    """Whether this is a call that writes a file under its own name."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    given = [each for each in (*node.args, *(word.value for word in node.keywords)) if isinstance(each, ast.Constant)]
    modes = {"w", "a", "x", "wb", "ab", "xb"} & {each.value for each in given}
    return name in ("write_text", "write_bytes") or (name == "open" and bool(modes))


def test_nothing_is_written_in_place():
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("pipeline", "stages")
        for path in (ROOT / folder).rglob("*.py")
        if any(map(_writes, ast.walk(ast.parse(path.read_text()))))
    }
    assert found <= IN_PLACE.keys()


def test_a_name_stands_for_what_is_on_the_disk(tmp_path, monkeypatch):
    happened = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor):
        fsync(descriptor)
        happened.append(os.fstat(descriptor).st_ino)

    def renamed(self, target):
        happened.append(self.stat().st_ino)
        happened.append("renamed")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_whole(tmp_path / "made" / "x.json", "{}")
    inode = (tmp_path / "made/x.json").stat().st_ino
    assert happened == [inode, inode, "renamed", (tmp_path / "made").stat().st_ino]


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path):
    write_whole(tmp_path / "x.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "x.json", "\ud800")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.json", "old")]


def test_a_file_that_dvcs_cache_has_too_is_not_written_in_place(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    os.link(tmp_path / "x.json", tmp_path / "cache")
    write_json(tmp_path / "x.json", {"a": 2})
    assert read_json(tmp_path / "cache") == {"a": 1}


def _shard(path):
    with Writer(path, SCORES, IDENTITY, {}) as writer:
        writer.write(make_skipped_table(["r1"], ["no hint"]))


@pytest.mark.parametrize("note", ["", "[1]", '{"entry": {"rows": 1}}', '{"entry": {', "\0\0\0"])
def test_a_note_that_the_power_took_is_written_anew(note, tmp_path, caplog):
    store = Store(tmp_path)
    made = store.obtain(IDENTITY, _shard)
    path = store.path(made.entry.fingerprint, ".parquet")
    side = path.with_name(f"{path.name}.entry.json")
    side.write_text(note)
    assert store.list_families() == {hashing.fingerprint_family(IDENTITY): [path]}
    side.write_text(note)
    assert store.obtain(IDENTITY, lambda _: pytest.fail("it is there")).entry == made.entry
    assert f"{side} cannot be read" in caplog.text
    assert json.loads(side.read_text())["entry"]["content"] == made.entry.content


@pytest.mark.parametrize("suffix", [".json", ""])
def test_what_was_changed_in_the_store_is_not_given_out(suffix, tmp_path):
    def make(path):
        inside = path / "x.json" if suffix == "" else path
        inside.parent.mkdir(exist_ok=True)
        inside.write_text('{"nats": 0.25}')

    store = Store(tmp_path)
    made = store.obtain(IDENTITY, make, suffix)
    path = store.path(made.entry.fingerprint, suffix)
    (path / "x.json" if suffix == "" else path).write_text('{"nats": 0.75}')
    with pytest.raises(ShardError, match=r"has another content than when it was written.*(samefile|rm -r)"):
        store.obtain(IDENTITY, make, suffix)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    (tmp_path / "deep").mkdir()
    for name in ("model.safetensors", "config.json", "deep/x.txt"):
        (tmp_path / name).write_text(name)
    write_sealed(tmp_path, {"identity": {"stage": "train"}, "alarms": []})
    return tmp_path


def test_a_whole_checkpoint_is_verified(checkpoint):
    assert verify_checkpoint(checkpoint) == []
    assert read_json(checkpoint / CHECKPOINT)["identity"] == {"stage": "train"}


def test_every_flipped_bit_in_a_checkpoint_is_named(checkpoint):
    for path in [path for path in checkpoint.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
            told = verify_checkpoint(checkpoint)
            # JSON of other bytes can say the same: a tab for a space
            assert len(told) == 1 or (path.name == CHECKPOINT and not told and json.loads(path.read_bytes()))
            assert all(str(path) in sentence and "samefile" in sentence for sentence in told)
        path.write_bytes(whole)


def test_a_file_that_a_checkpoint_lost_is_named(checkpoint):
    (checkpoint / "deep/x.txt").unlink()
    (told,) = verify_checkpoint(checkpoint)
    assert told.startswith(f"{checkpoint / 'deep/x.txt'} is missing. `dvc pull")


def test_verify_survives_a_damaged_manifest_and_reads_records(tmp_path):
    for folder in ("scores", "metrics"):
        (tmp_path / folder).mkdir()
    write_json(tmp_path / "scores" / MANIFEST, {"00000.parquet": {"rows": 1}})
    (tmp_path / "metrics/r1.json").write_text('{"greedy": 0.5')
    assert f"{MANIFEST} is cut off or damaged" in verify_folder(tmp_path / "scores")[0]
    assert ["metrics/r1.json is cut off" in sentence for sentence in verify_records(tmp_path)] == [True]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "data/x"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
    ],
)
def test_a_full_disk_is_told_in_one_paragraph(error, capsys):
    import typer

    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise ValueError("a library's own words") from error

    with pytest.raises(SystemExit) as end:
        command.call_app(app, "score", "score", [])
    assert end.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith("score: error: ")
    assert "No space left on device (" in told
    assert "bytes are free" in told
    assert "potstill gc" in told


@pytest.mark.parametrize("error", [KeyError("x"), OSError("a library's"), FileNotFoundError(errno.ENOENT, "no", "x")])
def test_what_is_our_own_bug_keeps_its_traceback(error):
    assert explain_system_error(error) is None
