"""DVC's own files that a kill or a power cut left half written: with one of them, no command of DVC's runs any more.

DVC writes `dvc.lock` and `.dvc/tmp/rwlock` in place. What they said is not lost: the lock is made again by `dvc repro`,
for which the store has every finished file, and the other says which process is at work, which none is.
"""

import json
import subprocess
from pathlib import Path

from pipeline.errors import SettingsError
from pipeline.settings.reading import read_yaml

LOCK, READING_AND_WRITING = Path("dvc.lock"), Path(".dvc/tmp/rwlock")


def repair_dvc_files(project: Path) -> list[str]:
    """Set aside those of DVC's files that DVC itself cannot read, and say so.

    `dvc.lock` is taken from git where git has it, so that what was pulled needs not be made again.

    Returns:
        A sentence for each file; none where all can be read.
    """
    told = []
    lock, working = project / LOCK, project / READING_AND_WRITING
    if lock.exists() and not _is_lock(lock):
        lock.replace(aside := lock.with_name(f"{lock.name}.damaged"))
        next_ = "the committed one is back" if _restore(lock) else "`dvc repro` writes it anew, and finds what is made"
        told.append(f"{lock} was no lock file of DVC's, and is now {aside}: {next_}.")
    if working.exists() and not _is_json(working):
        working.unlink()
        told.append(f"{working} was left half written by a command of DVC's that was killed, and is removed.")
    return told


def _is_lock(path: Path) -> bool:
    """Whether DVC would take it."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA  # slow, and needed by a repair alone
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(read_yaml(path))
    except (SettingsError, Invalid):
        return False
    return True


def _is_json(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except ValueError:
        return False


def _restore(lock: Path) -> bool:
    """Take a file from git's index; False where there is no git, or it has none."""
    command = ["git", "checkout", "--", lock.name]
    try:
        return subprocess.run(command, cwd=lock.parent, capture_output=True, check=False).returncode == 0
    except OSError:
        return False
