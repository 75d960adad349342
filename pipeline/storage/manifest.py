"""Manifests: what a folder of finished files holds, by identity and by content."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ShardError, damaged
from pipeline.storage import hashing
from pipeline.storage.whole import read_json, write_json

MANIFEST = ".manifest.json"
"""Its name begins with a dot, so that a folder of shards opens as one table: pandas, Arrow, Spark and `datasets` leave
such files out. (Polars reads the folder by `folder/*.parquet`, or with `hidden_file_prefix="."`.)"""

_OF_RECORDS = ("inputs", "models", "metrics", "drift", "timings")
"""Folders whose JSON files stand alone; models themselves are in folders inside."""


@dataclass(frozen=True)
class Entry:
    """What is known of a finished file or folder.

    Attributes:
        fingerprint: of its identity: how it was made.
        content: hash of its bytes; of a folder, of its files' names and bytes.
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
        # One without the dot is of an earlier version, whose stages DVC takes for finished.
        repair = "dvc repro --force" if (folder / MANIFEST.lstrip(".")).exists() else "dvc repro"
        raise ShardError(f"{folder} has no {MANIFEST}: its stage has not finished. Run `{repair}`.")
    try:
        return {name: Entry(**entry) for name, entry in read_json(path).items()}
    except TypeError:
        raise damaged(path, "is cut off or damaged") from None


def verify_folder(folder: Path) -> list[str]:
    """Compare a folder with its manifest, file by file, and tell what does not fit in one sentence each."""
    try:
        listed = read_manifest(folder)
    except ShardError as error:
        return [str(error)]
    wrong = [f"{folder / name} is not in {MANIFEST}" for name in _names(folder) if name not in listed]
    for name, entry in listed.items():
        path = folder / name
        try:
            if hashing.hash_path(path) != entry.content:
                wrong.append(str(damaged(path, "is cut off or damaged: not as it was when it was written")))
        except FileNotFoundError:
            wrong.append(f"{path} is missing. `dvc pull {folder}` fetches it, `dvc repro` makes it.")
        except OSError as error:
            wrong.append(f"{path} cannot be read: {error.strerror}.")
    return wrong


def check_folders(*folders: Path) -> None:
    """Refuse what a stage is about to read, where it is not as it was written.

    A shard's pages have checksums, its footer has none: the hash of all its bytes is compared here, once in a stage.

    Args:
        folders: with shards, or with such folders inside; those that do not exist are another's to miss.

    Raises:
        ShardError: a file is damaged, missing, or in no manifest; or there is no manifest.
    """
    inside = {path.parent for folder in folders for path in folder.rglob("*.parquet")}
    listed = {path.parent for folder in folders for path in folder.rglob(MANIFEST)}
    wrong = [sentence for folder in sorted(inside | listed) for sentence in verify_folder(folder)]
    if wrong:
        others = f" ({len(wrong) - 1} more: `potstill verify` names all.)" if wrong[1:] else ""
        raise ShardError(wrong[0] + others)


def verify_records(folder: Path) -> list[str]:
    """Read the JSON files of a folder that answer for themselves, and tell what is damaged in one sentence each."""
    wrong = []
    for path in sorted(folder.rglob("*.json")):
        if path.parent.name in _OF_RECORDS:
            try:
                read_json(path)
            except ShardError as error:
                wrong.append(str(error))
    return wrong


def read_identity(path: Path) -> dict[str, Any]:
    """Read the identity that a shard, a checkpoint folder or a JSON entry carries.

    Raises:
        ShardError: it carries none.
    """
    if path.suffix == ".parquet":
        from pipeline.storage.shards import read_about  # brings Arrow, for which `potstill verify` need not wait

        return read_about(path)["identity"]
    record = path / "potstill.json" if path.is_dir() else path
    try:
        return read_json(record)["identity"]
    except KeyError:
        raise ShardError(f"{record} does not say how it was made.") from None


def _names(folder: Path) -> list[str]:
    """List what a manifest answers for; a folder inside that has its own answers for itself."""
    return sorted(path.name for path in folder.iterdir() if path.name != MANIFEST and not (path / MANIFEST).exists())
