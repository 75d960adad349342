"""Errors for mistakes that a user can repair: shown in one paragraph, without a traceback.

Every text names the file or the setting as the user wrote it, what was expected, what was found, and the
command or edit that repairs it. `assert` is for what only our own code can break.
"""

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
    return ShardError(
        f"{path} {what}. Remove it, from the store and from DVC's cache, too (`find . -samefile {path} -delete`), "
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
