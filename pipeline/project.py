"""Where a project keeps things, seen from where a command was started: also from a subfolder or an experiment's copy.

DVC runs an experiment (`dvc exp run --temp`, its queue) in a copy of what git tracks, below `.dvc/tmp/exps`. The copy
has no `.potstill`: the project's own is meant, or the machine's settings would be lost, and finished shards made again.
"""

import os
from pathlib import Path

HOME = "POTSTILL_HOME"
"""The variable of the environment that names another folder than the project's `.potstill`."""

_COPIES = Path(".dvc/tmp/exps")


def find_project() -> Path:
    """Find the project's folder, relative to here: this one, or the nearest above that has a dvc.yaml."""
    here = Path.cwd()
    found = next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").exists()), here)
    return Path(os.path.relpath(found))


def find_home() -> Path:
    """Find the folder of what git does not track: the machine's settings, finished shards, training states."""
    if named := os.environ.get(HOME):
        return Path(named).expanduser()
    project = find_project()
    inside = project.resolve()
    original = next((folder for folder in inside.parents if inside.is_relative_to(folder / _COPIES)), None)
    return (original or project) / ".potstill"


def find_data() -> Path:
    """Find the folder of the stages' outputs."""
    return find_project() / "data"


def find_store() -> Path:
    """Find the folder of finished shards."""
    return find_home() / "store"


def find_machine() -> Path:
    """Find the file of the machine's settings."""
    return find_home() / "machine.yaml"
