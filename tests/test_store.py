"""The store against its promise: made once, whole or absent, first writer wins, one inode, nothing left over."""

import multiprocessing
import shutil
import threading

import pytest

from pipeline.errors import ShardError
from pipeline.storage import hashing
from pipeline.storage.manifest import MANIFEST, read_identity, read_manifest, verify_folder
from pipeline.storage.scores import SCORES, make_skipped_table
from pipeline.storage.shards import Writer, read_about
from pipeline.storage.store import Folder, Store
from pipeline.storage.whole import write_json

IDENTITY = {"stage": "test", "number": 1}


@pytest.fixture
def kept(tmp_path):
    return Store(tmp_path / "store")


def shard(path, identity=IDENTITY, rows=2):
    """A small shard of grades that says how it was made."""
    written = make_skipped_table([f"r{number}" for number in range(rows)], ["no hint"] * rows)
    with Writer(path, SCORES, identity, {}) as writer:
        writer.write(written)


def checkpoint(path, identity=IDENTITY):
    """A folder with a folder in it."""
    (path / "inside").mkdir(parents=True)
    (path / "inside" / "weights").write_text("1 2 3")
    write_json(path / "potstill.json", {"identity": identity})


def never(path):
    raise AssertionError("the store has it")


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_was_made_once_is_found_ever_after(kept):
    assert not kept.has(IDENTITY)
    first = kept.obtain(IDENTITY, shard)
    second = kept.obtain(IDENTITY, never)
    assert (first.made, second.made) == (True, False)
    assert first.entry == second.entry
    assert first.seconds == second.seconds is not None
    assert kept.has(IDENTITY)
    assert not kept.has({**IDENTITY, "number": 2})
    assert kept.obtain({**IDENTITY, "number": 2}, shard).made


def test_an_entry_says_what_is_in_the_file(kept):
    entry = kept.obtain(IDENTITY, shard).entry
    path = kept.path(entry.fingerprint, ".parquet")
    assert (entry.rows, entry.tokens, entry.bytes) == (2, 0, path.stat().st_size)
    assert entry.fingerprint == hashing.fingerprint(IDENTITY)
    assert entry.content == hashing.hash_path(path)


