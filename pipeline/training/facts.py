"""Facts of rows and tokens besides what views say: grades, domains, sampling log-probabilities, derived columns.

Which ones is a recipe's `reads`. Those of rows are read once for all of them; those of tokens row group by row group,
but for derived columns, which are made from all rows before the first step.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import damaged
from pipeline.settings.recipe import Recipe
from pipeline.storage.bucket import Bucket
from pipeline.storage.grades import read_grades
from pipeline.storage.prompts import PROMPTS
from pipeline.storage.ragged import Ragged, from_lists
from pipeline.storage.rollouts import ROLLOUTS, TOKEN_COLUMNS
from pipeline.storage.scores import SCORES
from pipeline.storage.shards import count_group_rows, read_groups, read_shard
from pipeline.training.derived import Stored, compute_column

_BEHIND = {
    "sampling_logprobs": ("sampling_logprobs", "behaviour_logprobs"),
    "behaviour_logprobs": ("behaviour_logprobs",),
    "segments": ("segments",),
    "finished": ("finish_reason",),
}
"""Columns of a shard of rollouts that a fact is made from."""


def list_rollout_columns(recipe: Recipe | None) -> tuple[str, ...]:
    """Names of the columns that training reads of a shard of rollouts; without a recipe those of every recipe."""
    if recipe is None:
        return TOKEN_COLUMNS
    more = {column for fact in recipe.reads for column in _BEHIND.get(fact, ())}
    needs_prompt = bool(recipe.derived) or _named(recipe, "domain=") or recipe.is_paired
    return (*TOKEN_COLUMNS, *sorted(more | ({"prompt_id"} if needs_prompt else set())))


def list_grade_columns(recipe: Recipe) -> tuple[str, ...]:
    """Names of the columns that training reads of a shard of grades."""
    return tuple(sorted(recipe.reads & {"correct", "reward"}))


def list_prompt_columns(recipe: Recipe) -> tuple[str, ...]:
    """Names of the columns that training reads of a shard of prompts."""
    return ("prompt_id", "domain") if _named(recipe, "domain=") else ()


@dataclass
class Facts:
    """The facts that a recipe reads of the rows of some shards.

    Attributes:
        recipe: None reads nothing.
        rows: [R] by name, of every row of every shard, in their order.
        tokens: derived columns of tokens, [T] by name.
        starts: [R + 1], the first token of each row among all.
        special_ids: token ids that are no text.
    """

    recipe: Recipe | None
    special_ids: np.ndarray
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    tokens: dict[str, np.ndarray] = field(default_factory=dict)
    starts: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))

    @classmethod
    def read_rows(cls, sources: Sequence[Bucket], recipe: Recipe | None, special_ids: Sequence[int] = ()) -> "Facts":
        """Read the facts of rows, and make the derived columns."""
        found = cls(recipe, np.array(sorted(special_ids), np.int64))
        if recipe is None:
            return found
        by_shard = [_rows(source, recipe) for source in sources]
        found.rows = {name: np.concatenate([each[name] for each in by_shard]) for name in by_shard[0]}
        if recipe.derived:
            stored = _stored(sources, recipe, found.rows)
            found.starts = np.concatenate([[0], np.cumsum(stored.lengths)])
            for name, spec in recipe.derived.items():
                (found.tokens if spec.is_of_tokens else found.rows)[name] = compute_column(spec, stored)
        return found

    def cut_row(
        self, row: int, response: np.ndarray, group: Mapping[str, np.ndarray], tokens: slice
    ) -> dict[str, np.ndarray]:
        """Facts of one row's tokens: name → float32 [its tokens].

        Args:
            row: its number among all rows.
            response: its token ids.
            group: facts of the tokens of its row group, from `read_group`.
            tokens: where its own are among them.
        """
        if self.recipe is None:
            return {}
        own = {name: np.full(len(response), values[row]) for name, values in self.rows.items()}
        own |= {name: values[tokens] for name, values in group.items()}
        own |= {name: values[self.starts[row] : self.starts[row + 1]] for name, values in self.tokens.items()}
        if "special" in self.recipe.reads:
            own["special"] = np.isin(response, self.special_ids)
        return {name: values.astype(np.float32) for name, values in own.items()}

    def read_group(self, rollouts: Any, responses: Ragged, path: Path) -> dict[str, np.ndarray]:
        """Facts of the tokens of a row group: name → float64 [T].

        Args:
            rollouts: the row group, with the columns that `list_rollout_columns` names.
            responses: of the row group.
            path: its shard, for the error.

        Raises:
            ShardError: a log-probability is not finite.
        """
        wanted = set() if self.recipe is None else self.recipe.reads
        found = {}
        if "sampling_logprobs" in wanted:
            found["sampling_logprobs"] = _sampling(rollouts, responses, path)
        if "behaviour_logprobs" in wanted:
            found["behaviour_logprobs"] = _behaviour(rollouts)
        if "segments" in wanted:
            found["segments"] = _or_zeros(rollouts.column("segments"), responses)
        return found


def read_domains(source: Bucket) -> np.ndarray:
    """Read the domain of each row's prompt, [rows]."""
    assert source.prompts is not None, "the stage gives the prompts to a recipe that reads them"
    known = read_shard(source.prompts, PROMPTS, ["prompt_id", "domain"])
    by_prompt = dict(zip(*(known.column(name).to_pylist() for name in ("prompt_id", "domain")), strict=True))
    rows = read_shard(source.rollouts, ROLLOUTS, ["prompt_id"]).column("prompt_id")
    return np.array([by_prompt[prompt] for prompt in rows.to_pylist()])


