"""Scoring: from a shard of rollouts to a shard of what one view says of them, row group by row group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.engines.engine import Engine, Support, ToScore
from pipeline.engines.identity import engine_libraries, identify_engine
from pipeline.models.record import Model
from pipeline.progress import Progress
from pipeline.scoring.contexts import Contexts, identify_context
from pipeline.settings import params
from pipeline.settings.views import View
from pipeline.storage import hashing
from pipeline.storage import scores as scores_format
from pipeline.storage.bucket import Bucket
from pipeline.storage.ragged import from_lists, from_nested_lists
from pipeline.storage.rollouts import ROLLOUTS, TOKEN_COLUMNS
from pipeline.storage.scores import SCORES, score_table, skipped_table
from pipeline.storage.shards import Writer, read_groups

VERSION = 1  # raise it when a score would change; older shards are then scored again


@dataclass(frozen=True)
class Job:
    """One view of one shard of rollouts.

    Attributes:
        bucket: the shard, and what its contexts are made from.
        view: its settings.
        model: that scores.
        asked: score shards of other views whose ids are scored too.
    """

    bucket: Bucket
    view: View
    model: Model
    asked: tuple[Path, ...] = ()


def identify_scores(job: Job, settings: params.Score, tail: str) -> dict[str, Any]:
    """Everything that decides what a shard of scores holds."""
    from pipeline import head  # brings torch, for which `--help` need not wait

    behaviour = ("behaviour_topk_ids",) if job.view.support.behaviour else ()
    support = job.view.support.model_dump(include={"top_k", "mass", "min_k"})
    if job.view.support.ids:
        support["ids"] = sorted(job.view.support.ids)
    return {
        "stage": "score",
        "version": [VERSION, head.VERSION],
        "format": scores_format.VERSION,
        "model": {"weights": job.model.weights_hash},
        "engine": identify_engine(settings),
        "tail": tail,
        "entropies": settings.entropies and tail == "exact",
        "context": identify_context(job.bucket, job.view, job.model),
        "support": support,
        "asked": [hashing.hash_columns(path, SCORES, ("support_ids", "own")) for path in job.asked],
        "rollouts": hashing.hash_columns(job.bucket.rollouts, ROLLOUTS, TOKEN_COLUMNS + behaviour),
    }


def write_scores(
    path: Path, identity: Mapping[str, Any], job: Job, engine: Engine, progress: Progress | None = None
) -> None:
    """Score one shard.

    Args:
        path: of the new file.
        identity: as `identity` gives it.
        job: what to score.
        engine: the view's model, open.
        progress: told of scored responses.
    """
    support = Support(
        job.view.support.top_k or 0, job.view.support.mass, job.view.support.min_k, bool(identity["entropies"])
    )
    columns = [*TOKEN_COLUMNS, *(["behaviour_topk_ids"] if job.view.support.behaviour else [])]
    asked = [read_groups(other, SCORES, ("rollout_id", "support_ids", "own", "skipped")) for other in job.asked]
    made_with = {**engine_libraries(identity["engine"]["engine"]), "model": job.model.name}
    with Writer(path, SCORES, dict(identity), made_with) as writer:
        told = Contexts(job.bucket, job.view, job.model)
        for group in read_groups(job.bucket.rollouts, ROLLOUTS, columns):
            wanted = _asked(group, [next(other) for other in asked], job.view.support.ids)
            writer.write(_score(group, told.of(group), wanted, engine, support, progress))


def _score(
    group: pa.Table,
    before: Sequence[np.ndarray | str],
    wanted: Sequence[np.ndarray] | None,
    engine: Engine,
    support: Support,
    progress: Progress | None,
) -> pa.Table:
    """The scores of one row group; rows without a context keep their place."""
    ids = group.column("rollout_id").to_pylist()
    responses = from_lists(group.column("response_ids"))
    here = [row for row, context in enumerate(before) if not isinstance(context, str)]
    tables = []
    if here:
        sequences = [ToScore(before[row], responses[row], None if wanted is None else wanted[row]) for row in here]  # pyright: ignore[reportArgumentType]
        scores = engine.score(sequences, support, progress)
        hashes = [hashing.digest(np.asarray(before[row], "<i4").tobytes()) for row in here]
        tables.append(score_table([ids[row] for row in here], responses.lengths[here], scores, hashes))
    skipped = [row for row in range(len(ids)) if isinstance(before[row], str)]
    if skipped:
        tables.append(skipped_table([ids[row] for row in skipped], [str(before[row]) for row in skipped]))
        if progress is not None:
            progress(len(skipped), 0)
    order = np.argsort([*here, *skipped], kind="stable")
    return pa.concat_tables(tables).take(pa.array(order))


def _asked(group: pa.Table, others: Sequence[pa.Table], ids_everywhere: Sequence[int]) -> list[np.ndarray] | None:
    """For each row the ids [T, k] to score besides the model's own, padded with −1; None where nothing is asked."""
    lengths = from_lists(group.column("response_ids")).lengths
    everywhere = np.array(ids_everywhere, np.int64)
    parts: list[list[np.ndarray]] = [[np.tile(everywhere, (length, 1))] for length in lengths]
    has_behaviour = "behaviour_topk_ids" in group.column_names
    if has_behaviour:
        for row, ids in enumerate(_padded(group.column("behaviour_topk_ids"))):
            parts[row].append(ids)
    for other in others:
        assert other.column("rollout_id") == group.column("rollout_id"), "views of one shard have its rows"
        scored = np.flatnonzero(other.column("skipped").is_null().to_numpy())
        for row, ids in zip(scored, _padded(other.column("support_ids").take(pa.array(scored))), strict=True):
            parts[row].append(ids)
    if not others and not has_behaviour and not ids_everywhere:
        return None
    return [np.concatenate(part, axis=1) for part in parts]


def _padded(column: pa.ChunkedArray) -> list[np.ndarray]:
    """A list<list<int32>> column as one matrix for each row."""
    lengths, entries = from_nested_lists(column)
    is_entry = np.arange(entries.lengths.max(initial=0)) < entries.lengths[:, None]
    padded = np.full(is_entry.shape, -1, np.int64)
    padded[is_entry] = entries.values
    return np.split(padded, np.cumsum(lengths)[:-1])
