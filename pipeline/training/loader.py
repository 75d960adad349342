"""Optimiser steps by their number: which rows, in which packs."""

import functools
from collections.abc import Iterator
from typing import Any

from pipeline.models.packing import Pack
from pipeline.objectives.inputs import Inputs
from pipeline.objectives.objective import Objective
from pipeline.training.rows import Rows


class Loader:
    """The steps of a run, from any of them on; an iterable that Lightning can save and restore exactly."""

    def __init__(self, rows: Rows, steps: int, batch: int, tokens: int, seed: int, devices: int = 1):
        self.rows, self.steps, self.batch, self.tokens, self.seed = rows, steps, batch, tokens, seed
        self._objective = None if rows.recipe is None else Objective(rows.recipe)
        self.devices = devices
        self.next_step = 0
        self._order = functools.lru_cache(maxsize=2)(lambda epoch: rows.order(epoch, seed))

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[Pack, Inputs]]]:
        while self.next_step < self.steps:
            self.next_step += 1
            yield self.step(self.next_step - 1)

    def step(self, number: int) -> list[tuple[Pack, Inputs]]:
        """The packs of optimiser step `number` (from 0); epochs follow each other without a gap."""
        places = range(number * self.batch, (number + 1) * self.batch)
        taken = [self._order(place // self.rows.count)[place % self.rows.count] for place in places]
        packs = self.rows.batch(taken, self.tokens, self.devices)
        return packs if self._objective is None else self._objective.weigh(packs, number)

    def state_dict(self) -> dict[str, Any]:
        """How far the loader is."""
        return {"next_step": self.next_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.next_step = state["next_step"]
