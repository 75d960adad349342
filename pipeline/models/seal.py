"""The seal of a checkpoint: its record names every file of its folder by hash, and itself, so that damage is found."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ShardError, damaged
from pipeline.models.record import CHECKPOINT
from pipeline.storage import hashing
from pipeline.storage.whole import read_json, write_json

_FILES, _SEAL = "files", "seal"


def write_sealed(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a checkpoint whose other files are all there, with their hashes and its own."""
    sealed = {**record, _FILES: _hash_files(folder)}
    write_json(folder / CHECKPOINT, sealed | {_SEAL: hashing.fingerprint(sealed)}, sort_keys=True)


def verify_checkpoint(folder: Path) -> list[str]:
    """Hash the files of a checkpoint again, and tell what is not as it was written in one sentence each."""
    path = folder / CHECKPOINT
    try:
        record = read_json(path)
    except ShardError as error:
        return [str(error)]
    if _FILES not in record:
        return []  # of a version that sealed nothing
    seal = record.pop(_SEAL, None)
    if seal != hashing.fingerprint(record):
        return [str(damaged(path, "has another content than when it was written"))]
    listed, found = record[_FILES], _hash_files(folder)
    missing = [f"{folder / name} is missing" for name in sorted(listed.keys() - found.keys())]
    changed = [name for name in sorted(listed.keys() & found.keys()) if listed[name] != found[name]]
    return missing + [str(damaged(folder / name, "has another content than when it was written")) for name in changed]


def _hash_files(folder: Path) -> dict[str, str]:
    inside = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / CHECKPOINT)
    return {path.relative_to(folder).as_posix(): hashing.hash_path(path) for path in inside}
