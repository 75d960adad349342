"""Shards of grades: whether each response is right, in the order of the rollouts."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import pyarrow as pa

from pipeline.errors import damaged
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.shards import make_table, read_shard

VERSION = 2  # raise it when a column's meaning changes; shards of grades are then made again

GRADES = pa.schema(
    [
        pa.field("rollout_id", pa.string(), nullable=False),
        pa.field("correct", pa.bool_()),
        pa.field("reward", pa.float32()),
        pa.field("feedback", pa.string()),
        pa.field("answer_hash", pa.string()),
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

    @property
    def failed(self) -> bool:
        """Whether the feedback is what went wrong with the grader, for there is no verdict."""
        return self.feedback is not None and self.correct is None and self.reward is None


_GIVEN = [field.name for field in fields(Grade)]
GRADE_COLUMNS = ("rollout_id", *_GIVEN)
"""The columns that a `Grade` is read from."""


def make_grade_table(
    rollout_ids: Sequence[str], grades: Sequence[Grade], answer_hashes: Sequence[str | None]
) -> pa.Table:
    """Make the rows of a shard of grades.

    Args:
        rollout_ids: of the rows.
        grades: one for each.
        answer_hashes: of the answers that they were graded by; None where the prompt has none.
    """
    columns = {name: [getattr(grade, name) for grade in grades] for name in _GIVEN}
    return make_table({"rollout_id": rollout_ids, **columns, "answer_hash": answer_hashes}, GRADES)


def read_grades(path: Path, rollouts: Path) -> list[Grade]:
    """Read the grades of a shard's rows, in their order.

    Raises:
        ShardError: they are not of these rollouts.
    """
    rollout_ids = read_shard(rollouts, ROLLOUTS, ["rollout_id"]).column("rollout_id").to_pylist()
    return list_grades(read_shard(path, GRADES, GRADE_COLUMNS), path, rollout_ids, rollouts)


def list_grades(table: pa.Table, path: Path, rollout_ids: Sequence[str], rollouts: Path) -> list[Grade]:
    """List the grades of a shard that has been read.

    Args:
        table: the shard.
        path: where it was read.
        rollout_ids: of the rollouts, in their order.
        rollouts: where these were read.

    Raises:
        ShardError: they are not of these rollouts.
    """
    if table.column("rollout_id").to_pylist() != list(rollout_ids):
        raise damaged(path, f"does not grade the rows of {rollouts}, in their order")
    return decode_grades(table)


def decode_grades(rows: pa.Table) -> list[Grade]:
    """Read rows of a shard of grades back."""
    return [Grade(**row) for row in rows.select(_GIVEN).to_pylist()]
