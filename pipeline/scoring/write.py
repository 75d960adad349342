"""From a shard of rollouts to a shard of what one view says of them, row group by row group."""

from collections.abc import Sequence
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
from pipeline.storage.ragged import from_lists, from_nested_lists
from pipeline.storage.rollouts import TOKEN_COLUMNS
from pipeline.storage.scores import SCORES, make_score_table, make_skipped_table
from pipeline.storage.shards import ShardReader, Writer, read_groups


def write_scores(
    path: Path,
    job: ScoreJob,
    engine: Engine,
    rollouts: ShardReader,
    progress: Progress | None = None,
) -> None:
    """Score one shard.

    Args:
        path: of the new file.
        job: what to score.
        engine: the job's model, open.
        rollouts: reads the job's rollouts, for other views too; its caller closes it.
        progress: told of scored responses.
    """
    assert job.contexts is not None, f"{job.bucket.rollouts} had scores when the plan was made"
    its = job.view.support
    columns = [*TOKEN_COLUMNS, *(["behaviour_topk_ids"] if its.behaviour else [])]
    others = [read_groups(other, SCORES, ("rollout_id", "support_ids", "skipped")) for other in job.asked]
    made_with = {**find_engine_libraries(job.identity["engine"]["engine"]), "model": job.model.name}
    with Writer(path, SCORES, job.identity, made_with) as writer:
        start = 0
        for group in rollouts.read_groups(columns):
            contexts = job.contexts.of_rows(start, from_lists(group.column("prompt_ids")))
            asked = _collect_asked(group, [next(other) for other in others], its.ids)
            writer.write(_score_group(group, _Wanted(contexts, asked, job.support), engine, progress))
            start += group.num_rows


@dataclass(frozen=True)
class _Wanted:
    """A row group's contexts (or why a row has none), the ids asked for at each token, and the own ids to keep."""

    contexts: Sequence[np.ndarray | str]
    asked: Sequence[np.ndarray] | None
    support: Support


def _score_group(group: pa.Table, wanted: _Wanted, engine: Engine, progress: Progress | None) -> pa.Table:
    """The scores of one row group; rows without a context keep their place."""
    ids = group.column("rollout_id").to_pylist()
    responses = from_lists(group.column("response_ids"))
    tables, here, skipped = [], [], []
    requests, hashes, reasons = [], [], []
    for row, context in enumerate(wanted.contexts):
        if isinstance(context, str):
            skipped.append(row)
            reasons.append(context)
            continue
        here.append(row)
        requests.append(ScoreRequest(context, responses[row], None if wanted.asked is None else wanted.asked[row]))
        hashes.append(hashing.digest(np.asarray(context, "<i4").tobytes()))
    if here:
        scores = engine.score(requests, wanted.support, progress)
        tables.append(make_score_table([ids[row] for row in here], responses.lengths[here], scores, hashes))
    if skipped:
        tables.append(make_skipped_table([ids[row] for row in skipped], reasons))
        if progress is not None:
            progress(len(skipped), 0)
    order = np.argsort([*here, *skipped], kind="stable")
    return pa.concat_tables(tables).take(pa.array(order))


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
