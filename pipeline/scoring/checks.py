"""What of a view is refused before a model loads: what it would cost GPU hours to find out, or never be found."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import EngineError, SettingsError, ShardError
from pipeline.models.lineage import check_teacher, name_teacher, read_rollouts_teacher
from pipeline.models.record import Model
from pipeline.scoring.contexts import Contexts, describe_rows
from pipeline.settings import params
from pipeline.settings.views import Plain, View
from pipeline.storage.bucket import Bucket, require_path
from pipeline.storage.prompts import PROMPTS
from pipeline.storage.ragged import from_lists
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.shards import read_about, read_groups, read_shard

log = logging.getLogger("score")


def check_models(settings: params.Score, by_view: Mapping[str, Model], rollouts: Sequence[Path]) -> None:
    """Compare the views with their models, with each other, and with who wrote the rollouts.

    Args:
        settings: with the views.
        by_view: each view's model.
        rollouts: the shards that are scored; their footers are read.

    Raises:
        SettingsError: a view asks for ids that its model does not have, or would teach the student what it is, or is
            the reference of the very model and context that it is.
        ConsistencyError: a target's model is not the teacher of the SFT data.
    """
    writers = {read_about(path)["identity"]["model"]["weights"] for path in rollouts}
    for name, view in settings.views.items():
        model = by_view[name]
        _check_ids(name, view, model)
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
            for path in rollouts:
                check_teacher(read_rollouts_teacher(path), scorer, str(path), settings.allow_sft_teacher, "score")
    _check_references(settings.views, by_view)


def check_rows(name: str, view: View, buckets: Sequence[Bucket]) -> None:
    """Count the rows that a view has no score for, and tell.

    Raises:
        SettingsError: a domain that is named does not occur.
        ShardError: no row would be scored.
    """
    if view.domains:
        known = {domain for bucket in buckets for domain in _domains(require_path(bucket.prompts))}
        if unknown := sorted(set(view.domains) - known):
            raise SettingsError(
                f"score.views.{name}.domains names {', '.join(unknown)}; the prompts' domains are "
                f"{', '.join(sorted(known))} (prompts.sources)."
            )
    told = [row for bucket in buckets for row in describe_rows(bucket, view)]
    reasons = Counter(row.skipped for row in told if row.skipped is not None)
    listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    if told and reasons.total() == len(told):
        raise ShardError(
            f"score.views.{name}: none of the {len(told)} responses in {buckets[0].rollouts.parent} can be scored "
            f"({listed}). Give the prompts or the grades what `context: {view.context.kind}` shows "
            "(prompts.sources.*.fields, grade.grader), or remove the view."
        )
    if reasons:
        log.info("view %s: %d of %d responses have no score: %s", name, reasons.total(), len(told), listed)


def check_lengths(name: str, view: View, model: Model, bucket: Bucket, limit: int | None) -> None:
    """Refuse a shard with a context and a response that are together longer than the model's context.

    Args:
        name: of the view.
        view: whose contexts are made.
        model: that scores.
        bucket: with the shard.
        limit: tokens; None where the model states none.

    Raises:
        EngineError: names the row, its lengths and the limit.
    """
    if limit is None:
        return
    made = Contexts(bucket, view, model)
    for group in read_groups(bucket.rollouts, ROLLOUTS, ("rollout_id", "prompt_ids", "response_ids")):
        responses = from_lists(group.column("response_ids")).lengths
        ids = group.column("rollout_id").to_pylist()
        for rollout_id, context, response in zip(ids, made.of(group), responses, strict=True):
            if not isinstance(context, str) and len(context) + response > limit:
                raise EngineError(
                    f"score.views.{name}: response {rollout_id} in {bucket.rollouts} has {response} tokens, the "
                    f"`{view.context.kind}` context before it {len(context)}: together {len(context) + response}, and "
                    f"{model.name} takes {limit}. Show less (score.views.{name}.context), write shorter responses "
                    "(refresh.sampling.max_tokens), or leave long prompts out of prompts.sources."
                )


def _check_ids(name: str, view: View, model: Model) -> None:
    top_k, highest = view.support.top_k or 0, max(view.support.ids, default=0)
    if top_k > model.vocabulary:
        raise SettingsError(
            f"score.views.{name}.support.top_k is {top_k}, {model.name} has {model.vocabulary} token ids. Lower it."
        )
    if highest >= model.vocabulary:
        raise SettingsError(
            f"score.views.{name}.support.ids has {highest}; the token ids of {model.name} go from 0 to "
            f"{model.vocabulary - 1}. Leave it out."
        )


def _check_references(views: Mapping[str, View], by_view: Mapping[str, Model]) -> None:
    """A log-ratio between a target and its reference is 0 everywhere where both are one model in one context."""
    targets = [name for name, view in views.items() if view.target]
    for name, view in views.items():
        for target in targets:
            same_model = by_view[name].weights_hash == by_view[target].weights_hash
            if not view.target and same_model and view.context == views[target].context:
                raise SettingsError(
                    f"score.views.{name} (`target: false`) and score.views.{target} are one model in one context "
                    f"({by_view[name].name}): as a reference it would differ from its target nowhere. Name another "
                    f"model or context; or leave `target` out, if {name} is the target at other ids."
                )


def _domains(prompts: Path) -> set[str]:
    return set(read_shard(prompts, PROMPTS, ["domain"]).column("domain").to_pylist())
