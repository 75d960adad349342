"""The store: asked for a fingerprint, it gives the file if it is there, or makes it.

A file is written under a temporary name, synced, and linked to its final name (the first writer wins), then hard
linked into the output folder; so it is whole or absent, and store, DVC's cache and the workspace share one inode.
DVC deletes a stage's outputs before it runs the stage: the store is what makes a killed stage resume, a fresh shard
stay, and two experiments share what they have in common. Nothing is ever moved out of it.
"""

import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ShardError, damaged
from pipeline.storage import hashing
from pipeline.storage.manifest import MANIFEST, Entry, read_identity, write_manifest
from pipeline.storage.whole import read_json, sync, write_json

log = logging.getLogger("store")


@dataclass(frozen=True)
class Obtained:
    """The answer of the store: the entry, whether it was made just now, and what making it took."""

    entry: Entry
    made: bool
    seconds: float | None
    """Spent when it was made; None where another machine did."""


@dataclass(frozen=True)
class _Note:
    """What is written beside an entry: facts that follow from it, but for the seconds that making it took."""

    entry: Entry
    seconds: float | None
    family: str


class Store:
    """A folder of finished files, each named by the fingerprint of its identity."""

    def __init__(self, root: Path):
        self.root = root

    def path(self, fingerprint: str, suffix: str) -> Path:
        """Say where an entry is, or would be; a folder has the suffix ''."""
        return self.root / fingerprint[:2] / f"{fingerprint}{suffix}"

    def has(self, identity: dict[str, Any], suffix: str = ".parquet", fingerprint: str | None = None) -> bool:
        """Tell whether this was made already; the fingerprint of the identity is given where it is known."""
        return self.path(fingerprint or hashing.fingerprint(identity), suffix).exists()

    def obtain(
        self,
        identity: dict[str, Any],
        make: Callable[[Path], None],
        suffix: str = ".parquet",
        target: Path | None = None,
        fingerprint: str | None = None,
    ) -> Obtained:
        """Find or make what `identity` describes, and link it to `target`.

        Args:
            identity: everything that decides what is in the file, and nothing else.
            make: writes the file (or folder) at the path that it is given.
            suffix: of the file's name; '' for a folder.
            target: where it shall appear; what was there is replaced.
            fingerprint: of the identity, where it is known already.

        Raises:
            ShardError: what was found is not as it was when it was finished.
        """
        fingerprint = fingerprint or hashing.fingerprint(identity)
        final = self.path(fingerprint, suffix)
        made = not final.exists()
        if made:
            started = time.monotonic()
            self._make(final, make)
            note = self._write_note(final, identity, time.monotonic() - started)
        else:
            note = self._read_note(final, identity)
            _check_whole(final, note.entry)
        if target is not None:
            _link(final, target)
        return Obtained(note.entry, made, note.seconds)

    def adopt(self, path: Path, identity: dict[str, Any] | None = None) -> Entry:
        """Take a file that a stage reads (pulled from a remote, say): it is as good as one made here.

        Args:
            path: of the file or folder.
            identity: that it carries, where it was read already.

        Raises:
            ShardError: it is damaged, or does not say how it was made.
        """
        identity = read_identity(path) if identity is None else identity
        fingerprint = hashing.fingerprint(identity)
        final = self.path(fingerprint, path.suffix)
        if not final.exists():
            final.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                self._make(final, lambda temporary: _link(path, temporary))
            else:
                sync(path)
                _first(path, final)
        return self._read_note(final, identity).entry

    def entries(self) -> list[Path]:
        """List every finished file and folder."""
        found = [path for path in self.root.glob("??/*") if path.suffix != ".json" or path.name.count(".") == 1]
        return sorted(path for path in found if not path.name.endswith(".entry.json") and ".making-" not in path.name)

    def list_families(self, without: Collection[str | None] = ()) -> dict[str, list[Path]]:
        """List the finished shards of each family (`storage/families.py`).

        Args:
            without: fingerprints of shards that are left out.
        """
        families: dict[str, list[Path]] = {}
        for side in sorted(self.root.glob("??/*.parquet.entry.json")):
            shard = side.with_name(side.name.removesuffix(".entry.json"))
            if shard.stem not in without and shard.exists():
                families.setdefault(self._read_note(shard).family, []).append(shard)
        return families

    def _make(self, final: Path, make: Callable[[Path], None]) -> None:
        temporary = self._temporary(final)
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            make(temporary)
            assert temporary.exists(), f"{make} made nothing"
            _settle(temporary, final)
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary)
            else:
                temporary.unlink(missing_ok=True)

    def _temporary(self, final: Path) -> Path:
        return final.with_name(f"{final.stem}.making-{uuid.uuid4().hex}{final.suffix}")

    def _read_note(self, final: Path, identity: dict[str, Any] | None = None) -> _Note:
        """Read the note on an entry, or write it anew where a kill or a power cut left none that can be read."""
        side = _side(final)
        try:
            if side.exists():  # no kill came between the link and the note
                found = read_json(side)
                return _Note(Entry(**found["entry"]), found["seconds"], found["family"])
        except (ShardError, KeyError, TypeError):
            log.warning("%s cannot be read: it is written anew, from the file that it describes", side)
        return self._write_note(final, read_identity(final) if identity is None else identity, None)

    def _write_note(self, final: Path, identity: dict[str, Any], seconds: float | None) -> _Note:
        rows = tokens = 0
        if final.suffix == ".parquet":
            from pipeline.storage.shards import count_rows_and_tokens  # brings Arrow: `potstill gc` need not wait

            rows, tokens = count_rows_and_tokens(final)
        entry = Entry(final.name.partition(".")[0], hashing.hash_path(final), rows, tokens, _bytes(final))
        note = _Note(entry, seconds, hashing.fingerprint_family(identity))
        write_json(_side(final), asdict(note))
        return note


