"""Growth costs what grew: rows written, graded and scored after a change, against those that the change adds.

Each project has finished its first round. Then its prompts or settings change, its stages run again, and the rows that
reach engine or grader are counted. What comes out is compared with a project that never ran but with the change.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.engines.fake import BigramEngine
from pipeline.grading.graders import _Exact
from pipeline.storage.grades import Grade
from tests import dag

STAGES = ("models", "prompts", "teacher_rollouts", "sft", "refresh@r1", "score@r1", "evaluate_start@r0")
OUTPUTS = ("data/teacher_rollouts", "data/rollouts/r1", "data/grades/r1", "data/scores/r1", "data/metrics/r0.json")
OPD, SFT, EVALUATION = 24, 8, 6

Change = Callable[[Path], Any]


@contextlib.contextmanager
def counting_rows() -> Iterator[Counter[str]]:
    """Count the rows that go through the engine and the grader."""
    rows: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((BigramEngine, "generate"), (BigramEngine, "score"), (_Exact, "grade")):
            original = getattr(owner, name)

            def counted(self, requests, *rest, name=name, original=original):
                rows[name] += len(requests)
                return original(self, requests, *rest)

            patch.setattr(owner, name, counted)
        yield rows


def started(folder: Path, **sections: Any) -> tuple[Path, list[dag.Stage]]:
    project = dag.new_project(folder, rounds={"r1": {"prev": "r0"}}, **sections)
    return project, [stage for stage in dag.stages(project) if stage.name in STAGES]


def views(**supports: dict[str, Any]) -> dict[str, Any]:
    """Two views; of one model and two contexts."""
    score = dag.settings()["score"]
    for name, support in supports.items():
        score["views"][name]["support"] |= support
    return score


PLAIN: dict[str, Any] = {}
ASKING = {
    "score": views(teacher={"same_as": ["hinted"]}, hinted={"same_as": ["teacher"], "behaviour": True, "ids": [1, 3]}),
    "refresh": dag.settings()["refresh"] | {"behaviour_top_k": 3},
}


def setting(**changes: Any) -> Change:
    return lambda project: dag.change(project, **changes)


def added(split: str, count: int) -> Change:
    """Prompts are added, before the others and behind them."""

    def apply(project: Path) -> None:
        more = [{"prompt": f"more:{row}+0", "answer": "7", "hint": f"seven {row}"} for row in range(count)]
        dag.write_prompts(project, split, [*more[::2], *dag.read_prompts(project, split), *more[1::2]])

    return apply


def removed(split: str, count: int) -> Change:
    return lambda project: dag.write_prompts(project, split, dag.read_prompts(project, split)[count:])


def other(**fields: str) -> Change:
    """One prompt gets other words in some fields."""

    def apply(project: Path) -> None:
        first, *others = dag.read_prompts(project, "opd")
        dag.write_prompts(project, "opd", [first | fields, *others])

    return apply


CASES: dict[str, tuple[dict[str, Any], Change, Counter[str]]] = {
    "prompts added": (PLAIN, added("opd", 9), Counter(generate=9, score=2 * 9, grade=9)),
    "prompts added where views ask": (
        ASKING,
        added("opd", 9),
        Counter(generate=9, score=4 * 9, grade=9),
    ),
    "prompts removed": (PLAIN, removed("opd", 9), Counter()),
    "prompts removed where views ask": (ASKING, removed("opd", 9), Counter()),
    "more samples": (PLAIN, setting(refresh__samples=3), Counter(generate=2 * OPD, score=2 * 2 * OPD, grade=2 * OPD)),
    "fewer samples": ({"refresh": dag.settings()["refresh"] | {"samples": 3}}, setting(refresh__samples=2), Counter()),
    # Fine-tuning would read its rows in another order, and give another student.
    "other buckets": (
        {"sft": dag.settings()["sft"] | {"steps": 0, "teacher": "models/teacher"}},
        setting(prompts__buckets=3),
        Counter(),
    ),
    "a hint": (PLAIN, other(hint="other words"), Counter(score=1)),
    "an answer": (PLAIN, other(answer="17"), Counter(grade=1)),
    "another template of hints": (
        PLAIN,
        setting(score__views__hinted__context={"kind": "hint", "template": "{prompt} by {hint}"}),
        Counter(score=OPD),
    ),
    # The pass that finds them, the view of them, and the view that asks for them.
    "ids of their own": (ASKING, setting(score__views__hinted__support__ids=[1, 4]), Counter(score=3 * OPD)),
    "prompts of the teacher's": (PLAIN, added("sft", 5), Counter(generate=5, grade=5)),
    "prompts of evaluation": (PLAIN, added("evaluation", 4), Counter(generate=4 * (1 + 2), grade=4 * (1 + 2))),
    "another seed": (PLAIN, setting(refresh__seed=5), Counter(generate=OPD, score=2 * OPD, grade=OPD)),
    # Three responses come out as they were.
    "another temperature": (
        PLAIN,
        setting(refresh__sampling__temperature=0.5),
        Counter(generate=OPD, score=2 * (OPD - 3), grade=OPD - 3),
    ),
}
"""What differs from the usual project, what is changed, and the rows that engine and grader get for it."""

ONLY = {"prompts of the teacher's": ("models", "prompts", "teacher_rollouts")}
"""Stages that run again, where later ones would have another student."""


QUICK = "prompts added where views ask"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == QUICK else pytest.mark.slow) for name in CASES]
)
def test_what_exists_is_taken_over_and_the_result_is_that_of_a_run_from_nothing(name, tmp_path, monkeypatch):
    sections, change, expected = CASES[name]
    only = ONLY.get(name, STAGES)
    grown, order = started(tmp_path / "grown", **sections)
    monkeypatch.chdir(grown)
    dag.run(grown, only, order)
    change(grown)
    with counting_rows() as rows:
        dag.run(grown, only, order)
    assert rows == expected

    fresh, order = started(tmp_path / "fresh", **sections)
    change(fresh)
    monkeypatch.chdir(fresh)
    dag.run(fresh, only, order)
    for out in OUTPUTS[: 1 if name in ONLY else None]:
        assert dag.contents(grown / out) == dag.contents(fresh / out), out


def test_a_response_whose_grader_failed_is_graded_again(tmp_path, monkeypatch):
    project, order = started(tmp_path / "project")
    monkeypatch.chdir(project)
    original = _Exact.grade

    def failing_once(self, responses, answers):
        grades = original(self, responses, answers)
        return [
            Grade(None, None, "no network") if a == "3" else grade for a, grade in zip(answers, grades, strict=True)
        ]

    to_refresh = STAGES[: STAGES.index("refresh@r1") + 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Exact, "grade", failing_once)
        dag.run(project, to_refresh, order)
    added("opd", 9)(project)
    with counting_rows() as rows:
        dag.run(project, to_refresh, order)
    assert rows == Counter(generate=9, grade=9 + 1)
