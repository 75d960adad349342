"""The plan of a score stage: made once, then checked, then carried out.

Planning opens each shard once, renders each context once and hashes each identity once. A plan holds no open file and
can be pickled, so that another process can carry it out. It keeps lengths of rows; their contexts (int32 ids, each
once) only if the store lacks the scores and they differ from the prompts: 4 bytes a token, until the stage ends.

Views that ask for each other's ids (`same_as`) take two passes. In the first each view finds its own ids; a job of the
second is complete once these are there, because its identity names what they hold.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import head, scoring
from pipeline.engines.engine import EngineUse
from pipeline.engines.identity import identify_engine, name_tail
from pipeline.head.support import Support
from pipeline.models.record import Model
from pipeline.scoring.contexts import (
    RowContext,
    ShardContexts,
    count_skipped,
    describe_rows,
    identify_context,
    render_contexts,
)
from pipeline.scoring.reading import BucketRows, read_bucket
from pipeline.settings import params
from pipeline.settings.views import View
from pipeline.storage import hashing
from pipeline.storage import scores as scores_format
from pipeline.storage.bucket import Bucket
from pipeline.storage.rollouts import TOKEN_COLUMNS
from pipeline.storage.scores import SCORES
from pipeline.storage.store import Store


@dataclass(frozen=True, eq=False)
class ScoreJob:
    """One shard of rollouts to be scored by one view: all that writing the scores needs, but for the open model.

    Attributes:
        bucket: the shards.
        view: its settings.
        model: that scores.
        identity: everything that decides what the shard of scores holds.
        fingerprint: of the identity; None while that lacks what the first passes find.
        response_lengths: int32 [rows], tokens.
        skipped: how many rows have no context, by reason.
        contexts: of the rows; None where the store had the scores when the plan was made.
        asked: score shards of other views, whose ids are scored too.
    """

    bucket: Bucket
    view: View
    model: Model
    identity: dict[str, Any]
    fingerprint: str | None
    response_lengths: np.ndarray
    skipped: Mapping[str, int]
    contexts: ShardContexts | None = None
    asked: tuple[Path, ...] = ()

    @property
    def support(self) -> Support:
        """Which of the model's own ids are kept."""
        its = self.view.support
        return Support(its.top_k or 0, its.mass, its.min_k, bool(self.identity["entropies"]))


@dataclass(frozen=True)
class PlannedBucket:
    """A bucket as the checks need it.

    Attributes:
        bucket: the shards.
        about: the footer of the rollouts: `identity` and `made_with`.
        domains: of its prompts; empty where no view reads them.
    """

    bucket: Bucket
    about: Mapping[str, Any]
    domains: frozenset[str]


@dataclass(frozen=True)
class ScorePlan:
    """All jobs of a score stage, by view; those of a view are in the order of the buckets.

    Attributes:
        buckets: what is scored.
        views: the jobs of each view; with `same_as` to be completed by `complete_job`.
        first_passes: of each view that another asks for its ids, the jobs that find them.
    """

    buckets: tuple[PlannedBucket, ...]
    views: dict[str, tuple[ScoreJob, ...]]
    first_passes: Mapping[str, tuple[ScoreJob, ...]]


def plan_scores(
    settings: params.Score,
    models: Mapping[str, Model],
    names: Sequence[str],
    buckets: Iterable[Bucket],
    store: Store | None = None,
) -> ScorePlan:
    """Plan the score stage, bucket by bucket.

    Args:
        settings: with the views.
        models: of every view.
        names: of the views that score these rollouts.
        buckets: the rollouts, and what their contexts are made from.
        store: whose finished shards need no contexts; None where there are none.

    Raises:
        ShardError: a shard is missing, damaged, or not of the same rows as the rollouts.
    """
    views = {name: settings.views[name] for name in names}
    asked = dict.fromkeys(other for view in views.values() for other in view.support.same_as)
    first = {name: _without_others(settings.views[name]) for name in asked}
    jobs: dict[str, list[ScoreJob]] = {name: [] for name in views}
    first_jobs: dict[str, list[ScoreJob]] = {name: [] for name in first}
    planned = []
    for bucket in buckets:
        rows = read_bucket(bucket, [*views.values(), *first.values()])
        planner = _BucketPlanner(settings, rows, store)
        for name, view in views.items():
            jobs[name].append(planner.plan_job(view, models[name]))
        for name, view in first.items():
            is_planned = views.get(name) == view
            first_jobs[name].append(jobs[name][-1] if is_planned else planner.plan_job(view, models[name]))
        domains = frozenset(prompt.domain for prompt in rows.prompts.values())
        planned.append(PlannedBucket(bucket, rows.about, domains))
    return ScorePlan(tuple(planned), _freeze(jobs), _freeze(first_jobs))


