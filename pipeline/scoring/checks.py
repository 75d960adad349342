"""Checks of a plan before a model loads: of what would cost GPU hours to find out, or never be found."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.engines.engine import check_top_k, find_context_limit
from pipeline.errors import EngineError, SettingsError, ShardError
from pipeline.models.lineage import check_teacher, name_teacher, parse_teacher
from pipeline.models.record import Model
from pipeline.scoring.plan import PlannedBucket, ScoreJob, ScorePlan
from pipeline.settings import params
from pipeline.settings.views import Plain, View
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.shards import read_shard

log = logging.getLogger("score")


def check_views(settings: params.Score, models: Mapping[str, Model]) -> None:
    """Compare the views with their models and with each other; no file is read.

    Raises:
        SettingsError: a view asks for an id that its model does not have, or is the reference of the very model and
            context that it is.
        EngineError: a view asks for more ids than its model has.
    """
    for name, view in settings.views.items():
        _check_ids(name, view, models[name])
    _check_references(settings.views, models)


def check_plan(plan: ScorePlan, settings: params.Score) -> None:
    """Check that every view has rows to score, and that its model takes each of them with its context.

    Raises:
        SettingsError: a domain that a view names does not occur.
        ShardError: a view has no row to score.
        EngineError: a context and its response are together longer than the model takes.
    """
    for name, jobs in plan.views.items():
        check_rows(name, jobs, plan.buckets)
    for name, jobs in plan.views.items():
        missing = [job for job in jobs if job.contexts is not None]
        limit = find_context_limit(missing[0].model, settings) if missing else None
        for job in missing:
            check_lengths(name, job, limit)


def check_writers(settings: params.Score, models: Mapping[str, Model], buckets: Sequence[PlannedBucket]) -> None:
    """Compare the views that a student learns from with who wrote the rollouts.

    Raises:
        SettingsError: a view would teach the student what it is.
        ConsistencyError: a target's model is not the teacher of the SFT data.
    """
    writers = {bucket.about["identity"]["model"]["weights"] for bucket in buckets}
    for name, view in settings.views.items():
        model = models[name]
        if not view.target:
            continue
        if isinstance(view.context, Plain) and (view.model == "student" or model.weights_hash in writers):
            raise SettingsError(
                f"score.views.{name}: {model.name} is the student itself on the plain prompt: it has nothing to teach. "
                "Give the view a context that the student does not see, or another model; or, where it is a reference, "
                "say `target: false`."
            )
        if view.model != "student":
            scorer = name_teacher(model.name, model.weights_hash)
            for each in buckets:
                where = str(each.bucket.rollouts)
                check_teacher(parse_teacher(each.about), scorer, where, settings.allow_sft_teacher, "score")


def check_rows(name: str, jobs: Sequence[ScoreJob], buckets: Sequence[PlannedBucket]) -> None:
    """Count the rows that a view has no score for, and tell.

    Args:
        name: of the view.
        jobs: of the view.
        buckets: what is scored.

    Raises:
        SettingsError: a domain that is named does not occur.
        ShardError: no row would be scored.
    """
    view, rows = jobs[0].view, sum(len(job.response_lengths) for job in jobs)
    known = {domain for bucket in buckets for domain in bucket.domains}
    if unknown := sorted(set(view.domains) - known):
        raise SettingsError(
            f"score.views.{name}.domains names {', '.join(unknown)}; the prompts' domains are "
            f"{', '.join(sorted(known))} (prompts.sources)."
        )
    reasons = sum((Counter(job.skipped) for job in jobs), Counter())
    listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    if reasons and reasons.total() == rows:
        raise ShardError(
            f"score.views.{name}: none of the {rows} responses in {jobs[0].bucket.rollouts.parent} can be scored "
            f"({listed}). Give the prompts or the grades what `context: {view.context.kind}` shows "
            "(prompts.sources.*.fields, grade.grader), or remove the view."
        )
    if reasons:
        log.info("view %s: %d of %d responses have no score: %s", name, reasons.total(), rows, listed)


def check_lengths(name: str, job: ScoreJob, limit: int | None) -> None:
    """Refuse a shard with a context and a response that are together longer than the model takes.

    Args:
        name: of the view.
        job: with its contexts.
        limit: tokens; None where the model states none.

    Raises:
        EngineError: names the row, its lengths and the limit.
    """
    if limit is None or job.contexts is None:
        return
    contexts, responses = job.contexts.lengths, job.response_lengths
    too_long = np.flatnonzero((contexts > 0) & (contexts + responses > limit))
    if not len(too_long):
        return
    row, rollouts = int(too_long[0]), job.bucket.rollouts
    rollout_id = read_shard(rollouts, ROLLOUTS, ["rollout_id"]).column("rollout_id")[row].as_py()
    raise EngineError(
        f"score.views.{name}: response {rollout_id} in {rollouts} has {responses[row]} tokens, the "
        f"`{job.view.context.kind}` context before it {contexts[row]}: together {contexts[row] + responses[row]}, and "
        f"{job.model.name} takes {limit}. Show less (score.views.{name}.context), write shorter responses "
        "(refresh.sampling.max_tokens), or leave long prompts out of prompts.sources."
    )


def _check_ids(name: str, view: View, model: Model) -> None:
    check_top_k(view.support.top_k or 0, model, f"score.views.{name}.support.top_k")
    highest = max(view.support.ids, default=0)
    if highest >= model.tokens:
        raise SettingsError(
            f"score.views.{name}.support.ids has {highest}; the token ids of {model.name} go from 0 to "
            f"{model.tokens - 1}. Leave it out."
        )


def _check_references(views: Mapping[str, View], models: Mapping[str, Model]) -> None:
    """A log-ratio between a target and its reference is 0 everywhere where both are one model in one context."""
    targets = [name for name, view in views.items() if view.target]
    for name, view in views.items():
        for target in targets:
            same_model = models[name].weights_hash == models[target].weights_hash
            if not view.target and same_model and view.context == views[target].context:
                raise SettingsError(
                    f"score.views.{name} (`target: false`) and score.views.{target} are one model in one context "
                    f"({models[name].name}): as a reference it would differ from its target nowhere. Name another "
                    f"model or context; or leave `target` out, if {name} is the target at other ids."
                )
