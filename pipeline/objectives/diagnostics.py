"""What a step knows anyway of how training goes, and the signs of the known collapses, each with its threshold.

Nothing here is asked of the student for its own sake: what a recipe does not read is not reported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline import axes, head
from pipeline.columns import Columns, Target
from pipeline.objectives import divergences, ratios, weighing
from pipeline.objectives.outcomes import Outcomes, contains, gathered, places
from pipeline.objectives.targets import extrapolation_bound
from pipeline.recipes import Recipe

FAR = 5.0
"""Nats: log-ratios beyond it are of tokens that one side finds a hundred times likelier than the other."""

QUARTERS = 4


@torch.no_grad()
def of_tokens(
    recipe: Recipe, student: head.Answer, ids: Int[Tensor, "token k"] | None, columns: Columns
) -> dict[str, Float[Tensor, " token"]]:
    """Per-token numbers whose means over a step say how far student and views are apart, and where.

    Args:
        recipe: the objective.
        student: its answer for a pack.
        ids: those that it was asked at.
        columns: of the pack.
    """
    found = {"nll": -student.sampled}
    for view, target in columns.targets.items():
        name = "" if view == "teacher" else f"{view}_"
        seen = _of_view(student, target, ids if view in recipe.exact_views else None, columns)
        if view in recipe.entropy_views and student.entropy is not None and target.entropy is not None:
            seen["entropy_gap"] = (target.entropy - student.entropy).abs()
        found |= {f"{name}{key}": value for key, value in seen.items()}
    for term in recipe.terms:
        if isinstance(term.target, axes.Extrapolation):
            found["past_cliff"] = _past_cliff(term.target, columns)
    if "sampling_logprobs" in columns.facts:
        ratio = ratios.importance(student.sampled, columns.facts["sampling_logprobs"], None)
        found |= {"ratio": ratio, "ratio_squared": ratio**2}
    return found


def _of_view(student: head.Answer, target: Target, ids: Tensor | None, columns: Columns) -> dict[str, Tensor]:
    log_ratio = student.sampled - target.sampled
    found = {"log_ratio": log_ratio, "square": log_ratio**2, "far_square": log_ratio**2 * (log_ratio.abs() > FAR)}
    if ids is None:
        return found
    own = Outcomes(student.logprobs, student.tail)
    own = own if target.ids is ids else gathered(own, places(target.ids, ids))
    kl = divergences.reverse_kl(own, target.outcomes)
    found |= {"kl": kl, "support_mass": own.mass, "target_mass": target.outcomes.mass}
    quarter = (QUARTERS * weighing.share_of_response(columns)).long()
    # Times four, since a quarter of every response is in each: the mean over a step is then that quarter's own.
    found |= {f"kl_quarter_{number + 1}": QUARTERS * kl * (quarter == number) for number in range(QUARTERS)}
    if student.top_ids.shape[-1]:
        is_shared = contains(student.top_ids, target.ids)
        found["overlap"] = is_shared.to(kl.dtype).mean(dim=-1)
        found["overlap_mass"] = (student.top_logprobs.exp() * is_shared).sum(dim=-1)
    return found


def _past_cliff(extrapolation: axes.Extrapolation, columns: Columns) -> Float[Tensor, " token"]:
    """1 where the factor is over the bound of the view's likeliest id, where the reference keeps that id, else 0."""
    view, reference = columns.targets[extrapolation.view], columns.targets[extrapolation.reference]
    at_reference = (reference.ids == view.ids[:, :1]) & (reference.ids >= 0)
    surest = reference.outcomes.logprobs.masked_fill(~at_reference, -torch.inf).amax(dim=-1)
    bound = extrapolation_bound(view.outcomes.logprobs[:, 0], surest)
    return (at_reference.any(dim=-1) & (extrapolation.factor > bound)).to(view.sampled.dtype)


def of_step(means: Mapping[str, float]) -> dict[str, float]:
    """What is no mean over tokens: effective sample size, and the share of the squared log-ratios that is far out."""
    found = {}
    if "ratio" in means:
        found["effective_share"] = means["ratio"] ** 2 / max(means["ratio_squared"], 1e-30)
    if "square" in means:
        found["far_share"] = means["far_square"] / max(means["square"], 1e-30)
    return found


@dataclass(frozen=True)
class Alarm:
    """A sign that training goes wrong: told once, when it first shows."""

    name: str
    text: str


def first_alarms(recipe: Recipe, history: Sequence[Mapping[str, float]]) -> list[tuple[int, Alarm]]:
    """Each sign that a run showed, with the first step that did."""
    found: dict[str, tuple[int, Alarm]] = {}
    for row in history:
        for alarm in alarms(recipe, row):
            found.setdefault(alarm.name, (int(row["step"]), alarm))
    return list(found.values())


def alarms(recipe: Recipe, row: Mapping[str, float]) -> list[Alarm]:
    """The signs that a step shows.

    Args:
        recipe: the objective.
        row: of the step, means over its tokens and what `of_step` adds.
    """
    found = []
    if row.get("effective_share", 1.0) < 0.5:
        text = f"the ratios leave {row['effective_share']:.0%} of the tokens to learn from: refresh the rollouts"
        found.append(Alarm("stale", f"{text} (alarm below 50 %)."))
    if row.get("support_mass", 1.0) < 0.9 * row.get("target_mass", 0.0):
        text = f"the student gives the kept ids {row['support_mass']:.3f}, the teacher {row['target_mass']:.3f}"
        found.append(Alarm("mass", f"{text}: probability leaves them (alarm below 90 % of the teacher's)."))
    first, last = row.get("kl_quarter_1", 0.0), row.get("kl_quarter_4", 0.0)
    if last > 4 * first > 0:
        text = f"KL is {last:.3f} in the last quarter of responses, {first:.3f} in the first"
        found.append(Alarm("suffix", f"{text}: collapse begins at the end (alarm above four times)."))
    if row.get("past_cliff", 0.0) > 0.01:
        text = f"the factor is past the extrapolation cliff at {row['past_cliff']:.1%} of the tokens"
        found.append(Alarm("cliff", f"{text}: formats may break (arXiv:2605.08737; alarm above 1 %)."))
    plain = [term for term in recipe.terms if term.estimator == "policy_gradient" and term.ratio is None]
    if any(term.has_target for term in plain) and row.get("far_share", 0.0) > 0.9:
        text = f"{row['far_share']:.0%} of the squared log-ratios are of tokens over {FAR:g} nats apart"
        found.append(
            Alarm("far", f"{text}: without a ratio they lead the gradient; see `lightning_ratio` (alarm above 90 %).")
        )
    return found
