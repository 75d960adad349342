"""The demo as an experiment: does on-policy distillation beat more of the same SFT, and was the SFT student finished?

    python -m benchmarks.demo 1 2

For each seed the whole DAG runs in a clone of this repository with every seed of params.yaml moved by it. Beside it,
from the same student r0 and teacher, on the same prompts:

- `control`: SFT goes on from r0 on fresh responses of the teacher to the prompts of round 1, for as many optimiser
  steps, of the same batch, learning rate and schedule as round 1;
- `sft+300`: SFT from the start, with 300 more optimiser steps.

It prints a table with standard errors over prompts, and whether each claim of the README holds.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from ruamel.yaml import YAML

from benchmarks import runs
from pipeline.storage.whole import read_json

MORE_STEPS = 300


def main(
    seeds: Annotated[list[int], typer.Argument(help="Fixed before the run; each gives a whole experiment.")],
    scratch: Annotated[Path, typer.Option(help="Where the clones go.")] = Path(".potstill/experiment"),
    results: Annotated[Path | None, typer.Option("--json", help="Where the figures go.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 where a claim does not hold.")] = False,
) -> None:
    """Run the experiment."""
    rows = [row for seed in seeds for row in experiment(seed, (scratch / f"seed-{seed}").resolve())]
    found = [claim for seed in seeds for claim in claims([row for row in rows if row["seed"] == seed])]
    print("\n".join([table(rows), "", *(f"{'holds' if ok else 'FAILS'}: {text}" for text, ok in found)]))
    if results is not None:
        results.write_text(json.dumps({"rows": rows, "claims": found}, indent=1) + "\n")
    if check and not all(ok for _, ok in found):
        sys.exit(1)


def experiment(seed: int, project: Path) -> list[dict[str, Any]]:
    """Run the DAG and its two comparisons for one seed; what the store has is not made again."""
    runs.clone(project)
    settings = moved(_yaml().load(Path("params.yaml")), seed)
    _yaml().dump(settings, project / "params.yaml")
    runs.repro(project)
    _yaml().dump(_continued(settings), project / "control.yaml")
    _yaml().dump(_longer(settings), project / "longer.yaml")
    fine_tune(project, "control", "data/models/r0", "data/prompts/opd", "control.yaml")
    fine_tune(project, "sft+300", "data/models/student.json", "data/prompts/sft", "longer.yaml")
    names = ["teacher", "r0", "sft+300", "control", *settings["rounds"]]
    return [{"seed": seed} | _metrics(project, name) for name in names]


def moved(settings: Any, seed: int) -> Any:
    """The settings with every seed moved, so that two experiments have nothing in common but their sizes."""
    for source in settings["prompts"]["sources"]:
        source["sums"] += 1000 * seed
    for section in ("teacher_rollouts", "sft", "refresh", "train", "evaluate"):
        settings[section]["seed"] = settings[section].get("seed", 0) + seed
    settings["models"]["demo"]["seed"] = settings["models"]["demo"].get("seed", 0) + 1000 * seed
    return settings


def claims(rows: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """What the README says of the demo, for the rows of one seed, in points of accuracy."""
    by = {row["checkpoint"]: row for row in rows}
    at_k = {name: 100 * row["avg_at_k"] for name, row in by.items()}
    greedy = {name: 100 * row["greedy"] for name, row in by.items()}
    error = 100 * (by["r1"]["avg_at_k_se"] ** 2 + by["r2"]["avg_at_k_se"] ** 2) ** 0.5
    seed = f"seed {rows[0]['seed']}"
    return [
        (f"{seed}: teacher greedy {greedy['teacher']:.1f} is at least 95", greedy["teacher"] >= 95),
        (f"{seed}: r0 greedy {greedy['r0']:.1f} is at least 60", greedy["r0"] >= 60),
        (
            f"{seed}: {MORE_STEPS} more SFT steps add {greedy['sft+300'] - greedy['r0']:+.1f} greedy, under 3",
            greedy["sft+300"] - greedy["r0"] < 3,
        ),
        (f"{seed}: r1 is {at_k['r1'] - at_k['r0']:+.1f} avg@k over r0, at least 15", at_k["r1"] - at_k["r0"] >= 15),
        (
            f"{seed}: r1 is {at_k['r1'] - at_k['control']:+.1f} avg@k over the control, at least 5",
            at_k["r1"] - at_k["control"] >= 5,
        ),
        (
            f"{seed}: r2 is {at_k['r2'] - at_k['r1']:+.1f} avg@k over r1, two errors are {2 * error:.1f}",
            at_k["r2"] - at_k["r1"] >= -2 * error,
        ),
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as a Markdown table, in per cent."""
    lines = ["| seed | checkpoint | greedy | avg@k, T = 1 | pass@k | prompts × k |", "|---|---|---|---|---|---|"]
    for row in rows:
        greedy, many = (f"{100 * row[n]:.1f} ± {100 * row[f'{n}_se']:.1f}" for n in ("greedy", "avg_at_k"))
        size = f"{row['prompts']} × {row['k']}"
        lines.append(
            f"| {row['seed']} | {row['checkpoint']} | {greedy} | {many} | {100 * row['pass_at_k']:.1f} | {size} |"
        )
    return "\n".join(lines)


def _continued(settings: Any) -> Any:
    """SFT with the steps, batch, learning rate and schedule of `train`, on responses drawn with another seed."""
    shared = {name: value for name, value in settings["train"].items() if name not in ("objective", "validate_every")}
    again = {**settings["teacher_rollouts"], "seed": settings["teacher_rollouts"]["seed"] + 500}
    return {**settings, "sft": shared, "teacher_rollouts": again}


def _longer(settings: Any) -> Any:
    return {**settings, "sft": {**settings["sft"], "steps": settings["sft"]["steps"] + MORE_STEPS}}


def fine_tune(project: Path, name: str, student: str, prompts: str, settings: str) -> None:
    """The stages teacher_rollouts, sft and evaluate beside the DAG."""
    own, teacher = f"beside/{name}", "data/models/teacher.json"
    written = ["--rollouts", f"{own}/rollouts", "--grades", f"{own}/grades", "--params", settings]
    _stage(project, "teacher_rollouts", "--prompts", prompts, "--teacher", teacher, *written)
    _stage(project, "sft", "--student", student, "--teacher", teacher, "--out", f"{own}/model", *written)
    evaluated = ["--prompts", "data/prompts/evaluation", "--out", f"{own}/metrics.json"]
    answers = ["--model", f"{own}/model", "--responses", f"{own}/responses"]
    _stage(project, "evaluate", "--checkpoint", name, *answers, *evaluated)


def _metrics(project: Path, name: str) -> dict[str, Any]:
    beside = project / "beside" / name / "metrics.json"
    return read_json(beside if beside.exists() else project / "data/metrics" / f"{name}.json")


def _stage(project: Path, name: str, *arguments: str) -> None:
    _run(project, sys.executable, "-m", f"stages.{name}", *arguments)


def _run(project: Path, *command: str) -> None:
    subprocess.run(command, cwd=project, check=True)


def _yaml() -> YAML:
    return YAML(typ="safe", pure=True)


if __name__ == "__main__":
    typer.run(main)
