"""Grading: whether a response is right, by `exact`, by math-verify, or by a function of the user's own.

`exact` compares the text after the last `####` of the response, or the whole response where there is none, with the
answer: both stripped, and as numbers where both are numbers (`1,234` is `1234.0`). `math` takes the same text and lets
math-verify find and compare what is in it. A function of one's own gets (response, answer) and gives a bool, a number
(the reward), or a dictionary of `correct`, `reward` and `feedback` (100,000 characters at most).
"""

import importlib.machinery
import importlib.metadata
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import GradeError
from pipeline.grading.pool import Pool
from pipeline.settings import params
from pipeline.storage import hashing
from pipeline.storage.grades import Grade

VERSION = 2  # raise it when the same response would get another grade

MARKER = "####"
"""What GSM8K writes before the final answer."""

_NUMBER = re.compile(r"[+-]?([0-9]{1,3}(,[0-9]{3})+|[0-9]+|(?=\.[0-9]))(\.[0-9]*)?([eE][+-]?[0-9]{1,4})?")

log = logging.getLogger("grading")


class Grader(Protocol):
    """Whatever grades responses, as `open_grader` opens it."""

    def grade(self, responses: Sequence[str], answers: Sequence[str | None]) -> list[Grade]:
        """Grade each response by the answer at its place.

        Without an answer, `exact` and `math` say nothing (all None), and a function of one's own is asked all the same.
        A grader that fails on a response says so in `feedback`, and the other two are None.
        """
        ...


@contextmanager
def open_grader(settings: params.GradeSettings, workers: int | None = None) -> Iterator[Grader]:
    """Make a grader ready; its processes end with the `with` block.

    Args:
        settings: which one, and how long it may take.
        workers: processes; None takes one for each CPU core, eight at most. `exact` needs none.

    Raises:
        GradeError: it cannot be imported, or is no function.
    """
    if settings.grader == "exact":
        yield _Exact()
        return
    own = settings.grader != "math"
    if own:
        find_source(settings.grader)
    function = settings.grader if own else "pipeline.grading.math:grade_math"
    with Pool(function, settings.timeout_s, workers) as pool:
        yield _Pooled(pool, without_answer=own)


def identify_grader(settings: params.GradeSettings) -> dict[str, Any]:
    """List what of the settings decides a grade.

    Of a function of one's own, the file that it is in is hashed; what that file imports is not.

    Raises:
        GradeError: the module cannot be found.
    """
    identity: dict[str, Any] = {"grader": settings.grader, "version": VERSION}
    if settings.grader == "math":
        identity["math_verify"] = importlib.metadata.version("math-verify")
    elif settings.grader != "exact":
        identity["source"] = hashing.hash_path(find_source(settings.grader))
    if settings.grader != "exact" and settings.timeout_s != params.GradeSettings.model_fields["timeout_s"].default:
        identity["timeout_s"] = settings.timeout_s
    return identity


def find_final_answer(response: str) -> str:
    """Take what follows the last `####`, or the whole response where there is none; stripped."""
    return response.rpartition(MARKER)[2].strip()


def exact(response: str, answer: str) -> bool:
    """Tell whether the final answer is the answer, as text or as a number."""
    found, expected = find_final_answer(response), answer.strip()
    if _NUMBER.fullmatch(found) and _NUMBER.fullmatch(expected):
        return Decimal(found.replace(",", "")) == Decimal(expected.replace(",", ""))
    return found == expected


class _Exact:
    """Compares in this process: it can neither hang nor crash."""

    def grade(self, responses: Sequence[str], answers: Sequence[str | None]) -> list[Grade]:
        """Grade as `Grader` says; nothing without an answer."""
        grades = []
        for response, answer in zip(responses, answers, strict=True):
            correct = None if answer is None else exact(response, answer)
            grades.append(Grade(correct, None if correct is None else float(correct), None))
        return grades


class _Pooled:
    """Asks processes of their own, so that a grader that hangs or crashes takes nothing else down."""

    def __init__(self, pool: Pool, without_answer: bool):
        self._pool, self._without_answer = pool, without_answer

    def grade(self, responses: Sequence[str], answers: Sequence[str | None]) -> list[Grade]:
        """Grade as `Grader` says; failures are also logged, once a call."""
        grades = [Grade(None, None, None)] * len(responses)
        pairs = enumerate(zip(responses, answers, strict=True))
        asked = [(place, pair) for place, pair in pairs if pair[1] is not None or self._without_answer]
        outcomes = self._pool.grade([pair for _, pair in asked])
        for (place, _), outcome in zip(asked, outcomes, strict=True):
            grades[place] = Grade(*outcome.grade)
        failures = [outcome.grade[2] for outcome in outcomes if outcome.failed]
        if failures:
            log.warning("%d of %d responses have no grade; the first: %s", len(failures), len(asked), failures[0])
        return grades


def find_source(grader: str) -> Path:
    """Find the file of `module:function`, looked for as `import` does, but without running anything."""
    module = grader.partition(":")[0]
    path: Sequence[str] | None = [str(Path.cwd()), *sys.path]
    spec = None
    for part in module.split("."):
        spec = importlib.machinery.PathFinder.find_spec(part, path)
        if spec is None:
            break
        path = spec.submodule_search_locations or []
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise GradeError(
            f"grade.grader: `{grader}` is in no module that can be imported from {Path.cwd()}. Write `module:function` "
            "with the module's file there, or install it."
        )
    return Path(spec.origin)
