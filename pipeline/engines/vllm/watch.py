"""Ends vLLM's processes when ours is gone: run as a script beside them.

vLLM's engine process does not notice that the process which started it was killed; it would keep its memory for
ever. This script sees the end of a pipe that only its parent holds open, and ends what the parent had started.
"""

import contextlib
import os
import select
import sys

import psutil

POLL_S = 0.5

GRACE_S = 10.0

STAND_DOWN = b"q"
"""Written by a parent whose engine has ended as it should."""


def main(parent_pid: int) -> None:
    """Note the parent's descendants until it goes, then end them if it went without a word."""
    itself = psutil.Process()
    parent = psutil.Process(parent_pid)
    known: set[psutil.Process] = set()
    while not select.select([sys.stdin], [], [], POLL_S)[0]:
        with contextlib.suppress(psutil.NoSuchProcess):
            # Only what was started after this script: the rest belongs to others.
            started = {
                child for child in parent.children(recursive=True) if child.create_time() >= itself.create_time()
            }
            known |= started - {itself}
    if os.read(sys.stdin.fileno(), 1) != STAND_DOWN:
        _end(known)


def _end(processes: set[psutil.Process]) -> None:
    for process in list(processes):
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.update(process.children(recursive=True))
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=GRACE_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    main(int(sys.argv[1]))
