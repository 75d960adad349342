"""What may be removed: files of the store that no output refers to, and what killed and finished runs left behind."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.storage.manifest import MANIFEST, read_manifest
from pipeline.storage.store import Store

DAY_S = 86_400.0


@dataclass(frozen=True)
class Leftover:
    """A file or folder that nothing refers to.

    Attributes:
        paths: what is removed with it: itself, and the store's note on it.
        bytes: on disk; of a file with another hard link nothing would be freed, so none is listed.
    """

    reason: str
    paths: tuple[Path, ...]
    bytes: int

    def remove(self) -> None:
        """Delete it."""
        for path in self.paths:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def find_garbage(data: Path, state: Path, older_than_s: float, now: float) -> list[Leftover]:
    """List what may go.

    Args:
        data: an output refers to what its manifests name, and to what it shares an inode with (so does DVC's cache).
        state: `.potstill`, with `store/` and `training/`.
        older_than_s: spare what was made, linked or unlinked since, seconds.
        now: seconds since the epoch.

    Raises:
        ShardError: a manifest is damaged: what it refers to is not known.
    """
    store = Store(state / "store")
    folders = [path.parent for path in data.rglob(MANIFEST)]
    named = {entry.fingerprint for folder in folders for entry in read_manifest(folder).values()}
    unnamed = [path for path in store.entries() if path.name.partition(".")[0] not in named and not _is_linked(path)]
    half = sorted(store.root.glob("??/*.making-*"))
    states = sorted((state / "training").glob("*"))
    finished = [path for path in states if path.name in named or store.path(path.name, "").exists()]

    def old(paths: list[Path], reason: str, age_s: float) -> list[Leftover]:
        return [_leftover(path, reason) for path in paths if now - _changed(path) >= age_s]

    return [
        *old(unnamed, "in no output", older_than_s),
        *old(half, "half written by a killed run", DAY_S),
        *old(finished, "training state of a finished run", older_than_s),
    ]


def _leftover(path: Path, reason: str) -> Leftover:
    note = path.with_name(f"{path.name}.entry.json")
    size = sum(file.stat().st_size for file in _files(path))
    return Leftover(reason, (path, note) if note.exists() else (path,), size)


def _files(path: Path) -> Iterator[Path]:
    return (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else iter([path])


def _is_linked(path: Path) -> bool:
    return any(file.stat().st_nlink > 1 for file in _files(path))


def _changed(path: Path) -> float:
    """Say when a file was last written, linked or unlinked: what lost its last output today is not a week old."""
    return max([path.stat().st_ctime, *(file.stat().st_ctime for file in _files(path))])
