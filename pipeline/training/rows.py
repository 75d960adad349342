"""From shards to optimiser steps: which rows, in which order, in which packs.

One item of the loader is one optimiser step, known by its number alone: a run that resumes at step n trains on exactly
what an undisturbed one would. Row groups are read when their turn comes; only a window of them is in memory.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from pipeline.errors import ShardError
from pipeline.models.packing import Pack, build_pack, plan_packs, share_packs
from pipeline.objectives.inputs import Inputs, Target
from pipeline.settings.recipe import Recipe
from pipeline.storage.bucket import Bucket
from pipeline.storage.ragged import Ragged, from_lists
from pipeline.storage.scores import Scores
from pipeline.storage.shards import read_group, rows_per_group
from pipeline.training.facts import Facts, rollout_columns
from pipeline.training.preference_pairs import find_partners
from pipeline.training.targets import build_target, decode_view, target_columns, unscored_view

WINDOW = 32
"""Row groups whose rows are shuffled together: 2,048 rows."""

VERSION = 1  # raise it when another order or another packing would train on something else


@dataclass(frozen=True)
class _Group:
    """One row group, decoded."""

    prompts: Ragged
    responses: Ragged
    views: Mapping[str, Scores]
    facts: Mapping[str, np.ndarray]

    def tokens(self, row: int) -> slice:
        """Where a row's tokens lie among those of all rows."""
        return slice(int(self.responses.offsets[row]), int(self.responses.offsets[row + 1]))