class Folder:
    """A stage's output folder: it ends up with this run's files and nothing else, and its manifest is written last."""

    def __init__(self, store: Store, path: Path):
        self.store, self.path = store, path
        self.made, self.found = 0, 0
        self.entries: dict[str, Entry] = {}
        self.seconds: list[float | None] = []
        path.mkdir(parents=True, exist_ok=True)
        (path / MANIFEST).unlink(missing_ok=True)

    def obtain(
        self, name: str, identity: dict[str, Any], make: Callable[[Path], None], fingerprint: str | None = None
    ) -> Entry:
        """Find or make a file as `Store.obtain` does, with `name` in this folder as target."""
        obtained = self.store.obtain(identity, make, Path(name).suffix, self.path / name, fingerprint)
        self.entries[name] = obtained.entry
        self.seconds.append(obtained.seconds)
        self.made += obtained.made
        self.found += not obtained.made
        return obtained.entry

    def close(self) -> None:
        """Remove what this run did not ask for, and write the manifest."""
        for path in self.path.iterdir():
            if path.name not in self.entries:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_manifest(self.path, self.entries)

    @property
    def rows(self) -> int:
        """Count the rows of all shards."""
        return sum(entry.rows for entry in self.entries.values())

    @property
    def tokens(self) -> int:
        """Count the response tokens in all shards."""
        return sum(entry.tokens for entry in self.entries.values())

    @property
    def bytes(self) -> int:
        """Count the bytes of all files."""
        return sum(entry.bytes for entry in self.entries.values())


def _bytes(path: Path) -> int:
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )


def _check_whole(final: Path, entry: Entry) -> None:
    """Refuse what was damaged as an output, being the same inode; to link it again would repair nothing."""
    if (found := _bytes(final)) != entry.bytes:
        raise damaged(final, f"has {found} bytes, {entry.bytes} were written: it is cut off or was changed")
    if hashing.hash_path(final) != entry.content:
        raise damaged(final, "has another content than when it was written")


def _side(final: Path) -> Path:
    return final.with_name(f"{final.name}.entry.json")


def _settle(temporary: Path, final: Path) -> None:
    """Give a finished file its name; where another process was first, its file stays."""
    if temporary.is_dir():
        for path in (temporary, *temporary.rglob("*")):
            sync(path)
        try:
            temporary.rename(final)
        except OSError:
            if not final.is_dir():
                raise
    else:
        sync(temporary)
        _first(temporary, final)
    sync(final.parent)


def _first(path: Path, final: Path) -> None:
    try:
        os.link(path, final)
    except FileExistsError:
        pass
    except OSError as error:
        raise ShardError(
            f"{path} cannot be linked to {final} ({error.strerror}): keep data/ and .potstill/ on one disk."
        ) from None


def _link(source: Path, target: Path) -> None:
    """Hard link a file, or every file of a folder."""
    if source.is_dir():
        if target.exists():
            shutil.rmtree(target)
        for file in source.rglob("*"):
            if file.is_file():
                inside = target / file.relative_to(source)
                inside.parent.mkdir(parents=True, exist_ok=True)
                os.link(file, inside)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    _first(source, target)
