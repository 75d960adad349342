"""What a step knows anyway of how training goes, and the signs of the known collapses, each with its threshold.

Nothing here is asked of the student for its own sake: what a recipe does not read is not reported.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.head.answer import Answer
from pipeline.objectives import divergences, ratios
from pipeline.objectives.inputs import Inputs, Target
from pipeline.objectives.outcomes import Outcomes, contains, gathered, places
from pipeline.objectives.target_formulas import extrapolation_bound
from pipeline.objectives.targets import find_target
from pipeline.settings.recipe import Recipe
from pipeline.settings.targets import Extrapolation
from pipeline.settings.term import Term

FAR = 5.0
"""Nats: log-ratios beyond it are of tokens that one side finds a hundred times likelier than the other."""

QUARTERS = 4

_RISES = {"rising", "suffix"}
"""Alarms that compare the latest steps with the first."""

SPAN = 10
"""Optimiser steps at the beginning of a run, and now, whose means are compared where single batches say little."""


@torch.no_grad()
def measure_tokens(
    recipe: Recipe, student: Answer, ids: Int[Tensor, "token k"] | None, inputs: Inputs
) -> dict[str, Float[Tensor, " token"]]:
    """Measure numbers of each token, whose means over a step say how far student and views are apart, and where.

    Those of the recipe's main view have names of their own, those of others begin with the view's. NaN is where there
    is nothing to say: rows that a view has not scored, ratios to a model that is not the student.

    Args:
        recipe: the objective.
        student: its answer for a pack.
        ids: those that it was asked at.
        inputs: of the pack.
    """
    found = {"nll": -student.sampled}
    for view, target in inputs.targets.items():
        name = "" if view == recipe.main_view else f"{view}_"
        seen = _of_view(student, target, ids if view in recipe.exact_views else None, inputs)
        if view in recipe.entropy_views and student.entropy is not None and target.entropy is not None:
            seen["entropy_gap"] = (target.entropy - student.entropy).abs()
        found |= {f"{name}{key}": _where(target.is_scored, value) for key, value in seen.items()}
    for term in recipe.terms:
        if isinstance(term.target, Extrapolation):
            found["past_cliff"] = _past_cliff(term.target, inputs)
    if (before := next((term.ratio.of for term in recipe.terms if term.ratio is not None), None)) is not None:
        ratio = ratios.importance(student.sampled, inputs.facts[before], None)
        ratio = _where(_is_of("student", inputs), ratio)
        found |= {"ratio": ratio, "ratio_squared": ratio**2}
    by_term = [_clipped(term, student.sampled, inputs) for term in recipe.terms]
    clipped = [each for each in by_term if each is not None]
    return found | ({"clip_rate": torch.stack(clipped).amax(dim=0)} if clipped else {})


def _where(is_known: Bool[Tensor, " token"], values: Float[Tensor, " token"]) -> Float[Tensor, " token"]:
    return values.masked_fill(~is_known, torch.nan)


def _is_of(source: str, inputs: Inputs) -> Bool[Tensor, " token"]:
    """Whose responses they are; where there are no others, the student's."""
    if f"source={source}" in inputs.facts:
        return inputs.facts[f"source={source}"] > 0
    return torch.full_like(inputs.shares["token_mean"], source == "student", dtype=torch.bool)


def _of_view(student: Answer, target: Target, ids: Tensor | None, inputs: Inputs) -> dict[str, Tensor]:
    log_ratio = student.sampled - target.sampled
    found = {"log_ratio": log_ratio, "square": log_ratio**2, "far_square": log_ratio**2 * (log_ratio.abs() > FAR)}
    if ids is None:
        return found
    own = Outcomes(student.logprobs, student.tail)
    own = own if target.ids is ids else gathered(own, places(target.ids, ids))
    kl = divergences.reverse_kl(own, target.outcomes)
    found |= {"kl": kl, "support_mass": own.mass, "target_mass": target.outcomes.mass}
    quarter = (QUARTERS * inputs.share_of_response).long()
    found |= {f"kl_quarter_{number + 1}": _where(quarter == number, kl) for number in range(QUARTERS)}
    if k := student.top_ids.shape[-1]:
        is_shared = contains(student.top_ids, target.ids[:, :k])
        found["overlap"] = is_shared.to(kl.dtype).mean(dim=-1)
        found["overlap_mass"] = (student.top_logprobs.exp() * is_shared).sum(dim=-1)
    return found


def _clipped(term: Term, sampled: Float[Tensor, " token"], inputs: Inputs) -> Float[Tensor, " token"] | None:
    """1 where a bound of the term's ratio or advantage holds a token back, else 0; None where it has no bound."""
    is_out: list[Tensor] = []
    if term.ratio is not None:
        ratio = ratios.importance(sampled, inputs.facts[term.ratio.of], None)
        low, high = term.ratio.bounds
        is_out.append((ratio < low) | (ratio > high))
    is_advantage_bounded = term.advantage_clip is not None or term.advantage_floor is not None
    if is_advantage_bounded and (target := find_target(term, inputs)) is not None:
        advantage = target.sampled - sampled
        highest = torch.inf if term.advantage_clip is None else term.advantage_clip
        lowest = max(-highest, -torch.inf if term.advantage_floor is None else term.advantage_floor)
        is_out.append((advantage < lowest) | (advantage > highest))
    if not is_out:
        return None
    return (torch.stack(is_out).any(dim=0) & _is_of(term.source, inputs)).to(sampled.dtype)


