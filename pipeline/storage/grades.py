"""Shards of grades: whether each response is right, in the order of the rollouts."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.errors import ShardError
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.shards import read_shard

VERSION = 1  # raise it when a column's meaning changes; shards of grades are then made again

GRADES = pa.schema(
    [
        pa.field("rollout_id", pa.string(), nullable=False),
        pa.field("correct", pa.bool_()),
        pa.field("reward", pa.float32()),
        pa.field("feedback", pa.string()),
    ]
)


@dataclass(frozen=True)
class Grade:
    """What a grader says of one response; all None where it was not asked.

    Attributes:
        correct: None where the grader does not tell, or failed.
        reward: finite; 1 and 0 for right and wrong where the grader gives none of its own.
        feedback: the grader's words, or what went wrong with it.
    """

    correct: bool | None
    reward: float | None
    feedback: str | None


def grade_table(rollout_ids: Sequence[str], grades: Sequence[Grade]) -> pa.Table:
    """Rows of a shard of grades."""
    columns = zip(*[astuple(grade) for grade in grades], strict=True) if grades else ([], [], [])
    arrays = [pa.array(rollout_ids, pa.string())]
    arrays += [pa.array(column, field.type) for column, field in zip(columns, list(GRADES)[1:], strict=True)]
    return pa.table(arrays, GRADES)


def read_grades(path: Path, rollouts: Path) -> list[Grade]:
    """The grades of a shard's rows, in their order.

    Raises:
        ShardError: they are not of these rollouts.
    """
    rollout_ids = read_shard(rollouts, ROLLOUTS, ["rollout_id"]).column("rollout_id").to_pylist()
    return list_grades(read_shard(path, GRADES), path, rollout_ids, rollouts)


def list_grades(table: pa.Table, path: Path, rollout_ids: Sequence[str], rollouts: Path) -> list[Grade]:
    """List the grades of a shard that has been read.

    Args:
        table: the whole shard.
        path: where it was read.
        rollout_ids: of the rollouts, in their order.
        rollouts: where these were read.

    Raises:
        ShardError: they are not of these rollouts.
    """
    if table.column("rollout_id").to_pylist() != list(rollout_ids):
        raise ShardError(
            f"{path} does not grade the rows of {rollouts}, in their order. Remove it and run `dvc repro`."
        )
    columns = (table.column(name).to_pylist() for name in ("correct", "reward", "feedback"))
    return [Grade(*row) for row in zip(*columns, strict=True)]
