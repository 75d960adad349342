"""Scoring: from a shard of rollouts to a shard of what one view says of them, row group by row group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import models, params, rollouts, shards
from pipeline.engines import Engine, Progress, Scored, Support
from pipeline.made_with import versions
from pipeline.prompts import Prompt, load

VERSION = 1  # raise it when a score would change; older shards are then scored again

READ = ("rollout_id", "prompt_ids", "response_ids")
"""Of a shard of rollouts, what every view reads."""


@dataclass(frozen=True)
class Job:
    """One view of one shard of rollouts.

    Attributes:
        rollouts: the shard.
        prompts: of the same bucket; read for the `hint` context alone.
        view: its settings.
        model: that scores.
        asked: score shards of other views whose ids are scored too.
    """

    rollouts: Path
    prompts: Path
    view: params.View
    model: models.Model
    asked: tuple[Path, ...] = ()

    @property
    def needs_prompts(self) -> bool:
        """Whether the context is made from the prompt, not taken from the rollout."""
        return self.view.context != "plain"


def identity(job: Job, settings: params.Score, tail: str) -> dict[str, Any]:
    """Everything that decides what a shard of scores holds."""
    from pipeline import head  # brings torch, for which `--help` need not wait

    view = job.view
    behaviour = ("behaviour_topk_ids",) if view.support.behaviour else ()
    context: dict[str, Any] = {"kind": view.context}
    if job.needs_prompts:
        context |= {
            "template": view.hint_template,
            "tokenizer": job.model.identity["tokenizer"],
            "chat_template": job.model.identity["chat_template"],
            "prompts": shards.content(job.prompts, shards.PROMPTS, ("prompt_id", "messages", "hint")),
        }
    support = view.support.model_dump(include={"top_k", "mass", "min_k"})
    return {
        "stage": "score",
        "version": [VERSION, head.VERSION],
        "format": shards.VERSION,
        "model": {"weights": job.model.weights},
        "engine": rollouts.engine_identity(settings),
        "tail": tail,
        "entropies": settings.entropies and tail == "exact",
        "context": context,
        "support": support,
        "asked": [shards.content(path, shards.SCORES, ("support_ids", "own")) for path in job.asked],
        "rollouts": shards.content(job.rollouts, shards.ROLLOUTS, READ + behaviour),
    }


def write(path: Path, identity: Mapping[str, Any], job: Job, engine: Engine, progress: Progress | None = None) -> None:
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
    prompts = {prompt.prompt_id: prompt for prompt in load(job.prompts)} if job.needs_prompts else {}
    tokenizer = job.model.load_tokenizer() if job.needs_prompts else None
    columns = [*READ, "prompt_id", *(["behaviour_topk_ids"] if job.view.support.behaviour else [])]
    asked = [
        shards.groups(other, shards.SCORES, ("rollout_id", "support_ids", "own", "skipped")) for other in job.asked
    ]
    made_with = {**versions(*rollouts.LIBRARIES[identity["engine"]["engine"]]), "model": job.model.name}
    with shards.Writer(path, shards.SCORES, dict(identity), made_with) as writer:
        for group in shards.groups(job.rollouts, shards.ROLLOUTS, columns):
            contexts = [_context(job, tokenizer, prompts.get(row), ids) for row, ids in _rows(group)]
            writer.write(_score(group, contexts, [next(other) for other in asked], engine, support, progress))


def _rows(group: pa.Table) -> list[tuple[str, np.ndarray]]:
    return list(zip(group.column("prompt_id").to_pylist(), shards.ragged(group.column("prompt_ids")), strict=True))


def _context(job: Job, tokenizer: Any, prompt: Prompt | None, prompt_ids: np.ndarray) -> np.ndarray | str:
    """The ids that the model sees before the response, or why there are none."""
    if job.view.context == "plain":
        return prompt_ids
    assert prompt is not None, "rollouts and prompts of one bucket go together"
    if prompt.hint is None:
        return "no hint"
    *before, last = prompt.messages
    told = {**last, "content": job.view.hint_template.format(prompt=last["content"], hint=prompt.hint)}
    return np.array(models.render(tokenizer, [*before, told]), np.int32)


def _score(
    group: pa.Table,
    contexts: Sequence[np.ndarray | str],
    asked: Sequence[pa.Table],
    engine: Engine,
    support: Support,
    progress: Progress | None,
) -> pa.Table:
    """The scores of one row group; rows without a context keep their place."""
    ids = group.column("rollout_id").to_pylist()
    responses = shards.ragged(group.column("response_ids"))
    wanted = _asked(group, asked)
    here = [row for row, context in enumerate(contexts) if not isinstance(context, str)]
    tables = []
    if here:
        sequences = [Scored(contexts[row], responses[row], None if wanted is None else wanted[row]) for row in here]  # pyright: ignore[reportArgumentType]
        scores = engine.score(sequences, support, progress)
        hashes = [shards.digest(np.asarray(contexts[row], "<i4").tobytes()) for row in here]
        tables.append(shards.score_table([ids[row] for row in here], responses.lengths[here], scores, hashes))
    skipped = [row for row in range(len(ids)) if isinstance(contexts[row], str)]
    if skipped:
        tables.append(shards.skipped_table([ids[row] for row in skipped], [str(contexts[row]) for row in skipped]))
        if progress is not None:
            progress(len(skipped), 0)
    order = np.argsort([*here, *skipped], kind="stable")
    return pa.concat_tables(tables).take(pa.array(order))


def _asked(group: pa.Table, others: Sequence[pa.Table]) -> list[np.ndarray] | None:
    """For each row the ids [T, k] to score besides the model's own, padded with −1; None where nothing is asked."""
    lengths = shards.ragged(group.column("response_ids")).lengths
    parts: list[list[np.ndarray]] = [[np.empty((length, 0), np.int64)] for length in lengths]
    has_behaviour = "behaviour_topk_ids" in group.column_names
    if has_behaviour:
        for row, ids in enumerate(_padded(group.column("behaviour_topk_ids"))):
            parts[row].append(ids)
    for other in others:
        assert other.column("rollout_id") == group.column("rollout_id"), "views of one shard have its rows"
        scored = np.flatnonzero(other.column("skipped").is_null().to_numpy())
        for row, ids in zip(scored, _padded(other.column("support_ids").take(pa.array(scored))), strict=True):
            parts[row].append(ids)
    if not others and not has_behaviour:
        return None
    return [np.concatenate(part, axis=1) for part in parts]


def _padded(column: pa.ChunkedArray) -> list[np.ndarray]:
    """A list<list<int32>> column as one matrix for each row."""
    lengths, entries = shards.ragged2(column)
    is_entry = np.arange(entries.lengths.max(initial=0)) < entries.lengths[:, None]
    padded = np.full(is_entry.shape, -1, np.int64)
    padded[is_entry] = entries.values
    return np.split(padded, np.cumsum(lengths)[:-1])
