"""What a recipe needs of shards, checked from headers and short columns before a model loads.

Every refusal names the file, the setting that would make what is missing, and the stage to run again.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import SettingsError, ShardError
from pipeline.objectives.diagnostics import FAR, describe_far, is_led_by_far_tokens
from pipeline.settings.models import Sampling, Training
from pipeline.settings.recipe import Recipe
from pipeline.storage.bucket import Bucket
from pipeline.storage.grades import read_grades
from pipeline.storage.ragged import from_lists
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.scores import SCORES
from pipeline.storage.shards import count_group_rows, read_about, read_shard
from pipeline.training.facts import read_domains
from pipeline.training.preference_pairs import find_partners

log = logging.getLogger("train")


def check_requirements(recipe: Recipe, sources: Sequence[Bucket], settings: Training) -> None:
    """Refuse shards that lack what the recipe reads; warn of what is known to fail on such shards.

    Args:
        recipe: the objective.
        sources: the shards to train on; every view of the recipe is there.
        settings: of training, for the passes over the rows.

    Raises:
        ShardError: a shard lacks a column, or has one that cannot be used so.
        SettingsError: the steps go over the rows more often than an objective bears, or half a pair is left over.
    """
    for source in sources:
        for view, path in source.scores.items():
            _check_scores(recipe, view, path)
        if source.source == "student":
            _check_rollouts(recipe, source)
            _check_domains(recipe, source)
    for name in sorted({source.source for source in sources}):
        _check_grades(recipe, [source for source in sources if source.source == name])
    _check_passes(recipe, sources, settings)
    _check_pairs(recipe, sources, settings)
    students = [source for source in sources if source.source == "student"]
    if students:
        _warn_of_fewer_ids(recipe, students[0])
        _warn_of_far_tokens(recipe, students)


def _check_scores(recipe: Recipe, view: str, path: Path) -> None:
    identity = read_about(path)["identity"]
    support = identity["support"]
    if view in recipe.exact_views and identity["tail"] != "exact":
        raise ShardError(
            f"{path} has {identity['tail']} tails, good to 5e-5 in probability but not in nats; train.objective "
            f"`{recipe.name}` reads them as numbers. Set `score.hidden_states: true` (or `score.engine: hf`) and run "
            "`dvc repro score`."
        )
    if view in recipe.entropy_views and not identity["entropies"]:
        raise _lacks(recipe, path, "has no entropies", "score.entropies: true", "score")
    if view in recipe.own_views and not support["top_k"]:
        raise _lacks(recipe, path, "keeps no ids of its own", f"score.views.{view}.support.top_k", "score")
    if view in recipe.fixed_k_views and support["mass"] is not None:
        told = f"is cut to a mass of {support['mass']}, so its tokens keep different numbers of ids"
        raise _lacks(recipe, path, told, f"score.views.{view}.support.mass: null", "score")
    renormalises = any(term.tail == "renormalise" and view in term.views for term in recipe.terms)
    if renormalises and support["top_k"] == 1 and not identity["rows"]["asked"]:
        told = "keeps one id, whose renormalised probability is 1 whatever the student says"
        raise _lacks(recipe, path, told, f"score.views.{view}.support.top_k: 2 (or more)", "score")


def _check_rollouts(recipe: Recipe, source: Bucket) -> None:
    identity: dict[str, Any] = read_about(source.rollouts)["identity"]
    if "sampling_logprobs" in recipe.reads and not Sampling.model_validate(identity["sampling"]).is_whole:
        column = read_shard(source.rollouts, ROLLOUTS, ["sampling_logprobs"]).column("sampling_logprobs")
        if column.null_count:
            told = "was not sampled from the whole distribution and has rows without sampling_logprobs, for the ratio"
            raise _lacks(recipe, source.rollouts, told, "refresh.sampling: {temperature: 1.0, top_p: 1.0}", "refresh")
    needs_groups = any(spec.needs_groups for spec in recipe.derived.values())
    if needs_groups and identity["rows"]["samples"] < 2:
        raise _lacks(recipe, source.rollouts, "has one response to each prompt", "refresh.samples: 4", "refresh")


def _check_domains(recipe: Recipe, source: Bucket) -> None:
    """Refuse a prompt whose domain has no view, or one that lacks a score of its rows."""
    routes = [term.target.by_domain for term in recipe.terms if term.target is not None and term.target.by_domain]
    if not routes or source.prompts is None:
        return
    of_row = read_domains(source).tolist()
    for view_of in routes:
        if unknown := sorted(set(of_row) - set(view_of)):
            raise ShardError(
                f"{source.prompts} has prompts of {', '.join(unknown)}, for which train.objective `{recipe.name}` "
                f"routes to no view: it knows {', '.join(view_of)}. Write the recipe out with a view for each."
            )
        for domain, view in view_of.items():
            skipped = read_shard(source.scores[view], SCORES, ["skipped"]).column("skipped").to_pylist()
            lost = {reason for reason, of in zip(skipped, of_row, strict=True) if of == domain and reason is not None}
            if lost:
                what = f"has rows of domain `{domain}` without a score ({', '.join(sorted(lost))})"
                setting = f"score.views.{view}.domains: [{domain}] (or none)"
                raise _lacks(recipe, source.scores[view], what, setting, "score")


def _check_grades(recipe: Recipe, sources: Sequence[Bucket]) -> None:
    """Refuse a grade that no row has: nothing would be left to learn from; single ones may be missing."""
    for name in sorted(recipe.reads & {"correct", "reward"}):
        graded = [read_grades(source.grades, source.rollouts) for source in sources if source.grades is not None]
        if all(getattr(grade, name) is None for rows in graded for grade in rows):
            stage = "refresh" if sources[0].source == "student" else "teacher_rollouts"
            raise ShardError(
                f"{sources[0].rollouts.parent}: no response has a grade `{name}`, which train.objective "
                f"`{recipe.name}` reads. Set a `grade.grader` that gives it, and answers to the prompts; then run "
                f"`dvc repro {stage}`."
            )


def _check_passes(recipe: Recipe, sources: Sequence[Bucket], settings: Training) -> None:
    if not any(term.is_stored_advantage_unclipped for term in recipe.terms):
        return
    count = sum(sum(count_group_rows(source.rollouts)) for source in sources)
    if settings.steps * settings.batch > count:
        raise SettingsError(
            f"train.steps × train.batch is {settings.steps * settings.batch} sequences, more than one pass over "
            f"{count} rollouts. With `advantage: stored` and no clipped ratio, repeated steps follow a fixed linear "
            "reward past the target (KL rises from 0.52 to 1.04 on a table). Lower train.steps, take "
            "`advantage: live`, or a `proximal` or `two_sided` ratio."
        )


def _check_pairs(recipe: Recipe, sources: Sequence[Bucket], settings: Training) -> None:
    if not recipe.is_paired:
        return
    find_partners(sources, recipe.name)
    if settings.batch % 2:
        raise SettingsError(
            f"train.batch is {settings.batch}, and train.objective `{recipe.name}` trains on pairs of sequences. Make "
            "it even."
        )


def _warn_of_fewer_ids(recipe: Recipe, shard: Bucket) -> None:
    """Warn where a view keeps fewer of its own likeliest ids than the recipe asks for: those are all."""
    for term in recipe.terms:
        for view in term.views if term.reads_own and term.own_top_k else ():
            kept = read_about(shard.scores[view])["identity"]["support"]["top_k"]
            if kept < term.own_top_k:
                asked = f"`{recipe.name}` takes the {term.own_top_k} likeliest ids of view `{view}`, which keeps {kept}"
                log.warning("%s: these are trained on. More need another score.views.%s.support.top_k.", asked, view)


def _warn_of_far_tokens(recipe: Recipe, sources: Sequence[Bucket]) -> None:
    """Warn, from stored columns, of far tokens: the student is still close to the rollouts' writer."""
    if not is_led_by_far_tokens(recipe):
        return
    views = {view for term in recipe.terms if term.estimator == "policy_gradient" for view in term.views}
    for view in sorted(views):
        d = np.concatenate([_log_ratios(source, view) for source in sources if view in source.scores])
        share = float((d[np.abs(d) > FAR] ** 2).sum() / max((d**2).sum(), 1e-30))
        if share > 0.9:
            log.warning("%s, between view `%s` and the student that wrote the rollouts.", describe_far(share), view)


def _log_ratios(source: Bucket, view: str) -> np.ndarray:
    """Log behaviour − log view of the sampled tokens of scored rows, nats."""
    written = read_shard(source.rollouts, ROLLOUTS, ["behaviour_logprobs"]).column("behaviour_logprobs")
    scored = read_shard(source.scores[view], SCORES, ["sampled_logprobs"]).column("sampled_logprobs")
    behaviour = from_lists(written.filter(scored.is_valid())).values
    return behaviour - from_lists(scored.drop_null()).values


def _lacks(recipe: Recipe, path: Path, what: str, setting: str, stage: str) -> ShardError:
    return ShardError(
        f"{path} {what}; train.objective `{recipe.name}` cannot be trained on it. Set `{setting}` and run "
        f"`dvc repro {stage}`."
    )
