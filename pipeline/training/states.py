"""Training states on disk: what a stopped run goes on from, written whole, with its hash in its name.

`step-00000200.<hash>.ckpt` is read as tensors and plain values alone, nothing that could run, and only where its bytes
have the hash; a damaged one is set aside, and the one before is taken. Writing streams to the folder of the state: no
second copy in memory, and nothing in the system's folder for temporary files.
"""

import logging
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from pipeline.storage.whole import sync

KEPT = 2
"""States that are kept: where the last is damaged, the one before is not much older."""

_PIECE = 1 << 24

log = logging.getLogger("train")


class WholeFiles(CheckpointIO):
    """How Lightning saves and loads a state: streamed into one file, which is on the disk when this returns."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a state to a new file, and put its hash into the name: `NAME.making` becomes `NAME.<hash>.ckpt`."""
        assert storage_options is None
        path = Path(path)
        with path.open("wb") as file:
            hashing = _Hashing(file)
            torch.save(checkpoint, hashing)  # pyright: ignore[reportArgumentType] - it writes, and need not be read
            file.flush()
            os.fsync(file.fileno())
        path.replace(path.with_name(f"{path.stem}.{hashing.digest()}.ckpt"))
        sync(path.parent)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:  # noqa: ARG002
        """Read a state; whatever is asked, nothing in it is run."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a state."""
        Path(path).unlink(missing_ok=True)


class _Hashing:
    """A file that hashes what is written to it."""

    def __init__(self, file: BinaryIO):
        self._file, self._state = file, xxhash.xxh3_128()

    def write(self, data: Any) -> int:
        """Write and hash."""
        self._state.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Hand everything to the system."""
        self._file.flush()

    def digest(self) -> str:
        """The hash of all that was written, in hex."""
        return self._state.hexdigest()


def list_states(folder: Path) -> list[Path]:
    """List the states of a run, the first step's first."""
    return sorted(folder.glob("step-*.ckpt"))


def read_step(state: Path) -> int:
    """Read from the name of a state after how many steps it was saved."""
    return int(state.name.removeprefix("step-").partition(".")[0])


def find_state(folder: Path) -> Path | None:
    """Find the last state that is as it was written; damaged ones are renamed to `*.damaged`, and said."""
    for state in reversed(list_states(folder)):
        if _hash(state) == state.name.split(".")[1]:
            return state
        aside = state.with_name(f"{state.name}.damaged")
        state.replace(aside)
        log.warning("%s is not as it was written: set aside as %s; the state before it is taken", state, aside.name)
    return None


def remove_old_states(folder: Path) -> None:
    """Keep the last `KEPT` states, and nothing that a killed run left half written."""
    for old in [*list_states(folder)[:-KEPT], *folder.glob("step-*.making")]:
        old.unlink(missing_ok=True)


def _hash(path: Path) -> str:
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            state.update(piece)
    return state.hexdigest()
