"""From shards to optimiser steps: which rows, in which order, in which packs.

One item of the loader is one optimiser step, known by its number alone: a run that resumes at step n trains on exactly
what an undisturbed one would. Row groups are read when their turn comes; only a window of them is in memory.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from pipeline import packing, shards
from pipeline.errors import ShardError
from pipeline.objectives import Outcomes
from pipeline.packing import Pack
from pipeline.ragged import Ragged
from pipeline.recipes import Columns, Target

WINDOW = 32
"""Row groups whose rows are shuffled together: 2,048 rows."""

SCORE_COLUMNS = ("rollout_id", "sampled_logprobs", "support_ids", "support_logprobs", "tail_logprobs", "skipped")
"""Of a score shard, what training reads; with `ROLLOUT_COLUMNS` they enter a checkpoint's identity."""

VERSION = 1  # raise it when another order or another packing would train on something else

ROLLOUT_COLUMNS = ("rollout_id", "prompt_ids", "response_ids")


@dataclass(frozen=True)
class Shard:
    """A shard of rollouts and the scores of the same rows."""

    rollouts: Path
    scores: Mapping[str, Path]
    keep: np.ndarray | None = None
    """bool [rows], which rows may be trained on; None for all."""


@dataclass(frozen=True)
class _Group:
    """One row group, decoded."""

    prompts: Ragged
    responses: Ragged
    views: Mapping[str, "_ViewGroup"]


@dataclass(frozen=True)
class _ViewGroup:
    """A view of one row group; entries are cut by token, tokens as in `responses`."""

    ids: Ragged
    logprobs: np.ndarray
    tails: np.ndarray
    sampled: np.ndarray


class Rows:
    """The rows of some shards, read by row group when they are asked for."""

    def __init__(self, sources: Sequence[Shard]):
        self.sources = sources
        self.files = [shards.rows(source.rollouts) for source in sources]
        self.groups = [(number, group) for number, counts in enumerate(self.files) for group in range(len(counts))]
        self._decoded = functools.lru_cache(maxsize=2 * WINDOW)(self._decode)
        kept = [self._kept(number, group) for number, group in self.groups]
        self.rows_in = kept
        self.count = sum(len(rows) for rows in kept)

    def order(self, epoch: int, seed: int) -> list[tuple[int, int]]:
        """Every row once, as (row group, row): row groups shuffled, then the rows of each window of them."""
        random = np.random.default_rng([seed, epoch])
        groups = random.permutation(len(self.groups))
        order = []
        for start in range(0, len(groups), WINDOW):
            window = [(int(group), int(row)) for group in groups[start : start + WINDOW] for row in self.rows_in[group]]
            order += [window[index] for index in random.permutation(len(window))]
        return order

    def sequential(self) -> list[tuple[int, int]]:
        """Every row once, as the shards have them."""
        return [(group, int(row)) for group, rows in enumerate(self.rows_in) for row in rows]

    def batch(self, rows: Sequence[tuple[int, int]], tokens: int) -> list[tuple[Pack, Columns]]:
        """The packs of one optimiser step; the weights of a step sum to 1 over all its packs."""
        groups = {group: self._decoded(group) for group, _ in rows}
        prompts = [groups[group].prompts[row].astype(np.int64) for group, row in rows]
        responses = [groups[group].responses[row].astype(np.int64) for group, row in rows]
        lengths = np.array([len(response) for response in responses])
        step_tokens, step_sequences = int(lengths.sum()), len(rows)
        packs = []
        for plan in packing.plan([len(p) + len(r) for p, r in zip(prompts, responses, strict=True)], tokens):
            pack = packing.build(plan, prompts, responses)
            taken = lengths[pack.sequences]
            places = [rows[int(index)] for index in pack.sequences]
            weights = {
                "token_mean": np.full(taken.sum(), 1 / step_tokens),
                "sequence_mean": np.repeat(1 / (taken * step_sequences), taken),
            }
            views = {name: _target(name, groups, places) for name in self.sources[0].scores}
            as_tensors = {name: torch.from_numpy(values.astype(np.float32)) for name, values in weights.items()}
            packs.append((pack, Columns(views, as_tensors)))
        return packs

    def _kept(self, number: int, group: int) -> np.ndarray:
        count, keep = self.files[number][group], self.sources[number].keep
        start = sum(self.files[number][:group])
        return np.arange(count) if keep is None else np.flatnonzero(keep[start : start + count])

    def _decode(self, index: int) -> _Group:
        number, group = self.groups[index]
        source = self.sources[number]
        rollouts = _read(source.rollouts, group, ROLLOUT_COLUMNS)
        responses = shards.ragged(rollouts.column("response_ids"))
        views = {}
        for name, path in source.scores.items():
            scores = _read(path, group, SCORE_COLUMNS)
            if scores.column("rollout_id").to_pylist() != rollouts.column("rollout_id").to_pylist():
                raise ShardError(
                    f"{path} does not score the rows of {source.rollouts}, in their order. Run `dvc repro score`."
                )
            views[name] = _view_group(scores, responses, path, group)
        return _Group(shards.ragged(rollouts.column("prompt_ids")), responses, views)


