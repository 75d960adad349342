"""Files that are whole or absent, whatever ends the process or the power: written beside, synced, then renamed.

Everything that is read again later is written by `write_whole`, or in the store: a name that a reader finds then
stands for all that was written. Nothing is written in place, for DVC's cache may have the same inode.

JSON answers for itself: it holds a seal, the hash of all else that it says, and a reader refuses what does not fit.
"""

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ShardError, damaged
from pipeline.storage import hashing

_SEAL = "seal"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, on the disk under its name when this returns; its folder is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.making-{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a dictionary as indented JSON, sealed and whole."""
    # In a list, for `dvc metrics` leaves lists out of its table.
    write_whole(path, json.dumps({**value, _SEAL: [_hash(value)]}, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        ShardError: it is missing or damaged.
    """
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ShardError(f"{path} is missing. `dvc pull` fetches it, `dvc repro` makes it.") from None
    except ValueError as error:
        raise damaged(path, f"is cut off or damaged (no JSON: {error})") from None
    if not isinstance(found, dict):
        raise damaged(path, f"is damaged (expected an object, found {type(found).__name__})")
    seal = found.pop(_SEAL, None)
    if seal != [_hash(found)]:
        raise damaged(path, "is damaged, or was edited (what it says does not fit its seal)")
    return found


def _hash(value: Mapping[str, Any]) -> str:
    return hashing.digest(json.dumps(value, sort_keys=True))


def sync(path: Path) -> None:
    """Have a finished file on the disk before its name is, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
