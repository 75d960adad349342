"""From a shard of rollouts to a shard of what one view says of them, row group by row group."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.engines.engine import Engine, ScoreRequest
from pipeline.engines.identity import find_engine_libraries
from pipeline.head.support import Support
from pipeline.progress import Progress
from pipeline.scoring.plan import ScoreJob
from pipeline.storage import hashing
from pipeline.storage.families import KnownRows, put_in_order
from pipeline.storage.ragged import from_lists, from_nested_lists
from pipeline.storage.rollouts import TOKEN_COLUMNS
from pipeline.storage.scores import SCORES, make_score_table, make_skipped_table
from pipeline.storage.shards import ShardReader, Writer, read_groups

SCORE_KEY = ("rollout_id", "context_hash")
"""What decides a row of a family of scores: a response, which has its writer in its id, and what the model saw."""


def write_scores(
    path: Path,
    job: ScoreJob,
    open_engine: Callable[[], Engine],
    rollouts: ShardReader,
    progress: Progress | None = None,
    known: KnownRows | None = None,
) -> None:
    """Score one shard.

    Args:
        path: of the new file.
        job: what to score.
        open_engine: gives the job's model, open; called where there is something to score.
        rollouts: reads the job's rollouts, for other views too; its caller closes it.
        progress: told of responses that have their scores.
        known: rows that other shards have, by `SCORE_KEY`: they are taken over, and not scored again.
    """
    assert job.contexts is not None, f"{job.bucket.rollouts} had scores when the plan was made"
    its = job.view.support
    columns = [*TOKEN_COLUMNS, *(["behaviour_topk_ids"] if its.behaviour else [])]
    others = [read_groups(other, SCORES, ("rollout_id", "support_ids", "skipped")) for other in job.asked]
    made_with = {**find_engine_libraries(job.identity["engine"]["engine"]), "model": job.model.name}
    scorer = _RowScorer(job.support, open_engine, known or KnownRows(SCORES, ()), progress)
    with Writer(path, SCORES, job.identity, made_with) as writer:
        start = 0
        for group in rollouts.read_groups(columns):
            contexts = job.contexts.of_rows(start, from_lists(group.column("prompt_ids")))
            asked = _collect_asked(group, [next(other) for other in others], its.ids)
            writer.write(scorer.score(group, contexts, asked))
            start += group.num_rows


@dataclass(frozen=True, eq=False)
class _Row:
    """A row to score: where it stands in its row group, its `SCORE_KEY`, and what the engine is asked for it."""

    position: int
    key: tuple[str, str]
    request: ScoreRequest


@dataclass(frozen=True)
class _RowScorer:
    """Scores row groups: rows that other shards have are taken over, the rest goes through the engine."""

    support: Support
    open_engine: Callable[[], Engine]
    known: KnownRows
    progress: Progress | None

    def score(
        self, group: pa.Table, contexts: Sequence[np.ndarray | str], asked: Sequence[np.ndarray] | None
    ) -> pa.Table:
        """The scores of one row group, in its order; a row without a context says why it has no score.

        Args:
            group: of rollouts.
            contexts: the ids before each response, or why there are none.
            asked: the ids [T, k] to score in each row besides the model's own; None where there are none.
        """
        ids, responses = group.column("rollout_id").to_pylist(), from_lists(group.column("response_ids"))
        rows, reasons = [], {}
        for place, context in enumerate(contexts):
            if isinstance(context, str):
                reasons[place] = context
                continue
            context_hash = hashing.digest(np.asarray(context, "<i4").tobytes())
            request = ScoreRequest(context, responses[place], None if asked is None else asked[place])
            rows.append(_Row(place, (ids[place], context_hash), request))
        taken, known = self._take_over(rows)
        missing = [row for row in rows if row.position not in taken]
        if self.progress is not None:
            self.progress(len(reasons) + len(taken), 0)
        skipped = make_skipped_table([ids[place] for place in reasons], list(reasons.values()))
        places = [row.position for row in missing]
        return put_in_order([(taken, known), (places, self._make(missing)), (list(reasons), skipped)])

    def _take_over(self, rows: Sequence[_Row]) -> tuple[list[int], pa.Table]:
        """The positions of the rows that another shard has, with the ids that are asked for, and these rows."""
        found = [row for row in rows if row.key in self.known]
        table = self.known.read([row.key for row in found])
        fitting = [at for at, row in enumerate(found) if _has_asked(table.slice(at, 1), row.request.asked_ids)]
        return [found[at].position for at in fitting], table.take(pa.array(fitting, pa.int64()))

    def _make(self, rows: Sequence[_Row]) -> pa.Table:
        if not rows:
            return make_skipped_table([], [])
        scores = self.open_engine().score([row.request for row in rows], self.support, self.progress)
        lengths = np.array([len(row.request.response_ids) for row in rows])
        rollout_ids, context_hashes = zip(*(row.key for row in rows), strict=True)
        return make_score_table(rollout_ids, lengths, scores, context_hashes)


def _has_asked(scored: pa.Table, asked: np.ndarray | None) -> bool:
    """Tell whether a row's entries besides the model's own are those asked for: another view's ids may have changed."""
    if asked is None:
        return True
    _, entries = from_nested_lists(scored.column("support_ids"))
    own = from_lists(scored.column("own")).values
    tokens = np.repeat(np.arange(len(entries)), entries.lengths)
    is_own = np.arange(len(tokens)) - entries.offsets[tokens] < own[tokens]
    keys = (tokens << 32) + entries.values
    wanted = ((np.arange(len(asked)) << 32)[:, None] + asked)[asked >= 0]
    return np.array_equal(np.setdiff1d(wanted, keys[is_own]), np.sort(keys[~is_own]))


def _collect_asked(
    group: pa.Table, others: Sequence[pa.Table], ids_everywhere: Sequence[int]
) -> list[np.ndarray] | None:
    """Collect each row's ids [T, k] to score besides the model's own, padded with −1; None where nothing is asked."""
    has_behaviour = "behaviour_topk_ids" in group.column_names
    if not others and not has_behaviour and not ids_everywhere:
        return None
    lengths = from_lists(group.column("response_ids")).lengths
    everywhere = np.array(ids_everywhere, np.int64)
    parts: list[list[np.ndarray]] = [[np.tile(everywhere, (length, 1))] for length in lengths]
    if has_behaviour:
        for row, ids in enumerate(_pad_rows(group.column("behaviour_topk_ids"))):
            parts[row].append(ids)
    for other in others:
        assert other.column("rollout_id") == group.column("rollout_id"), "views of one shard have its rows"
        scored = np.flatnonzero(other.column("skipped").is_null().to_numpy())
        for row, ids in zip(scored, _pad_rows(other.column("support_ids").take(pa.array(scored))), strict=True):
            parts[row].append(ids)
    return [np.concatenate(part, axis=1) for part in parts]


def _pad_rows(column: pa.ChunkedArray) -> list[np.ndarray]:
    """A list<list<int32>> column as one matrix for each row."""
    lengths, entries = from_nested_lists(column)
    is_entry = np.arange(entries.lengths.max(initial=0)) < entries.lengths[:, None]
    padded = np.full(is_entry.shape, -1, np.int64)
    padded[is_entry] = entries.values
    return np.split(padded, np.cumsum(lengths)[:-1])
