"""The loader: optimiser steps by their number, so that a stopped run goes on with the packs that it would have had."""

import functools
from collections.abc import Iterator
from typing import Any

from pipeline.models.packing import Layout, Pack
from pipeline.objectives.inputs import Inputs
from pipeline.objectives.objective import Objective
from pipeline.settings.machine import Machine
from pipeline.settings.models import Training
from pipeline.training.rows import Rows


class Loader:
    """The steps of a run, from any of them on; an iterable that Lightning can save and restore exactly.

    Args:
        rows: what to train on.
        settings: how many steps of how many rows, and the seed of their order.
        machine: how many tokens a pack has, and how many devices share a step.
        layout: what the student bears.
    """

    def __init__(self, rows: Rows, settings: Training, machine: Machine, layout: Layout = Layout.PACKED):
        self.rows, self.settings, self.machine, self.layout = rows, settings, machine, layout
        self.next_step = 0
        self._objective = None if rows.recipe is None else Objective(rows.recipe)
        self._order = functools.lru_cache(maxsize=2)(lambda epoch: rows.order(epoch, settings.seed))

    def __len__(self) -> int:
        return self.settings.steps

    def __iter__(self) -> Iterator[list[tuple[Pack, Inputs]]]:
        while self.next_step < self.settings.steps:
            self.next_step += 1
            yield self.step(self.next_step - 1)

    def step(self, number: int) -> list[tuple[Pack, Inputs]]:
        """Build the packs of optimiser step `number` (from 0); epochs follow each other without a gap."""
        batch = self.settings.batch
        taken = [
            self._order(row // self.rows.count)[row % self.rows.count]
            for row in range(number * batch, (number + 1) * batch)
        ]
        packs = self.rows.batch(taken, self.machine.train_tokens, self.machine.devices, self.layout)
        return packs if self._objective is None else self._objective.weigh(packs, number)

    def state_dict(self) -> dict[str, Any]:
        """Give the number of the next step, for the saved state of a run."""
        return {"next_step": self.next_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the step that a saved state names."""
        self.next_step = state["next_step"]
