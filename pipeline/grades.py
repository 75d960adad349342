"""Grades of rollouts, in files of their own: a corrected grader grades again and does nothing else."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import grading, hashing, params, shards
from pipeline.errors import ShardError
from pipeline.grading import Grade, Grader
from pipeline.made_with import versions
from pipeline.store import Folder

AT_ONCE = 1024
"""Responses that are held until they are graded."""


class Grading:
    """Grades shards of rollouts; the grader is started when something is to be graded, and ended with the block."""

    def __init__(self, settings: params.Grade):
        self._settings = settings
        self._open = ExitStack()
        self._grader: Grader | None = None

    def __enter__(self) -> "Grading":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def of(self, prompts: Path, rollouts: Path) -> tuple[dict[str, Any], Callable[[Path], None]]:
        """What a shard of grades is made from, and how: the arguments of `Store.obtain`.

        Args:
            prompts: the shard that has the answers.
            rollouts: the shard to grade.
        """
        identity = {
            "stage": "grade",
            "format": shards.VERSION,
            "grader": grading.identity(self._settings),
            "answers": hashing.content(prompts, shards.PROMPTS, ("prompt_id", "answer")),
            "rollouts": hashing.content(rollouts, shards.ROLLOUTS, ("rollout_id", "prompt_id", "text")),
        }
        return identity, partial(self._make, identity, prompts, rollouts)

    def _make(self, identity: dict[str, Any], prompts: Path, rollouts: Path, path: Path) -> None:
        if self._grader is None:
            self._grader = self._open.enter_context(grading.open_grader(self._settings))
        known = shards.read(prompts, shards.PROMPTS, ("prompt_id", "answer"))
        answers = dict(zip(known.column("prompt_id").to_pylist(), known.column("answer").to_pylist(), strict=True))
        with shards.Writer(path, shards.GRADES, identity, versions("math-verify")) as writer:
            for ids, asked, texts in _batches(rollouts):
                graded = self._grader.grade(texts, [answers[prompt_id] for prompt_id in asked])
                writer.write(grading.table(ids, graded))


def _batches(rollouts: Path) -> Iterator[list[list[str]]]:
    """Ids, prompts' ids and texts of some row groups at a time: so many that one slow grade holds up few others."""
    columns = ("rollout_id", "prompt_id", "text")
    batch: list[list[str]] = [[], [], []]
    for group in shards.groups(rollouts, shards.ROLLOUTS, columns):
        if len(batch[0]) >= AT_ONCE:
            yield batch
            batch = [[], [], []]
        batch = [[*some, *group.column(name).to_pylist()] for some, name in zip(batch, columns, strict=True)]
    yield batch


def fill(folder: Folder, settings: params.Grade, prompts: Sequence[Path], rollouts: Path) -> None:
    """Grade the shards of a folder of rollouts into a stage's output."""
    with Grading(settings) as graded:
        for source in prompts:
            folder.obtain(source.name, *graded.of(source, rollouts / source.name))


def read(path: Path, rollouts: Path) -> list[Grade]:
    """The grades of a shard's rows, in their order.

    Raises:
        ShardError: they are not of these rollouts.
    """
    table = shards.read(path, shards.GRADES)
    if table.column("rollout_id") != shards.read(rollouts, shards.ROLLOUTS, ["rollout_id"]).column("rollout_id"):
        raise ShardError(
            f"{path} does not grade the rows of {rollouts}, in their order. Remove it and run `dvc repro`."
        )
    columns = (table.column(name).to_pylist() for name in ("correct", "reward", "feedback"))
    return [Grade(*row) for row in zip(*columns, strict=True)]
