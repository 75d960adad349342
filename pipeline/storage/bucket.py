"""The files of one bucket of prompts: its rollouts, and what belongs to the same rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.storage.shards import list_shards


@dataclass(frozen=True)
class Bucket:
    """The shards of one bucket, as scoring and training read them.

    Attributes:
        rollouts: the responses.
        prompts: what they respond to; None where nothing reads it.
        grades: of each response, in their order; None where nothing reads them.
        scores: of each view, by its name, in their order.
        keep: bool [rows], which rows may be trained on; None for all.
        source: whose responses they are: `student` or `teacher`.
    """

    rollouts: Path
    prompts: Path | None = None
    grades: Path | None = None
    scores: Mapping[str, Path] = field(default_factory=dict)
    keep: np.ndarray | None = None
    source: str = "student"


def list_buckets(rollouts: Path, prompts: Path, grades: Path) -> list[Bucket]:
    """List the buckets of three folders whose shards have the same names.

    Raises:
        ShardError: there are no rollouts.
    """
    found = list_shards(rollouts, "refresh")
    return [Bucket(path, prompts / path.name, grades / path.name) for path in found]
