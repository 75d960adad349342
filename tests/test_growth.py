"""Growth costs what grew: rows written and scored after a change, against those that the change adds.

Each project has finished its first round. Then its prompts or settings change, its stages run again, and the rows that
reach the engine are counted. What comes out is compared with a project in which only the changed settings ever ran.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.engines.fake import BigramEngine
from tests import dag

STAGES = ("models", "prompts", "teacher_rollouts", "sft", "refresh@r1", "score@r1", "evaluate_start@r0")
OUTPUTS = ("data/teacher_rollouts", "data/rollouts/r1", "data/grades/r1", "data/scores/r1", "data/metrics/r0.json")
OPD, SFT, EVALUATION = 24, 8, 6

Change = Callable[[Path], Any]


@contextlib.contextmanager
def counting_rows() -> Iterator[Counter[str]]:
    """Count the rows that go through the engine."""
    rows: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("generate", "score"):
            original = getattr(BigramEngine, name)

            def counted(self, requests, *rest, name=name, original=original):
                rows[name] += len(requests)
                return original(self, requests, *rest)

            patch.setattr(BigramEngine, name, counted)
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


def another_hint(project: Path) -> None:
    first, *others = dag.read_prompts(project, "opd")
    dag.write_prompts(project, "opd", [first | {"hint": "other words"}, *others])


CASES: dict[str, tuple[dict[str, Any], Change, Counter[str]]] = {
    "prompts added": (PLAIN, added("opd", 9), Counter(generate=9, score=2 * 9)),
    "prompts added where views ask for each other's ids": (ASKING, added("opd", 9), Counter(generate=9, score=4 * 9)),
    "prompts removed": (PLAIN, removed("opd", 9), Counter()),
    "prompts removed where views ask": (ASKING, removed("opd", 9), Counter()),
    "more samples": (PLAIN, setting(refresh__samples=3), Counter(generate=2 * OPD, score=2 * 2 * OPD)),
    "fewer samples": ({"refresh": dag.settings()["refresh"] | {"samples": 3}}, setting(refresh__samples=2), Counter()),
    # Fine-tuning would read its rows in another order, and give another student.
    "other buckets": (
        {"sft": dag.settings()["sft"] | {"steps": 0, "teacher": "models/teacher"}},
        setting(prompts__buckets=3),
        Counter(),
    ),
    "a hint": (PLAIN, another_hint, Counter(score=1)),
    "another template of hints": (
        PLAIN,
        setting(score__views__hinted__context={"kind": "hint", "template": "{prompt} by {hint}"}),
        Counter(score=OPD),
    ),
    # The pass that finds them, the view of them, and the view that asks for them.
    "ids of their own": (ASKING, setting(score__views__hinted__support__ids=[1, 4]), Counter(score=3 * OPD)),
    "prompts of the teacher's": (PLAIN, added("sft", 5), Counter(generate=5)),
    "prompts of evaluation": (PLAIN, added("evaluation", 4), Counter(generate=4 * (1 + 2))),
    "another seed": (PLAIN, setting(refresh__seed=5), Counter(generate=OPD, score=2 * OPD)),
    # Three responses come out as they were.
    "another temperature": (
        PLAIN,
        setting(refresh__sampling__temperature=0.5),
        Counter(generate=OPD, score=2 * (OPD - 3)),
    ),
}
"""What differs from the usual project, what is changed, and the rows that the engine gets for it."""

ONLY = {"prompts of the teacher's": ("models", "prompts", "teacher_rollouts")}
"""Stages that run again, where later ones would have another student."""


QUICK = "prompts added where views ask for each other's ids"


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
