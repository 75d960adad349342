"""The row groups of the shards, decoded when one of their rows is asked for; only the last few stay in memory."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ShardError
from pipeline.settings.recipe import Recipe
from pipeline.storage.bucket import Bucket
from pipeline.storage.ragged import Ragged, from_lists
from pipeline.storage.scores import Scores
from pipeline.storage.shards import count_group_rows, open_parquet, read_group
from pipeline.training.facts import Facts, list_rollout_columns
from pipeline.training.targets import decode_view, list_target_columns

Place = tuple[int, int]
"""A row: the number of its row group, through all shards, and its own number there."""


@dataclass(frozen=True)
class RowGroup:
    """One row group, decoded.

    Attributes:
        prompts: token ids, cut by row.
        responses: likewise.
        views: their scores by name; tokens end to end as in `responses`.
        facts: what the recipe reads of the tokens besides, [tokens] by name.
    """

    prompts: Ragged
    responses: Ragged
    views: Mapping[str, Scores]
    facts: Mapping[str, np.ndarray]

    def tokens(self, row: int) -> slice:
        """The slice of a row's tokens among those of the row group."""
        return slice(int(self.responses.offsets[row]), int(self.responses.offsets[row + 1]))


class RowGroups:
    """The row groups of some shards, numbered through them in their order.

    Args:
        sources: the shards.
        recipe: whose columns are read besides; None for those that every recipe reads.
        special_ids: of the tokenizer.
        in_memory: how many decoded row groups are kept.

    Attributes:
        views: names of all views that some shard has scores of, sorted.
        first_row: int64 [groups + 1], the number among all rows of each group's first.
    """

    def __init__(self, sources: Sequence[Bucket], recipe: Recipe | None, special_ids: Sequence[int], in_memory: int):
        self._sources, self._recipe, self._in_memory = sources, recipe, in_memory
        self._facts = Facts.read_rows(sources, recipe, special_ids)
        self.views = sorted({view for source in sources for view in source.scores})
        counts = [count_group_rows(source.rollouts) for source in sources]
        self._files = [(file, group) for file, of_file in enumerate(counts) for group in range(len(of_file))]
        self.first_row = np.concatenate([[0], np.cumsum([counts[file][group] for file, group in self._files])])
        self.first_row = self.first_row.astype(np.int64)
        self._decoded = functools.lru_cache(maxsize=in_memory)(self._decode)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the decoded row groups behind: a cache cannot be pickled, and the other process fills its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_decoded"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start an empty cache of decoded row groups in the process that unpickles this."""
        self.__dict__.update(state)
        self._decoded = functools.lru_cache(maxsize=self._in_memory)(self._decode)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> RowGroup:
        return self._decoded(number)

    def list_kept(self, number: int) -> np.ndarray:
        """List the rows of a row group that its bucket keeps, by their numbers there."""
        file, group = self._files[number]
        keep, start = self._sources[file].keep, self.first_row[number - group]
        first, end = self.first_row[number : number + 2]
        return np.arange(end - first) if keep is None else np.flatnonzero(keep[first - start : end - start])

    def find_place(self, row: int) -> Place:
        """Find the place of the row with this number among all rows."""
        group = int(np.searchsorted(self.first_row, row, side="right")) - 1
        return group, row - int(self.first_row[group])

    def cut_facts(self, place: Place, group: RowGroup) -> dict[str, np.ndarray]:
        """Cut out what the recipe needs of a row's tokens besides views, float32 [its tokens] by name."""
        number, row = place
        of_all = int(self.first_row[number]) + row
        return self._facts.cut_row(of_all, group.responses[row], group.facts, group.tokens(row))

    def _decode(self, number: int) -> RowGroup:
        file, group = self._files[number]
        source = self._sources[file]
        rollouts = _read(source.rollouts, group, list_rollout_columns(self._recipe))
        responses = from_lists(rollouts.column("response_ids"))
        views = {}
        for name, path in source.scores.items():
            scores = _read(path, group, list_target_columns(self._recipe, name))
            if scores.column("rollout_id").to_pylist() != rollouts.column("rollout_id").to_pylist():
                raise ShardError(
                    f"{path} does not score the rows of {source.rollouts}, in their order. Run `dvc repro score`."
                )
            may_lack = self._recipe is not None and name in self._recipe.optional_views
            views[name] = decode_view(scores, responses, path, may_lack)
        of_tokens = self._facts.read_group(rollouts, responses, source.rollouts)
        return RowGroup(from_lists(rollouts.column("prompt_ids")), responses, views, of_tokens)


def _read(path: Path, group: int, columns: Sequence[str]) -> Any:
    with open_parquet(path) as file:
        return read_group(path, file, group, columns)
