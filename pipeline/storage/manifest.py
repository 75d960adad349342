"""Manifests: what a folder of finished files holds, by identity and by content."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ShardError, damaged
from pipeline.storage import hashing
from pipeline.storage.shards import read_about
from pipeline.storage.whole import read_json, write_json

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Entry:
    """What is known of a finished file or folder.

    Attributes:
        fingerprint: of its identity: how it was made.
        content: hash of what is in it.
        rows: rows of a shard, 0 of anything else.
        tokens: response tokens in a shard.
        bytes: on disk.
    """

    fingerprint: str
    content: str
    rows: int
    tokens: int
    bytes: int


def write_manifest(folder: Path, entries: dict[str, Entry]) -> None:
    """List the files of a folder, whole and by content."""
    listed = {name: asdict(entries[name]) for name in sorted(entries)}
    write_json(folder / MANIFEST, listed)


def read_manifest(folder: Path) -> dict[str, Entry]:
    """Read the entries that a folder's manifest lists.

    Raises:
        ShardError: there is no manifest: the stage that writes the folder has not finished.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise ShardError(f"{folder} has no {MANIFEST}: its stage has not finished. Run `dvc repro`.")
    try:
        return {name: Entry(**entry) for name, entry in read_json(path).items()}
    except TypeError:
        raise damaged(path, "is cut off or damaged") from None


def verify_folder(folder: Path) -> list[str]:
    """Recompute a folder's manifest, and tell what does not fit in one sentence each."""
    try:
        listed = read_manifest(folder)
    except ShardError as error:
        return [str(error)]
    wrong = [f"{folder / name} is not in {MANIFEST}" for name in _names(folder) if name not in listed]
    for name, entry in listed.items():
        path = folder / name
        try:
            if not path.exists():
                wrong.append(f"{path} is missing")
            elif hashing.hash_path(path) != entry.content:
                wrong.append(str(damaged(path, "has another content than when it was written")))
            elif hashing.fingerprint(read_identity(path)) != entry.fingerprint:
                wrong.append(f"{path} was made from something else than {MANIFEST} says")
        except (ShardError, OSError) as error:
            wrong.append(str(error))
    return wrong


def verify_records(folder: Path) -> list[str]:
    """Read every JSON file of a folder that no manifest lists: metrics, drift, timings, records of models."""
    wrong = []
    for path in sorted(folder.rglob("*.json")):
        if path.name != MANIFEST and not _is_listed(path, folder):
            try:
                read_json(path)
            except ShardError as error:
                wrong.append(str(error))
    return wrong


def _is_listed(path: Path, folder: Path) -> bool:
    """Whether a manifest or a checkpoint's record answers for a file."""
    inside = [parent for parent in path.parents if parent.is_relative_to(folder)]
    return any((parent / name).exists() for parent in inside for name in (MANIFEST, "potstill.json"))


def read_identity(path: Path) -> dict[str, Any]:
    """Read the identity that a shard, a checkpoint folder or a JSON entry carries.

    Raises:
        ShardError: it carries none.
    """
    if path.suffix == ".parquet":
        return read_about(path)["identity"]
    record = path / "potstill.json" if path.is_dir() else path
    try:
        return json.loads(record.read_text())["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ShardError(f"{record} does not say how it was made.") from None


def _names(folder: Path) -> list[str]:
    """List what a manifest answers for; a folder inside that has its own answers for itself."""
    return sorted(path.name for path in folder.iterdir() if path.name != MANIFEST and not (path / MANIFEST).exists())
