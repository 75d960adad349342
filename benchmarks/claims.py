"""What the papers claim, at the demo's size: one teacher or two, frozen or fresh rollouts, whole or cut distributions.

    python -m benchmarks.claims
    python -m benchmarks.claims support --seeds 3

It works in the league's clone (`benchmarks.league`), whose rollouts and scores it shares. Run again, it goes on where
it was stopped. Each claim is a table: means over seeds of training with their 95 % intervals.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from ruamel.yaml import YAML

from benchmarks import league, runs
from benchmarks.refreshed import Refreshed
from benchmarks.runs import ROUND_1, Named, Run

ANALYTIC = {"estimator": "analytic", "divergence": "reverse_kl"}
SAMPLED = {"estimator": "policy_gradient", "divergence": "reverse_kl", "support": "sampled"}
CLIPPED = {"terms": [{**SAMPLED, "ratio": {"kind": "proximal", "low": 0.2, "high": 0.2}}]}
"""`lightning2` without its correction."""

OTHER = Path("beside/other")
"""A second teacher, made like the first from another seed, and its scores."""

COLUMNS: runs.Columns = league.COLUMNS


class Claim(StrEnum):
    """What can be asked for."""

    teacher = "teacher"
    refresh = "refresh"
    support = "support"


HEADINGS = {
    Claim.teacher: "who scored (SFT on the first teacher's responses)",
    Claim.refresh: "rollouts, at equal cost",
    Claim.support: "what is kept of the teacher",
}


def main(
    names: Annotated[list[Claim] | None, typer.Argument(help="Claims; all without any.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=10, help="Trainings of each row.")] = 3,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps, where not those of the settings.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that train at once, one thread each.")] = 2,
    settings: Annotated[Path, typer.Option("--params", help="The settings.")] = league.PRESET,
    scratch: Annotated[Path, typer.Option(help="Where the league's clone is.")] = Path(".potstill/league"),
    results: Annotated[Path | None, typer.Option("--json", help="Where the figures go.")] = None,
) -> None:
    """Put the claims to the test."""
    project = (scratch / "project").resolve()
    runs.prepare(project, settings, league.TARGETS)
    chosen = list(dict.fromkeys(names or Claim))
    if Claim.teacher in chosen:
        score_by_another(project, settings)
    changes = {} if steps is None else {"steps": steps}
    wanted = {claim: [run for seed in range(seeds) for run in of_claim(claim, seed, changes)] for claim in chosen}
    facts = runs.each([run for claim in chosen for run in wanted[claim]], project, workers)
    found: dict[str, list[runs.Facts]] = {}
    for claim in chosen:
        found[claim], facts = facts[: len(wanted[claim])], facts[len(wanted[claim]) :]
        print(f"\n{table(claim, found[claim])}")
    print(f"\nMeans over {seeds} seeds with 95 % intervals.")
    runs.write(results, found)


def of_claim(claim: Claim, seed: int, changes: Mapping[str, Any]) -> Sequence[Named]:
    """The rows of a claim's table, one run each."""
    match claim:
        case Claim.teacher:
            scores = replace(ROUND_1, teacher_scores=OTHER / "scores/teacher", view_scores=OTHER / "scores/views")
            allowed = {**changes, "allow_sft_teacher": str(league.TEACHER)}
            return [
                Run("its own teacher", CLIPPED, seed, changes),
                Run("another teacher", CLIPPED, seed, allowed, scores),
                Run("another teacher, lightning2", "lightning2", seed, allowed, scores),
                Run("its own teacher, top K", "topk_reverse_kl", seed, changes),
                Run("another teacher, top K", "topk_reverse_kl", seed, allowed, scores),
            ]
        case Claim.refresh:
            # The same rate throughout: a schedule would end anew with every part.
            even = {**changes, "schedule": "constant", "warmup": 0.0}
            return [
                Refreshed(f"{name}, written {times}", name, seed, even, parts)
                for name in ("topk_reverse_kl", "lightning", "lightning_ratio")
                for parts, times in ((1, "once (frozen)"), (2, "twice"), (None, "shard by shard (as live)"))
            ]
        case Claim.support:
            few = {**ANALYTIC, "support": "own", "top_k": 2}
            tails = {"tail bucket": "bucket", "renormalised": "renormalise", "cut, gradient stopped": "stop_gradient"}
            return [
                Run("all ids of the view, tail bucket", "topk_reverse_kl", seed, changes),
                *(Run(f"top 2, {told}", {"terms": [{**few, "tail": tail}]}, seed, changes)
                  for told, tail in tails.items()),
                Run("top 2, cut", {"terms": [{**few, "tail": "truncate"}]}, seed, changes),
                Run("the sampled token, ratio and baseline", "lightning_ratio", seed, changes),
            ]  # fmt: skip


def table(claim: Claim, facts: Sequence[runs.Facts]) -> str:
    """A claim's rows in their own order, and what was refused."""
    done = {name: group for name, group in runs.by_name(facts).items() if all("avg_at_k" in run for run in group)}
    return "\n".join([runs.table(HEADINGS[claim], done, COLUMNS), "", *runs.missing(facts)])


def score_by_another(project: Path, settings: Path) -> None:
    """Make a second teacher and have it score the same rollouts; what is done is found in the store."""
    told = runs.read_settings(settings)
    told["models"] |= {role: f"{OTHER}/demo/{role}" for role in ("teacher", "student")}
    told["models"]["demo"]["seed"] = told["models"]["demo"].get("seed", 0) + 1
    told["score"] |= {"views": {"teacher": {"support": {"top_k": 8}}}, "allow_sft_teacher": str(league.TEACHER)}
    YAML(typ="safe", pure=True).dump(told, project / "other.yaml")
    teacher = ["--teacher-record", f"{OTHER}/teacher.json", "--student-record", f"{OTHER}/student.json"]
    _stage(project, "models", *teacher, "--demo", f"{OTHER}/demo")
    _stage(
        project, "score", "--rollouts", ROUND_1.rollouts, "--prompts", ROUND_1.prompts, "--grades", ROUND_1.grades,
        "--teacher", f"{OTHER}/teacher.json", "--student", ROUND_1.student, "--previous", "data/scores/r0",
        "--teacher-out", f"{OTHER}/scores/teacher", "--views-out", f"{OTHER}/scores/views",
    )  # fmt: skip


def _stage(project: Path, name: str, *arguments: str | Path) -> None:
    subprocess.run(
        [sys.executable, "-m", f"stages.{name}", *arguments, "--params", "other.yaml"], cwd=project, check=True
    )


if __name__ == "__main__":
    typer.run(main)
