"""The target of a term: one view, or several put together as the term says."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pipeline.errors import ShardError
from pipeline.objectives import target_formulas
from pipeline.objectives.inputs import Inputs, Target
from pipeline.objectives.outcomes import Outcomes
from pipeline.settings.targets import Contrast, Corrected, Extrapolation, Mixture, Route
from pipeline.settings.term import Term


@dataclass(frozen=True)
class Composed:
    """A term's target, and what its loss is divided by (1 but for `contrast`)."""

    target: Target
    scale: Float[Tensor, " token"] | float = 1.0


def compose(term: Term, columns: Inputs) -> Composed:
    """Put the views of a term together; ids and outcomes are those of the first, or of each token's own view."""
    first, *others = [columns.targets[view] for view in term.views]
    match term.target:
        case None:
            return Composed(first)
        case Route():
            return Composed(_routed(term.target, columns))
        case Corrected():
            return Composed(replace(first, sampled=first.sampled - columns.facts[term.target.column]))
        case Extrapolation():
            factors = [term.target.factor, 1 - term.target.factor]
            sampled = factors[0] * first.sampled + factors[1] * others[0].sampled
            if not term.reads_ids:
                return Composed(replace(first, sampled=sampled))
            outcomes, _ = target_formulas.geometric(_same_order(first, others), factors)
            return Composed(replace(first, outcomes=outcomes, sampled=sampled))
        case Contrast():
            outcomes, alpha = target_formulas.contrast(first.outcomes, _same_order(first, others)[1], term.target.scale)
            sampled = (1 + alpha) * first.sampled - alpha * others[0].sampled
            return Composed(replace(first, outcomes=outcomes, sampled=sampled), alpha)
        case Mixture():
            weights = list(term.target.views.values())
            outcomes = _same_order(first, others)
            sampled = torch.stack([view.sampled for view in (first, *others)], dim=-1)
            at_views = torch.tensor(weights, dtype=sampled.dtype, device=sampled.device)
            if term.target.kind == "arithmetic":
                mixed, chosen = target_formulas.arithmetic(outcomes, weights), (sampled + at_views.log()).logsumexp(-1)
            else:
                mixed, log_z = target_formulas.geometric(outcomes, weights)
                chosen = (sampled * at_views).sum(-1) - log_z
            return Composed(replace(first, outcomes=mixed, sampled=chosen))


def check_same_ids(term: Term, columns: Inputs) -> None:
    """Views that are put together over ids have the same ones.

    Raises:
        ShardError: they do not.
    """
    if not term.reads_ids or isinstance(term.target, Route | None):
        return
    first, *others = term.views
    like = columns.targets[first].ids
    for view in others:
        ids = columns.targets[view].ids
        if ids.shape != like.shape or not bool((ids.sort(dim=-1).values == like.sort(dim=-1).values).all()):
            raise ShardError(
                f"the views `{first}` and `{view}` keep different ids, so they cannot be put together. Set "
                f"`score.views.{first}.support.same_as: [{view}]` and `score.views.{view}.support.same_as: [{first}]`, "
                "without `mass`, and run `dvc repro score`."
            )


def _same_order(first: Target, others: list[Target]) -> list[Outcomes]:
    return [first.outcomes, *(target_formulas.aligned(other.outcomes, other.ids, first.ids) for other in others)]


def _routed(route: Route, columns: Inputs) -> Target:
    """At each token the view of its domain; elsewhere no ids, and a tail of probability 1."""
    views = {domain: columns.targets[view] for domain, view in route.views.items()}
    some = next(iter(views.values()))
    longest = max(target.ids.shape[-1] for target in views.values())
    ids = torch.full((len(some.sampled), longest), -1, dtype=some.ids.dtype, device=some.ids.device)
    logprobs = some.sampled.new_full(ids.shape, -torch.inf)
    tail, sampled = torch.zeros_like(some.sampled), torch.zeros_like(some.sampled)
    for domain, target in views.items():
        is_of = columns.facts[f"domain={domain}"] > 0
        behind = (0, longest - target.ids.shape[-1])
        ids = torch.where(is_of.unsqueeze(-1), functional.pad(target.ids, behind, value=-1), ids)
        padded = functional.pad(target.outcomes.logprobs, behind, value=-torch.inf)
        logprobs = torch.where(is_of.unsqueeze(-1), padded, logprobs)
        tail = torch.where(is_of, target.outcomes.tail, tail)
        sampled = torch.where(is_of, target.sampled, sampled)
    return Target(ids, Outcomes(logprobs, tail), sampled)
