"""Names for what was made: hashes of identities, of the values in columns of shards, and of files' bytes.

Arrow is imported where columns are hashed: a command that compares bytes with a manifest does not wait for it.
"""

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

if TYPE_CHECKING:
    import pyarrow as pa

_PIECE_BYTES = 1 << 20


def digest(*parts: str | bytes) -> str:
    """Hash texts and bytes to 128 bits in hex; ("ab", "c") and ("a", "bc") differ."""
    state = xxhash.xxh3_128()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


def canonical(value: Any) -> str:
    """Write a value as JSON with one spelling for each value, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(identity: dict[str, Any]) -> str:
    """Hash an identity: the name of what it describes."""
    return digest(canonical(identity))


def fingerprint_family(identity: Mapping[str, Any]) -> str:
    """Hash an identity without the part that picks the rows: the name of what could share rows with it."""
    return digest(canonical({name: value for name, value in identity.items() if name != "rows"}))


def hash_columns(path: Path, schema: "pa.Schema", columns: Iterable[str]) -> str:
    """Hash exactly these columns, in row order; what the others hold does not enter."""
    from pipeline.storage.shards import read_groups

    hashes = ColumnHashes(columns)
    for group in read_groups(path, schema, hashes.names):
        hashes.feed(group)
    return hashes.join(hashes.names)


class ColumnHashes:
    """Hashes of a shard's columns, fed row group by row group: those of any few are joined without reading again."""

    def __init__(self, columns: Iterable[str]):
        self._states = {name: xxhash.xxh3_128() for name in sorted(columns)}

    @property
    def names(self) -> list[str]:
        """The columns."""
        return list(self._states)

    def feed(self, group: "pa.Table") -> None:
        """Add the next row group, which may have other columns too."""
        for name, state in self._states.items():
            for chunk in group.column(name).chunks:
                _feed(state, chunk)

    def join(self, columns: Iterable[str]) -> str:
        """Hash over exactly these columns, as `hash_columns` gives it."""
        return digest(*[f"{name}:{self._states[name].hexdigest()}" for name in sorted(columns)])


def _feed(state: Any, array: "pa.Array") -> None:
    """Add an array's values to a hash, never its buffers: a slice and its copy hash alike."""
    import numpy as np
    import pyarrow as pa

    from pipeline.storage.ragged import list_lengths

    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    state.update(str(array.type).encode())
    state.update(np.asarray(array.is_null().to_numpy(zero_copy_only=False)).tobytes())
    if pa.types.is_list(array.type):
        state.update(list_lengths(array).tobytes())
        _feed(state, array.flatten())
    elif pa.types.is_struct(array.type):
        for child in array.flatten():
            _feed(state, child)
    elif pa.types.is_string(array.type):
        for value in array.fill_null("").to_pylist():
            state.update(digest(value).encode())
    else:
        nothing = False if pa.types.is_boolean(array.type) else 0
        state.update(np.ascontiguousarray(array.fill_null(nothing).to_numpy(zero_copy_only=False)).tobytes())


def hash_path(path: Path) -> str:
    """Hash the bytes of a file, or the names and bytes of the files in a folder."""
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file())
        return digest(*[f"{file.relative_to(path).as_posix()}:{_hash_file(file)}" for file in inside])
    return _hash_file(path)


def hash_once(path: Path) -> str:
    """Hash a file as `hash_path` does, once in a process while its size, time and inode stay."""
    found = path.stat()
    return _hash_again(path, (found.st_size, found.st_mtime_ns, found.st_ino))


@functools.cache
def _hash_again(path: Path, stamp: tuple[int, int, int]) -> str:  # noqa: ARG001 - of a changed file it is another
    return _hash_file(path)


def _hash_file(path: Path) -> str:
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            state.update(piece)
    return state.hexdigest()
