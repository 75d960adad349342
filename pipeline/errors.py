"""Errors for mistakes that a user can repair: shown in one paragraph, without a traceback.

Every text names the file or the setting as the user wrote it, what was expected, what was found, and the
command or edit that repairs it. `assert` is for what only our own code can break.
"""

import difflib
import errno
import os
import re
import shlex
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path


class PotstillError(Exception):
    """A mistake that the command line shows instead of a traceback."""


class SettingsError(PotstillError):
    """A file of settings says something that cannot be."""


class PromptError(PotstillError):
    """A source of prompts cannot be read, or has rows that cannot be used."""


class ModelError(PotstillError):
    """A model is missing, incomplete, changed since it was recorded, or does not fit the other."""


class ShardError(PotstillError):
    """A shard is missing, damaged, or was made from something else."""


def damaged(path: Path, what: str) -> ShardError:
    """The error for a file that is not as it was written: store and DVC's cache share its inode, and have it too."""
    quoted = shlex.quote(str(path))
    if path.is_dir():
        every_name = f"find {quoted} -type f -exec find . -samefile {{}} -delete ';'"
        return ShardError(
            f"{path} {what}. Remove its files, from outputs and from DVC's cache, too (`{every_name}`), then the "
            f"folder (`rm -r {quoted}`), and run `dvc repro`, which makes it anew."
        )
    return ShardError(
        f"{path} {what}. Remove it, from the store and from DVC's cache, too (`find . -samefile {quoted} -delete`), "
        "and run `dvc repro`, which makes it anew, or `dvc pull`; `potstill verify` finds every such file."
    )


class DivergedError(PotstillError):
    """A loss, a gradient or a measured divergence is no finite number."""


class ConsistencyError(PotstillError):
    """The SFT data and the scores come from different teachers (arXiv:2604.13010)."""


class EngineError(PotstillError):
    """An engine cannot do what was asked, or died."""


class GradeError(PotstillError):
    """The user's grader cannot be loaded, or gave something that is no grade."""


def suggest(unknown: object, known: Iterable[str]) -> str:
    """Say which known name a misspelt one stands for; where none is close, say which there are."""
    names = list(known)
    close = difflib.get_close_matches(str(unknown), names, n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    return f"known here: {', '.join(names)}" if names else "none is known here"


_REPAIRS = {
    errno.ENOSPC: "Make room there (`potstill gc` lists what may go)",
    errno.EDQUOT: "Make room there, or have your quota raised",
    errno.EFBIG: "Raise the limit on the size of files (`ulimit -f unlimited`)",
    errno.EACCES: "Give yourself the right to read and write it",
    errno.EPERM: "Give yourself the right to read and write it",
    errno.EROFS: "Mount it for writing, or work in another folder",
    errno.EMFILE: "Raise the limit on open files (`ulimit -n 4096`)",
}


def explain_system_error(error: BaseException) -> str | None:
    """Say what the system refused, where, and what helps; None where an error is not the machine's but ours.

    Libraries tell of it each in its own way: as an OSError, with one as their cause, or by its number in their words.
    """
    for each in _follow_causes(error):
        said = re.search(r"\bos error (\d+)|\berrno (\d+)", str(each), re.IGNORECASE)
        number = each.errno if isinstance(each, OSError) and each.errno else said and int(said[1] or said[2])
        if number in _REPAIRS:
            path = each.filename if isinstance(each, OSError) else None
            where = Path(os.fsdecode(path)) if isinstance(path, str | bytes) else Path.cwd()
            free = f" ({shutil.disk_usage(Path.cwd()).free:,} bytes are free)" if number == errno.ENOSPC else ""
            return (
                f"{where}: {os.strerror(number)}{free}. {_REPAIRS[number]}, and run it again: what is finished is kept."
            )
    return None


_OF_NETWORKS = {"aiohttp", "httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3"}
"""Libraries whose errors are told as the network's, whichever of them the Hub's client uses in its next version."""


def explain_network_error(error: BaseException) -> str | None:
    """Say that a host cannot be reached; None where an error is not the network's.

    Python's own ConnectionError is none: a pipe to another process that has ended raises it, too.
    """
    for each in _follow_causes(error):
        if isinstance(each, socket.gaierror) or type(each).__module__.partition(".")[0] in _OF_NETWORKS:
            said = str(each).strip().partition("\n")[0] or type(each).__name__
            return f"the network gives no answer ({said}). Try again, or name a folder on this machine instead."
    return None


def _follow_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