def _past_cliff(extrapolation: Extrapolation, inputs: Inputs) -> Float[Tensor, " token"]:
    """1 where the factor is over the bound of the view's likeliest id, where the reference keeps that id, else 0."""
    view, reference = inputs.targets[extrapolation.view], inputs.targets[extrapolation.reference]
    at_reference = (reference.ids == view.ids[:, :1]) & (reference.ids >= 0)
    surest = reference.outcomes.logprobs.masked_fill(~at_reference, -torch.inf).amax(dim=-1)
    bound = extrapolation_bound(view.outcomes.logprobs[:, 0], surest)
    return (at_reference.any(dim=-1) & (extrapolation.factor > bound)).to(view.sampled.dtype)


def sum_over_tokens(
    seen: Mapping[str, Float[Tensor, " token"]], shares: Float[Tensor, " token"]
) -> dict[str, Float[Tensor, "2"]]:
    """(weighted sum, total weight) of each diagnostic over the tokens that have a number; packs and devices add up.

    Args:
        seen: [T] by name, NaN at tokens that have none.
        shares: what each token counts for in the mean.
    """
    return {
        name: torch.stack([(values.nan_to_num() * shares).sum(), (shares * ~values.isnan()).sum()])
        for name, values in seen.items()
    }


def average_over_step(totals: Mapping[str, Float[Tensor, "2"]]) -> dict[str, float]:
    """Take the means of a step, and what is no mean over tokens.

    That is the effective sample size as a share of the tokens, and the share of the squared log-ratios that is far out.
    """
    means = {name: float(total / weight) for name, (total, weight) in totals.items() if weight > 0}
    if "ratio" in means:
        means["effective_share"] = means["ratio"] ** 2 / max(means["ratio_squared"], 1e-30)
    if "square" in means:
        means["far_share"] = means["far_square"] / max(means["square"], 1e-30)
    return means


@dataclass(frozen=True)
class Alarm:
    """A sign that training goes wrong: told once, when it first shows."""

    name: str
    text: str


def find_first_alarms(recipe: Recipe, history: Sequence[Mapping[str, float]]) -> list[tuple[int, Alarm]]:
    """Find each sign that a run showed, with the first step that did.

    Students move away from the view while the learning rate is new to them, and come back: a rise counts where the
    last steps still show it.
    """
    found: dict[str, tuple[int, Alarm]] = {}
    for number, row in enumerate(history, start=1):
        for alarm in find_alarms(recipe, history[:SPAN], history[max(0, number - SPAN) : number]):
            found.setdefault(alarm.name, (int(row["step"]), alarm))
    last = {alarm.name for alarm in find_alarms(recipe, history[:SPAN], history[-SPAN:])} if history else set()
    return [each for name, each in found.items() if name in last or name not in _RISES]


def find_alarms(
    recipe: Recipe, start: Sequence[Mapping[str, float]], now: Sequence[Mapping[str, float]]
) -> list[Alarm]:
    """Find the signs that the latest step shows, or the last `SPAN` steps against the first.

    Args:
        recipe: the objective.
        start: the first steps of the run, as `average_over_step` has them.
        now: its latest steps.
    """
    row, found = now[-1], []
    if row.get("effective_share", 1.0) < 0.5:
        text = f"the ratios leave {row['effective_share']:.0%} of the tokens to learn from: refresh the rollouts"
        found.append(Alarm("stale", f"{text} (alarm below 50 %)."))
    if row.get("support_mass", 1.0) < 0.9 * row.get("target_mass", 0.0):
        text = f"the student gives the kept ids {row['support_mass']:.3f}, the view {row['target_mass']:.3f}"
        found.append(Alarm("mass", f"{text}: probability leaves them (alarm below 90 % of the view's)."))
    if row.get("past_cliff", 0.0) > 0.01:
        text = f"the factor is past the extrapolation cliff at {row['past_cliff']:.1%} of the tokens"
        found.append(Alarm("cliff", f"{text}: formats may break (arXiv:2605.08737; alarm above 1 %)."))
    if is_led_by_far_tokens(recipe) and row.get("far_share", 0.0) > 0.9:
        found.append(Alarm("far", f"{describe_far(row['far_share'])} (alarm above 90 %)."))
    return found + _rising(start, now)


def _rising(start: Sequence[Mapping[str, float]], now: Sequence[Mapping[str, float]]) -> list[Alarm]:
    """Signs that training leads away from the view, or does so where responses end, and is further from it there."""
    if len(start) < SPAN or len(now) < SPAN or now[0]["step"] <= start[-1]["step"]:
        return []
    found, whole = [], _mean(now, "kl")
    for name, key, where in (("rising", "kl", ""), ("suffix", "kl_quarter_4", " in the last quarter of responses")):
        before, after = _mean(start, key), _mean(now, key)
        if after > 2 * before and after >= whole:
            text = f"KL to the view rose from {before:.3f} to {after:.3f} nats per token{where}"
            found.append(Alarm(name, f"{text} (means of {SPAN} steps; alarm where it doubles)."))
    return found


def _mean(rows: Sequence[Mapping[str, float]], name: str) -> float:
    """NaN, which is never more than anything, where some step does not have it."""
    return sum(row.get(name, math.nan) for row in rows) / len(rows)


def is_led_by_far_tokens(recipe: Recipe) -> bool:
    """Whether some term weighs a token by its log-ratio, with nothing that holds it back."""
    plain = [term for term in recipe.terms if term.estimator == "policy_gradient" and term.ratio is None]
    return any(term.has_target for term in plain)


def describe_far(share: float) -> str:
    """Say what a share of the squared log-ratios means for a term without a ratio."""
    return (
        f"{share:.0%} of the squared log-ratios are of tokens over {FAR:g} nats apart: without a ratio they lead the "
        "gradient; see `lightning_ratio`"
    )