def complete_job(job: ScoreJob, asked: Sequence[Path]) -> ScoreJob:
    """Complete a job whose view asks for other views' ids.

    Args:
        job: as the plan has it.
        asked: the first passes of the same bucket, in the order of `same_as`; their ids are hashed.
    """
    if not asked:
        return job
    hashes = [hashing.hash_columns(path, SCORES, ("support_ids", "own")) for path in asked]
    identity = job.identity | {"rows": job.identity["rows"] | {"asked": hashes}}
    return replace(job, asked=tuple(asked), identity=identity, fingerprint=hashing.fingerprint(identity))


def choose_use(settings: params.Score) -> EngineUse:
    """Say what the stage opens an engine for."""
    largest = max(view.support.top_k or 0 for view in settings.views.values())
    return EngineUse("hidden_states" if settings.hidden_states else "prompt_logprobs", largest)


def identify_scores(rows: BucketRows, view: View, model: Model, settings: params.Score) -> dict[str, Any]:
    """Say everything that decides what a shard of scores holds, but for the ids that other views keep.

    Of these facts `rows` picks the rows and what they see, which each row tells of itself by its `context_hash`.
    """
    behaviour = ("behaviour_topk_ids",) if view.support.behaviour else ()
    support = view.support.model_dump(include={"top_k", "mass", "min_k"})
    if view.support.ids:
        support["ids"] = sorted(view.support.ids)
    tail = name_tail(settings.engine, choose_use(settings))
    return {
        "stage": "score",
        "version": [scoring.VERSION, head.VERSION],
        "format": scores_format.VERSION,
        "model": {"weights": model.weights_hash},
        "engine": identify_engine(settings),
        "tail": tail,
        "entropies": settings.entropies and tail == "exact",
        "support": support,
        "asks": {"views": len(view.support.same_as), "behaviour": view.support.behaviour},
        "rows": {
            "rollouts": rows.hashes["rollouts"].join(TOKEN_COLUMNS + behaviour),
            "context": identify_context(rows, view, model),
            "asked": [],
        },
    }


class _BucketPlanner:
    """Makes the jobs of one bucket; views with one context and one model share what was rendered."""

    def __init__(self, settings: params.Score, rows: BucketRows, store: Store | None):
        self._settings, self._rows, self._store = settings, rows, store
        self._contexts: dict[Any, ShardContexts] = {}

    def plan_job(self, view: View, model: Model) -> ScoreJob:
        """Plan one view of the bucket; contexts are made only where the store may lack its scores."""
        rows = self._rows
        row_contexts = describe_rows(rows, view)
        identity = identify_scores(rows, view, model, self._settings)
        # What another view's ids add to the identity is not known yet.
        fingerprint = None if view.support.same_as else hashing.fingerprint(identity)
        store = self._store
        is_found = fingerprint is not None and store is not None and store.has(identity, fingerprint=fingerprint)
        contexts = None if is_found else self._render(view, model, row_contexts)
        lengths, skipped = rows.response_lengths, count_skipped(row_contexts)
        return ScoreJob(rows.bucket, view, model, identity, fingerprint, lengths, skipped, contexts)

    def _render(self, view: View, model: Model, row_contexts: Sequence[RowContext]) -> ShardContexts:
        key = view.context, view.domains, model
        if key not in self._contexts:
            self._contexts[key] = render_contexts(self._rows, view, model, row_contexts)
        return self._contexts[key]


def _without_others(view: View) -> View:
    """Take other views' ids out of a view's support: two views may ask for each other's."""
    return view.model_copy(update={"support": view.support.model_copy(update={"same_as": (), "behaviour": False})})


def _freeze(jobs: Mapping[str, list[ScoreJob]]) -> dict[str, tuple[ScoreJob, ...]]:
    return {name: tuple(of_view) for name, of_view in jobs.items()}
