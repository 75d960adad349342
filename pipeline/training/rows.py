"""The rows of some shards: which are trained on, in which order, and what an optimiser step has of them.

The order is drawn from the epoch and the seed alone, so a run that resumes at step n trains on exactly what an
undisturbed one would.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.models.packing import Layout, Pack
from pipeline.objectives.inputs import Inputs
from pipeline.settings.recipe import Recipe
from pipeline.storage.bucket import Bucket
from pipeline.training.batches import build_batch
from pipeline.training.preference_pairs import find_partners
from pipeline.training.row_groups import Place, RowGroups

WINDOW = 32
"""Row groups whose rows are shuffled together: 2,048 rows."""

VERSION = 1  # raise it when another order or another packing would train on something else


class Rows:
    """The rows of some shards, read by row group when they are asked for.

    Args:
        sources: the shards.
        recipe: whose columns are read besides; None for those that every recipe reads.
        special_ids: of the tokenizer.

    Attributes:
        count: of rows in an epoch, the partners of pairs included.
    """

    def __init__(self, sources: Sequence[Bucket], recipe: Recipe | None = None, special_ids: Sequence[int] = ()):
        self.recipe = recipe
        self._groups = RowGroups(sources, recipe, special_ids, in_memory=2 * WINDOW)  # of two windows at their border
        self._partners = None if recipe is None or not recipe.is_paired else find_partners(sources, recipe.name)
        self._trained = [self._list_trained(number) for number in range(len(self._groups))]
        self.count = sum(len(rows) for rows in self._trained) * self.unit

    @property
    def unit(self) -> int:
        """Rows that follow each other in every order, and share a pack: 2 for pairs, the teacher's response first."""
        return 1 if self._partners is None else 2

    def order(self, epoch: int, seed: int) -> list[Place]:
        """Every row once: row groups are shuffled, then the rows of each window of them.

        With pairs, every row that has a partner comes behind it.
        """
        random = np.random.default_rng([seed, epoch])
        groups = random.permutation(len(self._groups))
        order = []
        for start in range(0, len(groups), WINDOW):
            window = [
                (int(group), int(row)) for group in groups[start : start + WINDOW] for row in self._trained[group]
            ]
            order += [window[index] for index in random.permutation(len(window))]
        if self._partners is None:
            return order
        return [place for group, row in order for place in (self._find_partner(group, row), (group, row))]

    def sequential(self) -> list[Place]:
        """Every row once, as the shards have them; of pairs the second."""
        return [(group, int(row)) for group, rows in enumerate(self._trained) for row in rows]

    def batch(
        self, places: Sequence[Place], tokens: int, devices: int = 1, layout: Layout = Layout.PACKED
    ) -> list[tuple[Pack, Inputs]]:
        """Build the packs of one optimiser step over these rows, of at most so many tokens, as many for each device."""
        return build_batch(self._groups, places, self.unit, tokens, devices, layout)

    def _list_trained(self, number: int) -> np.ndarray:
        """List the rows of a row group that are trained on; of pairs the second."""
        if self._partners is None:
            return self._groups.list_kept(number)
        first, end = self._groups.first_row[number : number + 2]
        return np.flatnonzero(self._partners[first:end] >= 0)

    def _find_partner(self, group: int, row: int) -> Place:
        assert self._partners is not None
        return self._groups.find_place(int(self._partners[self._groups.first_row[group] + row]))
