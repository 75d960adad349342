"""Files that are whole or absent, whatever ends the process or the power: written beside, synced, then renamed.

Everything that is read again later is written by `write_whole`, or in the store: a name that a reader finds then
stands for all that was written. Nothing is written in place, for DVC's cache may have the same inode.
"""

import json
import os
import uuid
from pathlib import Path
from typing import Any

from pipeline.errors import ShardError, damaged


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


def write_json(path: Path, value: Any, *, sort_keys: bool = False) -> None:
    """Write a value as indented JSON, whole."""
    write_whole(path, json.dumps(value, indent=1, sort_keys=sort_keys) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote of a dictionary.

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
    return found


def sync(path: Path) -> None:
    """Have a finished file on the disk before its name is, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
