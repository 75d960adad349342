"""Give SQL one file system: shards can be read through it, and nothing can be written, moved or removed.

DuckDB's own is then disabled and its settings are locked, so it is not a matter of how a statement is spelled: a shard
is a hard link of the store's and of DVC's cache's file, and what writes over one writes over all.
"""

import io
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem

PROTOCOL = "shards"


class ReadOnlyFiles(AbstractFileSystem):
    """Local files under `shards://`, for reading; of what writes, moves or removes, fsspec's base class has nothing."""

    protocol = PROTOCOL
    cachable = False

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Describe a file or folder.

        Raises:
            FileNotFoundError: there is none.
        """
        name = str(self._strip_protocol(path))
        stat = Path(name).stat()
        kind = "directory" if Path(name).is_dir() else "file"
        return {"name": name, "size": stat.st_size, "type": kind, "mtime": stat.st_mtime}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """List a folder, or a file alone."""
        place = Path(str(self._strip_protocol(path)))
        names = [str(inside) for inside in place.iterdir()] if place.is_dir() else [str(place)]
        return [self.info(name) for name in names] if detail else names

    def modified(self, path: str) -> datetime:
        """Say when a file was written."""
        return datetime.fromtimestamp(self.info(path)["mtime"], tz=UTC)

    def unstrip_protocol(self, name: str) -> str:
        """Give the name by which DuckDB finds a file here again."""
        return f"{PROTOCOL}://{name}"

    def _open(self, path: str, mode: str = "rb", *_: Any, **__: Any) -> Any:
        """Open a file for reading; anything else that is asked is a PermissionError."""
        if mode not in ("r", "rb"):
            raise PermissionError(f"{path} is not written: SQL only reads")
        return _ReadFile(Path(str(self._strip_protocol(path))))


class _ReadFile(io.RawIOBase):
    """A file whose place is each thread's own: DuckDB seeks and reads in two calls, from many threads at once."""

    def __init__(self, path: Path):
        self._descriptor = os.open(path, os.O_RDONLY)
        self._size = os.fstat(self._descriptor).st_size
        self._places: dict[int, int] = {}

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place of this thread's own."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self._size}[whence]
        self._places[threading.get_ident()] = start + offset
        return start + offset

    def tell(self) -> int:
        """Say where this thread is."""
        return self._places.get(threading.get_ident(), 0)

    def read(self, size: int = -1) -> bytes:
        """Read so many bytes, or all that is left, from this thread's place."""
        place = self.tell()
        found = os.pread(self._descriptor, self._size - place if size < 0 else size, place)
        self._places[threading.get_ident()] = place + len(found)
        return found

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def close(self) -> None:
        """Let the file go."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()
