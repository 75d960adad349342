"""Grades of rollouts, in files of their own: a corrected grader grades again and does nothing else."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import GradeError
from pipeline.grading.graders import Grader, identify_grader, open_grader
from pipeline.settings import params
from pipeline.storage import grades as grades_format
from pipeline.storage import hashing
from pipeline.storage.families import Families, Key, KnownRows
from pipeline.storage.grades import GRADES, Grade, decode_grades, make_grade_table
from pipeline.storage.made_with import find_versions
from pipeline.storage.prompts import PROMPTS
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.shards import Writer, read_groups, read_shard
from pipeline.storage.store import Folder, Store

AT_ONCE = 1024
"""Responses that are held until they are graded."""

LEAST_FAILURES = 3
"""Fewer failures never end a stage, whatever their share."""

NOTHING = Grade(None, None, None)
"""What a response gets that nobody was asked about."""


GRADE_KEY = ("rollout_id", "answer_hash")
"""What decides a row of a family of grades: a response, and the answer that it is graded by."""


class Grading:
    """Grades shards of rollouts; the grader is started when something is to be graded, and ended with the block."""

    def __init__(self, settings: params.GradeSettings, store: Store):
        self._settings = settings
        self._families = Families(store, GRADES, GRADE_KEY)
        self._open = ExitStack()
        self._asked, self._failures = 0, list[str]()
        self._grader: Grader | None = None

    def __enter__(self) -> "Grading":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def prepare(self, prompts: Path, rollouts: Path) -> tuple[dict[str, Any], Callable[[Path], None]]:
        """Say what a shard of grades is made from, and how: the arguments of `Store.obtain`.

        Args:
            prompts: the shard that has the answers.
            rollouts: the shard to grade.
        """
        identity = {
            "stage": "grade",
            "format": grades_format.VERSION,
            "grader": identify_grader(self._settings),
            "rows": {
                "answers": hashing.hash_columns(prompts, PROMPTS, ("prompt_id", "answer")),
                "rollouts": hashing.hash_columns(rollouts, ROLLOUTS, ("rollout_id", "prompt_id", "text")),
            },
        }
        return identity, partial(self._make, identity, prompts, rollouts)

    def _make(self, identity: dict[str, Any], prompts: Path, rollouts: Path, path: Path) -> None:
        known = read_shard(prompts, PROMPTS, ("prompt_id", "answer"))
        answers = dict(zip(known.column("prompt_id").to_pylist(), known.column("answer").to_pylist(), strict=True))
        with Writer(path, GRADES, identity, find_versions("math-verify")) as writer:
            for ids, asked, texts in _batches(rollouts):
                keys = [(own, _hash_answer(answers[prompt_id])) for own, prompt_id in zip(ids, asked, strict=True)]
                pairs = [(text, answers[prompt_id]) for text, prompt_id in zip(texts, asked, strict=True)]
                graded = self._grade(keys, pairs, self._families.of(identity))
                writer.write(make_grade_table(ids, graded, [answer_hash for _, answer_hash in keys]))

    def _grade(self, keys: Sequence[Key], pairs: Sequence[tuple[str, str | None]], known: KnownRows) -> list[Grade]:
        """Grade responses by answers; what another shard has is taken over, except where its grader failed."""
        found = [place for place, key in enumerate(keys) if key in known]
        others = decode_grades(known.read([keys[place] for place in found]))
        grades = {place: grade for place, grade in zip(found, others, strict=True) if not grade.failed}
        missing = [place for place in range(len(keys)) if place not in grades]
        grades |= zip(missing, self._ask([pairs[place] for place in missing]), strict=True)
        return [grades[place] for place in range(len(keys))]

    def _ask(self, pairs: Sequence[tuple[str, str | None]]) -> list[Grade]:
        if not pairs:
            return []
        if self._grader is None:
            self._grader = self._open.enter_context(open_grader(self._settings))
        grades = self._grader.grade([response for response, _ in pairs], [answer for _, answer in pairs])
        self._check_failures(grades)
        return grades

    def _check_failures(self, grades: Sequence[Grade]) -> None:
        """End the stage where the grader fails on more than a share of what it is asked; a few may be odd answers.

        Raises:
            GradeError: says how many, and quotes the first.
        """
        self._asked += sum(grade != NOTHING for grade in grades)
        self._failures += [grade.feedback or "" for grade in grades if grade.failed]
        failed, most = len(self._failures), self._settings.max_failed_share
        if failed >= LEAST_FAILURES and failed > most * self._asked:
            reasons = "; ".join(dict.fromkeys(self._failures[:50]))[:500]
            raise GradeError(
                f"grade.grader `{self._settings.grader}` failed on {failed} of {self._asked} responses, more than "
                f"grade.max_failed_share ({most:g}): {reasons}. Mend the grader or the answers and run `dvc repro`; "
                "what was graded before stays."
            )


def _hash_answer(answer: str | None) -> str | None:
    return None if answer is None else hashing.digest(answer)


def _batches(rollouts: Path) -> Iterator[list[list[str]]]:
    """Read ids, prompts' ids and texts of so many row groups at a time that one slow grade holds up few others."""
    columns = ("rollout_id", "prompt_id", "text")
    batch: list[list[str]] = [[], [], []]
    for group in read_groups(rollouts, ROLLOUTS, columns):
        if len(batch[0]) >= AT_ONCE:
            yield batch
            batch = [[], [], []]
        batch = [[*some, *group.column(name).to_pylist()] for some, name in zip(batch, columns, strict=True)]
    yield batch


def grade_shards(folder: Folder, settings: params.GradeSettings, prompts: Sequence[Path], rollouts: Path) -> None:
    """Grade the shards of a folder of rollouts into a stage's output."""
    with Grading(settings, folder.store) as graded:
        for source in prompts:
            folder.obtain(source.name, *graded.prepare(source, rollouts / source.name))
