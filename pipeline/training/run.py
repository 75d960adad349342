"""A training run: everything that it needs, and everything that it gives back."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.models.student import Student
from pipeline.objectives.diagnostics import Alarm
from pipeline.settings.machine import Machine
from pipeline.settings.models import Training
from pipeline.settings.recipe import Recipe
from pipeline.training.rows import Rows


@dataclass(frozen=True)
class Fitted:
    """A finished run.

    Attributes:
        student: with its new weights, on the CPU.
        history: one row for each optimiser step.
        validation: KL on the held-out rows by step; empty where there were none.
        alarms: the signs of a collapse, each with the first step that showed it.
    """

    student: Student
    history: list[dict[str, float]]
    validation: list[dict[str, float]]
    alarms: list[tuple[int, Alarm]]


@dataclass(frozen=True)
class Run:
    """All that a run needs besides its student.

    Attributes:
        recipe: the objective.
        rows: what to train on.
        settings: the section of params.yaml.
        machine: where and how fast.
        state: folder for the training state of this run alone.
        held_out: rows for the validation KL, or None.
        validate_every: steps between two measurements; 0: only before the first and after the last.
    """

    recipe: Recipe
    rows: Rows
    settings: Training
    machine: Machine
    state: Path
    held_out: Rows | None = None
    validate_every: int = 0
