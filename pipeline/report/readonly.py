"""Give SQL one file system: shards can be read through it, and nothing can be written, moved or removed.

DuckDB's own is then disabled and its settings are locked, so it is not a matter of how a statement is spelled: a shard
is a hard link of the store's and of DVC's cache's file, and what writes over one writes over all.
"""

import glob
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

    def glob(self, path: str, maxdepth: int | None = None, **_: Any) -> list[str]:  # noqa: ARG002
        """List the files that a pattern matches, in the order of their names; fsspec's own walks whole folders."""
        return sorted(glob.glob(str(self._strip_protocol(path)), recursive=True))  # noqa: PTH207 - of a whole path

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
    """A file that many threads of DuckDB read at once, in either of two ways.

    Parquet's reader has every thread seek and then read, in two calls: a place is kept for each thread between them.
    Readers of CSV and JSON go on from one place, by whichever thread is free: a thread that reads without having
    sought one reads where the last read ended.
    """

    def __init__(self, path: Path):
        self._descriptor = os.open(path, os.O_RDONLY)
        self._size = os.fstat(self._descriptor).st_size
        self._sought: dict[int, int] = {}
        self._place = 0
        self._lock = threading.Lock()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, from which this thread's next read begins."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self._size}[whence]
        with self._lock:
            self._sought[threading.get_ident()] = self._place = start + offset
        return start + offset

    def tell(self) -> int:
        """Say where this thread's next read begins."""
        return self._sought.get(threading.get_ident(), self._place)

    def read(self, size: int = -1) -> bytes:
        """Read so many bytes, or all that is left."""
        with self._lock:
            place = self._sought.pop(threading.get_ident(), None)
            if place is None:  # one reader that goes on: what other threads sought before is past
                self._sought.clear()
                place = self._place
            self._place = place + max(0, min(size if size >= 0 else self._size, self._size - place))
            end = self._place
        return os.pread(self._descriptor, end - place, place)

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
