"""The seal of a checkpoint: its record names every file of its folder by hash, so that damage is found."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ShardError, damaged
from pipeline.storage import hashing
from pipeline.storage.whole import read_json, write_json

CHECKPOINT = "potstill.json"

_FILES = "files"


def write_sealed(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a checkpoint whose other files are all there, with their hashes."""
    hashes = {name: hashing.hash_path(folder / name) for name in sorted(_list_files(folder))}
    write_json(folder / CHECKPOINT, {**record, _FILES: hashes})


def verify_checkpoint(folder: Path) -> list[str]:
    """Read the files of a checkpoint again, and tell what is not as it was written in one sentence each."""
    return _compare(folder, None, hashing.hash_path)


def check_checkpoint(folder: Path, only: Collection[str] | None = None) -> None:
    """Refuse a checkpoint of which a file is not as it was written.

    Args:
        folder: that of no checkpoint of Potstill's is not looked at.
        only: names of the files that are compared; None for all.

    Raises:
        ShardError: it is damaged.
    """
    if (folder / CHECKPOINT).exists() and (wrong := _compare(folder, only, hashing.hash_once)):
        raise ShardError(wrong[0])


def _compare(folder: Path, only: Collection[str] | None, hash_file: Callable[[Path], str]) -> list[str]:
    try:
        listed = read_json(folder / CHECKPOINT)[_FILES]
    except ShardError as error:
        return [str(error)]
    except KeyError:
        return [str(damaged(folder / CHECKPOINT, "names no files, so it is of another version of Potstill"))]
    found = _list_files(folder)
    names = sorted(listed if only is None else listed.keys() & set(only))
    missing = [f"{folder / name} is missing. `dvc pull {folder}` fetches it." for name in names if name not in found]
    changed = [name for name in names if name in found and hash_file(folder / name) != listed[name]]
    return missing + [str(damaged(folder / name, "has another content than when it was written")) for name in changed]


def _list_files(folder: Path) -> set[str]:
    inside = (path for path in folder.rglob("*") if path.is_file() and path != folder / CHECKPOINT)
    return {path.relative_to(folder).as_posix() for path in inside}