class Loader:
    """The steps of a run, from any of them on; an iterable that Lightning can save and restore exactly."""

    def __init__(self, rows: Rows, steps: int, batch: int, tokens: int, seed: int):
        self.rows, self.steps, self.batch, self.tokens, self.seed = rows, steps, batch, tokens, seed
        self.next_step = 0
        self._order = functools.lru_cache(maxsize=2)(lambda epoch: rows.order(epoch, seed))

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[Pack, Columns]]]:
        while self.next_step < self.steps:
            self.next_step += 1
            yield self.step(self.next_step - 1)

    def step(self, number: int) -> list[tuple[Pack, Columns]]:
        """The packs of optimiser step `number` (from 0); epochs follow each other without a gap."""
        places = range(number * self.batch, (number + 1) * self.batch)
        taken = [self._order(place // self.rows.count)[place % self.rows.count] for place in places]
        return self.rows.batch(taken, self.tokens)

    def state_dict(self) -> dict[str, Any]:
        """How far the loader is."""
        return {"next_step": self.next_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.next_step = state["next_step"]


def _read(path: Path, group: int, columns: Sequence[str]) -> Any:
    with pq.ParquetFile(path) as file:
        return shards.read_group(path, file, group, columns)


def _view_group(scores: Any, responses: Ragged, path: Path, group: int) -> _ViewGroup:
    if reasons := {reason for reason in scores.column("skipped").to_pylist() if reason is not None}:
        skipped = scores.num_rows - scores.column("skipped").null_count
        raise ShardError(
            f"{path}, row group {group}: {skipped} of {scores.num_rows} rows have no score "
            f"({', '.join(sorted(reasons))}), so its view cannot be a target for all rollouts. Give every prompt what "
            "the view needs, or choose a train.objective that does not learn from it."
        )
    lengths, ids = shards.ragged2(scores.column("support_ids"))
    if not np.array_equal(lengths, responses.lengths):
        raise ShardError(
            f"{path}, row group {group}: its lists are not as long as the responses. Run `dvc repro score`."
        )
    _, logprobs = shards.ragged2(scores.column("support_logprobs"))
    tails = shards.ragged(scores.column("tail_logprobs")).values
    values, tails = shards.normalised(logprobs, tails, f"{path}, row group {group}")
    # Tokens are end to end as in the responses, so that row boundaries are the responses' own.
    return _ViewGroup(ids, values, tails, shards.ragged(scores.column("sampled_logprobs")).values)


def _target(name: str, groups: Mapping[int, _Group], places: Sequence[tuple[int, int]]) -> Target:
    """One view of the sequences of a pack, as padded tensors; no loop over tokens."""
    ids, logprobs, counts, tails, sampled = [], [], [], [], []
    for group, row in places:
        view, offsets = groups[group].views[name], groups[group].responses.offsets
        tokens = slice(offsets[row], offsets[row + 1])
        entries = slice(view.ids.offsets[offsets[row]], view.ids.offsets[offsets[row + 1]])
        counts.append(view.ids.lengths[tokens])
        ids.append(view.ids.values[entries])
        logprobs.append(view.logprobs[entries])
        tails.append(view.tails[tokens])
        sampled.append(view.sampled[tokens])
    count = np.concatenate(counts)
    is_entry = np.arange(count.max(initial=0)) < count[:, None]
    padded_ids = np.full(is_entry.shape, -1, np.int64)
    padded_ids[is_entry] = np.concatenate(ids)
    padded = np.full(is_entry.shape, -np.inf, np.float32)
    padded[is_entry] = np.concatenate(logprobs)
    outcomes = Outcomes(torch.from_numpy(padded), torch.from_numpy(np.concatenate(tails)))
    return Target(torch.from_numpy(padded_ids), outcomes, torch.from_numpy(np.concatenate(sampled)))