def _named(recipe: Recipe, kind: str) -> list[str]:
    """The domains (`domain=`) or views (`has=`) that the facts of a kind are of, which the recipe reads."""
    return sorted(fact.removeprefix(kind) for fact in recipe.reads if fact.startswith(kind))


def _rows(source: Bucket, recipe: Recipe) -> dict[str, np.ndarray]:
    """Facts of the rows of one shard, [rows] by name."""
    columns = ["rollout_id", *(["finish_reason"] if "finished" in recipe.reads else [])]
    table = read_shard(source.rollouts, ROLLOUTS, columns)
    found: dict[str, np.ndarray] = {}
    if wanted := list_grade_columns(recipe):
        assert source.grades is not None, "the stage gives the grades to a recipe that reads them"
        graded = read_grades(source.grades, source.rollouts)
        for name in wanted:
            values = [getattr(grade, name) for grade in graded]
            found[name] = np.array([np.nan if value is None else float(value) for value in values])
    if "finished" in recipe.reads:
        found["finished"] = np.array([reason == "stop" for reason in table.column("finish_reason").to_pylist()], float)
    if wanted_domains := _named(recipe, "domain="):
        of_row = read_domains(source)
        found |= {f"domain={domain}": (of_row == domain).astype(float) for domain in wanted_domains}
    for view in _named(recipe, "has="):
        has = np.zeros(table.num_rows)
        if view in source.scores:
            skipped = read_shard(source.scores[view], SCORES, ["skipped"]).column("skipped")
            has = skipped.is_null().to_numpy().astype(float)
        found[f"has={view}"] = has
    if len(recipe.sources) > 1:
        found |= {f"source={name}": np.full(table.num_rows, float(source.source == name)) for name in recipe.sources}
    return found


def _stored(sources: Sequence[Bucket], recipe: Recipe, rows: Mapping[str, np.ndarray]) -> Stored:
    """The stored columns of all rows that derived columns are made from."""
    views = sorted({view for spec in recipe.derived.values() for view in spec.views})
    parts: list[tuple[Any, ...]] = []
    numbers: dict[str, int] = {}
    for source in sources:
        for table, scored in zip(_groups(source, recipe), _scored(source, views), strict=True):
            responses = from_lists(table.column("response_ids"))
            prompt_ids = table.column("prompt_id").to_pylist()
            group = np.array([numbers.setdefault(prompt_id, len(numbers)) for prompt_id in prompt_ids], np.int64)
            behaviour = _behaviour(table) if "behaviour_logprobs" in recipe.reads else np.empty(0)
            given = [_or_nan(scores.column("sampled_logprobs"), responses) for scores in scored]
            parts.append((group, responses.lengths, responses.values, behaviour, *given))
    group, lengths, tokens, behaviour, *given = (np.concatenate(column) for column in zip(*parts, strict=True))
    by_view = dict(zip(views, given, strict=True))
    known = behaviour if "behaviour_logprobs" in recipe.reads else None
    return Stored(group, lengths, rows.get("correct"), rows.get("reward"), tokens, known, by_view)


def _groups(source: Bucket, recipe: Recipe) -> Iterator[Any]:
    return read_groups(source.rollouts, ROLLOUTS, list_rollout_columns(recipe))


def _scored(source: Bucket, views: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    counts = count_group_rows(source.rollouts)
    if not views:
        return iter([()] * len(counts))
    of_views = (read_groups(source.scores[view], SCORES, ["sampled_logprobs"]) for view in views)
    return zip(*of_views, strict=True)


def _sampling(rollouts: Any, responses: Ragged, path: Path) -> np.ndarray:
    """Log-probabilities [T] under the distribution drawn from: the behaviour's own where that was the whole one."""
    found = _or_nan(rollouts.column("sampling_logprobs"), responses)
    values = np.where(np.isnan(found), _behaviour(rollouts), found)
    if not np.isfinite(values).all():
        raise damaged(path, "is damaged: it has sampling_logprobs that are not finite")
    return values


def _behaviour(rollouts: Any) -> np.ndarray:
    """Log-probabilities [T] under the student that wrote the tokens, at temperature 1."""
    return from_lists(rollouts.column("behaviour_logprobs")).values


def _or_nan(column: Any, responses: Ragged) -> np.ndarray:
    """Values [T] of a list column; NaN in rows where it is null."""
    values = np.full(len(responses.values), np.nan)
    is_known = np.repeat(column.is_valid().to_numpy(), responses.lengths)
    values[is_known] = from_lists(column.drop_null()).values
    return values


def _or_zeros(column: Any, responses: Ragged) -> np.ndarray:
    return np.nan_to_num(_or_nan(column, responses))