class Rows:
    """The rows of some shards, read by row group when they are asked for.

    Args:
        sources: the shards.
        recipe: whose columns are read besides; None for those that every recipe reads.
        special_ids: of the tokenizer.
    """

    def __init__(self, sources: Sequence[Bucket], recipe: Recipe | None = None, special_ids: Sequence[int] = ()):
        self.sources, self.recipe = sources, recipe
        self.facts = Facts.read(sources, recipe, special_ids)
        self.views = sorted({view for source in sources for view in source.scores})
        self.files = [rows_per_group(source.rollouts) for source in sources]
        self.groups = [(number, group) for number, counts in enumerate(self.files) for group in range(len(counts))]
        self._decoded = functools.lru_cache(maxsize=2 * WINDOW)(self._decode)
        self.first_row = np.concatenate([[0], np.cumsum([self.files[n][g] for n, g in self.groups])]).astype(np.int64)
        self.partner = None if recipe is None or not recipe.is_paired else find_partners(sources, recipe.name)
        self.rows_in = [self._kept(place) for place in range(len(self.groups))]
        self.count = sum(len(rows) for rows in self.rows_in) * self.unit

    def __getstate__(self) -> dict[str, Any]:
        """For another process: all but the row groups in memory."""
        return {name: value for name, value in self.__dict__.items() if name != "_decoded"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In the other process."""
        self.__dict__.update(state)
        self._decoded = functools.lru_cache(maxsize=2 * WINDOW)(self._decode)

    @property
    def unit(self) -> int:
        """Rows that follow each other in every order, and share a pack: 2 for pairs, the teacher's response first."""
        return 1 if self.partner is None else 2

    def order(self, epoch: int, seed: int) -> list[tuple[int, int]]:
        """Every row once, as (row group, row): row groups shuffled, then the rows of each window of them.

        Of pairs every row that has a partner, behind it.
        """
        random = np.random.default_rng([seed, epoch])
        groups = random.permutation(len(self.groups))
        order = []
        for start in range(0, len(groups), WINDOW):
            window = [(int(group), int(row)) for group in groups[start : start + WINDOW] for row in self.rows_in[group]]
            order += [window[index] for index in random.permutation(len(window))]
        return order if self.partner is None else [place for row in order for place in (self._partner_of(*row), row)]

    def sequential(self) -> list[tuple[int, int]]:
        """Every row once, as the shards have them."""
        return [(group, int(row)) for group, rows in enumerate(self.rows_in) for row in rows]

    def batch(self, rows: Sequence[tuple[int, int]], tokens: int, devices: int = 1) -> list[tuple[Pack, Inputs]]:
        """The packs of one optimiser step, as many for each device; the weights of a step sum to 1 over all of them."""
        groups = {group: self._decoded(group) for group, _ in rows}
        prompts = [groups[group].prompts[row].astype(np.int64) for group, row in rows]
        responses = [groups[group].responses[row].astype(np.int64) for group, row in rows]
        lengths = np.array([len(response) for response in responses])
        step_tokens, step_sequences = int(lengths.sum()), len(rows)
        packs = []
        sizes = np.array([len(p) + len(r) for p, r in zip(prompts, responses, strict=True)])
        plans = plan_packs(sizes.reshape(-1, self.unit).sum(axis=1), tokens)
        for plan in share_packs(plans, devices):
            in_units = [[unit * self.unit + n for unit in row for n in range(self.unit)] for row in plan]
            pack = build_pack(in_units, prompts, responses)
            taken = lengths[pack.sequences]
            places = [rows[int(index)] for index in pack.sequences]
            weights = {
                "token_mean": np.full(taken.sum(), 1 / step_tokens),
                "sequence_mean": np.repeat(1 / (taken * step_sequences), taken),
            }
            views = {name: _target(name, [(groups[group], row) for group, row in places]) for name in self.views}
            as_tensors = {name: torch.from_numpy(values.astype(np.float32)) for name, values in weights.items()}
            columns = Inputs(
                views,
                as_tensors,
                facts=self._facts(groups, places),
                lengths=torch.from_numpy(taken),
                sampled_ids=pack.sampled_ids,
            )
            packs.append((pack, columns))
        return packs

    def _facts(self, groups: Mapping[int, _Group], places: Sequence[tuple[int, int]]) -> dict[str, torch.Tensor]:
        """What the recipe reads of the tokens of a pack besides views."""
        of_rows = []
        for group, row in places:
            here, number = groups[group], int(self.first_row[group]) + row
            of_rows.append(self.facts.of(number, here.responses[row], here.facts, here.tokens(row)))
        return {name: torch.from_numpy(np.concatenate([each[name] for each in of_rows])) for name in of_rows[0]}

    def _kept(self, place: int) -> np.ndarray:
        """Rows of a row group that are trained on; of pairs the second."""
        number, group = self.groups[place]
        count, keep = self.files[number][group], self.sources[number].keep
        if self.partner is not None:
            return np.flatnonzero(self.partner[self.first_row[place] : self.first_row[place + 1]] >= 0)
        start = sum(self.files[number][:group])
        return np.arange(count) if keep is None else np.flatnonzero(keep[start : start + count])

    def _partner_of(self, group: int, row: int) -> tuple[int, int]:
        assert self.partner is not None
        partner = int(self.partner[self.first_row[group] + row])
        of = int(np.searchsorted(self.first_row, partner, side="right")) - 1
        return of, partner - int(self.first_row[of])

    def _decode(self, index: int) -> _Group:
        number, group = self.groups[index]
        source = self.sources[number]
        rollouts = _read(source.rollouts, group, rollout_columns(self.recipe))
        responses = from_lists(rollouts.column("response_ids"))
        views = {}
        for name, path in source.scores.items():
            scores = _read(path, group, target_columns(self.recipe, name))
            if scores.column("rollout_id").to_pylist() != rollouts.column("rollout_id").to_pylist():
                raise ShardError(
                    f"{path} does not score the rows of {source.rollouts}, in their order. Run `dvc repro score`."
                )
            may_lack = self.recipe is not None and name in self.recipe.optional_views
            views[name] = decode_view(scores, responses, path, may_lack)
        of_tokens = self.facts.of_group(rollouts, responses, source.rollouts)
        return _Group(from_lists(rollouts.column("prompt_ids")), responses, views, of_tokens)


def _read(path: Path, group: int, columns: Sequence[str]) -> Any:
    with pq.ParquetFile(path) as file:
        return read_group(path, file, group, columns)


def _target(view: str, rows: Sequence[tuple[_Group, int]]) -> Target:
    """A view of some rows; of another source's, which it was never asked about, it has no score."""
    parts = [(group.views.get(view) or unscored_view(group.responses), group.tokens(row)) for group, row in rows]
    return build_target(parts)
