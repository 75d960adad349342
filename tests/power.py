"""Run a stage until its n-th change to the project's files, and end it there as a power cut would.

    python -m tests.power EVENT MODULE [ARGUMENT ...]

At the cut, every file that was written since the start and not given to `fsync` is emptied, and the process is killed.
With `-1` nothing is cut; the number of events is printed. Events are audited opens for writing, renames, links,
removals and new folders below the working directory; what libraries in other languages write is found by its time.
"""

import os
import runpy
import signal
import sys
import time
from pathlib import Path

CHANGES = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


class Cut:
    """Counts events, and cuts the power at the one that was asked for."""

    def __init__(self, at: int):
        self.at, self.seen, self.root = at, 0, Path.cwd()
        self.started = time.time_ns() - 20_000_000  # the clock of the file system is coarser
        self.synced: set[int] = set()
        self.over = False
        self._fsync = os.fsync
        os.fsync = self.sync

    def sync(self, descriptor: int) -> None:
        """Call the system's, and remember for what."""
        self._fsync(descriptor)
        self.synced.add(os.fstat(descriptor).st_ino)

    def __call__(self, event: str, arguments: tuple) -> None:
        """Be told of an audit event."""
        if self.over or event not in CHANGES:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        named = arguments[: 1 if event == "open" else 2]  # an `open` also tells its mode
        paths = [self.root / os.fsdecode(path) for path in named if isinstance(path, str | bytes | Path)]
        if not any(path.is_relative_to(self.root) for path in paths):
            return
        self.seen += 1
        if self.seen == self.at:
            self.over = True
            self.cut()

    def cut(self) -> None:
        """Empty what is not on the disk, and end."""
        for path in self.root.rglob("*"):
            stat = path.stat()
            if path.is_file() and stat.st_mtime_ns >= self.started and stat.st_ino not in self.synced:
                os.truncate(path, 0)
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    cut = Cut(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    sys.addaudithook(cut)
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    finally:
        if cut.at < 0:
            cut.over = True
            print(cut.seen)