@pytest.mark.parametrize(("make", "suffix"), [(shard, ".parquet"), (checkpoint, "")])
def test_a_maker_that_dies_leaves_nothing(kept, make, suffix):
    def dies(path):
        make(path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.obtain(IDENTITY, dies, suffix)
    assert not kept.has(IDENTITY, suffix)
    assert names(kept.root) == []
    assert kept.obtain(IDENTITY, make, suffix).made


def test_a_file_whose_note_was_lost_is_found_and_noted(kept):
    made = kept.obtain(IDENTITY, shard)
    path = kept.path(made.entry.fingerprint, ".parquet")
    path.with_name(f"{path.name}.entry.json").unlink()
    again = kept.obtain(IDENTITY, never)
    assert (again.entry, again.made, again.seconds) == (made.entry, False, None)


@pytest.mark.parametrize(("make", "suffix"), [(shard, ".parquet"), (checkpoint, "")])
def test_the_first_writer_wins(kept, make, suffix):
    """A second process that made the same meanwhile leaves the first one's file, and nothing of its own."""
    inodes = []

    def finished():
        return [path.stat().st_ino for path in kept.root.rglob("*") if path.is_file() and "entry" not in path.name]

    def overtaken(path):
        kept.obtain(IDENTITY, make, suffix)
        inodes.extend(finished())
        make(path)

    slower = kept.obtain(IDENTITY, overtaken, suffix)
    assert finished() == inodes
    assert kept.obtain(IDENTITY, never, suffix).entry == slower.entry
    assert not [name for name in names(kept.root) if "making" in name]


def _obtain(root, folder, number):
    Store(root).obtain(IDENTITY, shard, target=folder / f"{number}.parquet")


def test_many_processes_and_threads_end_up_with_one_file(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [
        *(threading.Thread(target=_obtain, args=(tmp_path / "store", tmp_path, n)) for n in range(4)),
        context.Process(target=_obtain, args=(tmp_path / "store", tmp_path, 4)),
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len({(tmp_path / f"{number}.parquet").stat().st_ino for number in range(5)}) == 1
    assert len(names(tmp_path / "store")) == 2  # the shard and its note


def test_store_and_target_are_one_inode(kept, tmp_path):
    entry = kept.obtain(IDENTITY, shard, target=tmp_path / "out" / "a.parquet").entry
    assert (tmp_path / "out" / "a.parquet").samefile(kept.path(entry.fingerprint, ".parquet"))
    folder = kept.obtain(IDENTITY, checkpoint, "", tmp_path / "out" / "r0").entry
    for name in ("potstill.json", "inside/weights"):
        assert (tmp_path / "out" / "r0" / name).samefile(kept.path(folder.fingerprint, "") / name)


def test_what_stood_at_the_target_is_replaced(kept, tmp_path):
    target = tmp_path / "r0"
    checkpoint(target)
    (target / "old").write_text("old")
    kept.obtain(IDENTITY, checkpoint, "", target)
    assert names(target) == ["inside/weights", "potstill.json"]
    (tmp_path / "a.parquet").write_text("old")
    kept.obtain(IDENTITY, shard, target=tmp_path / "a.parquet")
    assert read_about(tmp_path / "a.parquet")["identity"] == IDENTITY


def test_an_output_deleted_by_dvc_is_linked_again(kept, tmp_path):
    kept.obtain(IDENTITY, shard, target=tmp_path / "out" / "a.parquet")
    shutil.rmtree(tmp_path / "out")
    assert not kept.obtain(IDENTITY, never, target=tmp_path / "out" / "a.parquet").made
    assert (tmp_path / "out" / "a.parquet").exists()


@pytest.mark.parametrize(("make", "suffix"), [(shard, ".parquet"), (checkpoint, "")])
def test_an_adopted_file_is_as_good_as_one_made_here(kept, tmp_path, make, suffix):
    pulled = tmp_path / f"pulled{suffix}"
    make(pulled)
    entry = kept.adopt(pulled)
    found = kept.obtain(IDENTITY, never, suffix)
    assert (found.entry, found.made, found.seconds) == (entry, False, None)
    assert kept.adopt(pulled) == entry
    inside = pulled / "inside" / "weights" if pulled.is_dir() else pulled
    assert inside.stat().st_nlink == 2


def test_a_file_that_does_not_say_how_it_was_made_is_not_adopted(kept, tmp_path):
    (tmp_path / "r0").mkdir()
    with pytest.raises(ShardError, match=r"r0/potstill\.json is missing"):
        kept.adopt(tmp_path / "r0")


def test_the_entries_are_the_finished_files_and_folders(kept):
    (kept.root / "00").mkdir(parents=True)
    (kept.root / "00" / "ab.making-cd.parquet").write_text("")
    identity = {**IDENTITY, "kind": "json"}
    made = [
        (kept.obtain(IDENTITY, shard), ".parquet"),
        (kept.obtain({**IDENTITY, "kind": "folder"}, checkpoint, ""), ""),
        (kept.obtain(identity, lambda path: write_json(path, {"identity": identity}), ".json"), ".json"),
    ]
    assert kept.entries() == sorted(kept.path(each.entry.fingerprint, suffix) for each, suffix in made)


def folder_of(kept, path, numbers):
    """An output folder with these shards."""
    folder = Folder(kept, path)
    for number in numbers:
        identity = {**IDENTITY, "number": number}
        folder.obtain(f"{number}.parquet", identity, lambda target, identity=identity: shard(target, identity))
    return folder


def test_a_closed_folder_holds_this_run_and_nothing_else(kept, tmp_path):
    out = tmp_path / "out"
    folder_of(kept, out, [0, 1, 2]).close()
    (out / "stray.txt").write_text("")
    (out / "old").mkdir()
    folder = folder_of(kept, out, [1, 2, 3])
    assert (folder.made, folder.found) == (1, 2)
    assert (folder.rows, folder.tokens, folder.bytes) == (6, 0, sum(entry.bytes for entry in folder.entries.values()))
    folder.close()
    assert names(out) == [MANIFEST, "1.parquet", "2.parquet", "3.parquet"]
    assert read_manifest(out) == folder.entries
    assert verify_folder(out) == []


def test_a_folder_has_no_manifest_until_it_is_closed(kept, tmp_path):
    folder_of(kept, tmp_path / "out", [0]).close()
    folder = folder_of(kept, tmp_path / "out", [0, 1])
    with pytest.raises(ShardError, match=r"has no \.manifest"):
        read_manifest(tmp_path / "out")
    folder.close()
    assert set(read_manifest(tmp_path / "out")) == {"0.parquet", "1.parquet"}


def _remove(path):
    path.unlink()


def _other_content(path):
    identity = read_identity(path)
    path.unlink()
    shard(path, identity, rows=3)


def _other_origin(path):
    path.unlink()
    shard(path, {"stage": "elsewhere"})


def _cut_off(path):
    data = path.read_bytes()[:-20]
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_remove, "is missing"),
        (_other_content, "is cut off or damaged"),
        (_other_origin, "is cut off or damaged"),
        (_cut_off, "is cut off or damaged"),
    ],
)
def test_verify_finds_what_is_wrong_and_where(kept, tmp_path, damage, told):
    out = tmp_path / "out"
    folder_of(kept, out, [0, 1]).close()
    damage(out / "1.parquet")
    (sentence,) = verify_folder(out)
    assert told in sentence
    assert str(out / "1.parquet") in sentence


def test_verify_finds_files_that_nobody_listed(kept, tmp_path):
    folder_of(kept, tmp_path / "out", [0]).close()
    shard(tmp_path / "out" / "7.parquet")
    assert verify_folder(tmp_path / "out") == [f"{tmp_path / 'out' / '7.parquet'} is not in {MANIFEST}"]


def test_content_of_a_folder_is_its_names_and_bytes(tmp_path):
    for name in "abc":
        checkpoint(tmp_path / name)
    (tmp_path / "b" / "inside" / "weights").write_text("1 2 4")
    (tmp_path / "c" / "inside" / "weights").rename(tmp_path / "c" / "weights")
    contents = {name: hashing.hash_path(tmp_path / name) for name in "abc"}
    assert len(set(contents.values())) == 3
    checkpoint(tmp_path / "d")
    assert hashing.hash_path(tmp_path / "d") == contents["a"]
