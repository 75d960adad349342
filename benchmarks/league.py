"""A league of recipes: each is trained on the same rollouts and scores, from the same student, and evaluated.

    python -m benchmarks.league
    python -m benchmarks.league lightning lightning_ratio topk_reverse_kl --seeds 3

The DAG runs once, in a clone of this repository and as presets/league.yaml says, up to the scores of round 1. From then
on no teacher is opened: its weights are not even there. Run again, it goes on where it was stopped. Intervals are over
seeds of training and of the evaluation's samples; the rollouts, and the student that wrote them, are the same for all.
"""

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import runs
from benchmarks.runs import Facts, Run
from pipeline.settings.recipe import list_recipes
from pipeline.storage.whole import read_json

PRESET = Path("presets/league.yaml")
TARGETS = ("score@r1", "score_teacher@r1", "evaluate_start@r0", "evaluate_start@teacher")
TEACHER = Path("data/models/demo/teacher")
CONTROL = "sft"
"""Goes on with supervised fine-tuning, for as many steps."""

COLUMNS: runs.Columns = (
    ("avg@k, %", lambda run: run["avg_at_k"], 1, 100.0),
    ("greedy, %", lambda run: run["greedy"], 1, 100.0),
    ("pass@k, %", lambda run: run["pass_at_k"], 1, 100.0),
    ("KL to the teacher, nats", lambda run: run["validation_kl"], 4, 1.0),
    ("tokens", lambda run: run["mean_length"], 1, 1.0),
    ("training, s", lambda run: run["train_seconds"], 0, 1.0),
)


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Recipes; all without any.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=10, help="Trainings of each recipe.")] = 3,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps, where not those of the settings.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that train at once, one thread each.")] = 2,
    settings: Annotated[Path, typer.Option("--params", help="The settings.")] = PRESET,
    scratch: Annotated[Path, typer.Option(help="Where the clone goes.")] = Path(".potstill/league"),
    results: Annotated[Path | None, typer.Option("--json", help="Where the figures go.")] = None,
) -> None:
    """Run the league."""
    started = time.monotonic()
    project = (scratch / "project").resolve()
    runs.prepare(project, settings, TARGETS)
    prepared = time.monotonic()
    chosen = [CONTROL, *(name for name in names or list_recipes() if name != CONTROL)]
    changes = {} if steps is None else {"steps": steps}
    wanted = [Run(name, name, seed, changes) for seed in range(seeds) for name in chosen]
    facts = without_teacher(wanted, project, workers)
    start = starting(project, facts)
    ended = time.monotonic()
    took = {"preparation": prepared - started, "league": ended - prepared}
    print(f"{report(start, facts)}\n\n{took['preparation']:.0f} s up to the scores, {took['league']:.0f} s after them.")
    runs.write(results, {"start": start, "runs": facts, "seconds": took})


def without_teacher(wanted: list[Run], project: Path, workers: int) -> list[Facts]:
    """Do the runs while the teacher's weights are put aside, so that nobody can have used them."""
    teacher, aside = project / TEACHER, project / ".potstill" / "teacher"
    shutil.rmtree(aside, ignore_errors=True)  # of a league that was killed; `prepare` has linked the teacher anew
    shutil.move(teacher, aside)
    try:
        return runs.each(wanted, project, workers)
    finally:
        shutil.move(aside, teacher)


def starting(project: Path, facts: list[Facts]) -> list[Facts]:
    """The metrics of the teacher and of the student that all start from, with its KL as the runs measured it."""
    known = [run["start_kl"] for run in facts if run.get("start_kl") is not None]
    found = [read_json(project / f"data/metrics/{name}.json") for name in ("teacher", "r0")]
    kl = {"teacher": None, "r0": known[0] if known else None}
    return [
        row | {"name": row["checkpoint"], "validation_kl": kl[row["checkpoint"]], "train_seconds": None}
        for row in found
    ]


def report(start: list[Facts], facts: list[Facts]) -> str:
    """The table, best first, then what could not be trained and why."""
    done = {name: group for name, group in runs.by_name(facts).items() if all("avg_at_k" in run for run in group)}
    ranked = sorted(done, key=lambda name: -sum(run["avg_at_k"] for run in done[name]) / len(done[name]))
    rows = {f"*{row['name']}*": [row] for row in start}
    rows |= {f"*{name}*" if name == CONTROL else f"`{name}`": done[name] for name in ranked}
    count = max((len(group) for group in done.values()), default=0)
    lines = [runs.table("recipe", rows, COLUMNS), "", f"Means over {count} seeds with 95 % intervals."]
    return "\n".join([*lines, *runs.missing(facts)])


if __name__ == "__main__":
    typer.run(main)
