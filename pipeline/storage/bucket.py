"""The files of one bucket of prompts: its rollouts, and what belongs to the same rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.storage.shards import list_shards


@dataclass(frozen=True)
class Bucket:
    """The shards of one bucket; prompts and grades are read for the views alone that need them.

    Attributes:
        rollouts: the responses that are scored.
        prompts: what they respond to.
        grades: of each response, in their order.
    """

    rollouts: Path
    prompts: Path
    grades: Path


def list_buckets(rollouts: Path, prompts: Path, grades: Path) -> list[Bucket]:
    """Those of three folders whose shards have the same names.

    Raises:
        ShardError: there are no rollouts.
    """
    found = list_shards(rollouts, "refresh")
    return [Bucket(path, prompts / path.name, grades / path.name) for path in found]


@dataclass(frozen=True)
class TrainShard:
    """A shard of rollouts, and what belongs to the same rows.

    Attributes:
        rollouts: the shard.
        scores: of each view.
        keep: bool [rows], which rows may be trained on; None for all.
        grades: None where no recipe reads them.
        prompts: of the same bucket, likewise.
        source: whose responses they are.
    """

    rollouts: Path
    scores: Mapping[str, Path]
    keep: np.ndarray | None = None
    grades: Path | None = None
    prompts: Path | None = None
    source: str = "student"
