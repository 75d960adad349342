"""The target of a term: one view, or several put together as the term says.

Here each class of `pipeline/settings/targets.py` meets its formula; the formulas are in `target_formulas`.
"""

from dataclasses import replace
from functools import singledispatch

import torch
from torch.nn import functional

from pipeline.errors import ShardError
from pipeline.objectives import target_formulas
from pipeline.objectives.inputs import Inputs, Target
from pipeline.objectives.outcomes import Outcomes
from pipeline.settings.targets import ComposedTarget, Contrast, Corrected, Extrapolation, Mixture, Route
from pipeline.settings.term import Term

VERSION = 1  # raise it when a composed target would change, here or in `target_formulas`


def find_target(term: Term, inputs: Inputs) -> Target | None:
    """What a term is to learn from; None for a term that learns from no view."""
    if term.target is None:
        return None if term.view is None else inputs.targets[term.view]
    if not term.reads_ids:  # its views may then keep different ones
        inputs = replace(inputs, targets={view: inputs.targets[view].without_ids for view in term.views})
    return compose_views(term.target, inputs)


@singledispatch
def compose_views(target: ComposedTarget, inputs: Inputs) -> Target:  # noqa: ARG001 (its formulas read it)
    """Put the views of a target together; what is not composed (ids, `own`, `entropy`) is the first view's."""
    raise AssertionError(f"no formula is registered for a `{target.__class__.__name__}` target")


@compose_views.register
def _route(target: Route, inputs: Inputs) -> Target:
    """At each token the view of its domain; elsewhere no ids, and a tail of probability 1."""
    views = {domain: inputs.targets[view] for domain, view in target.views.items()}
    some = next(iter(views.values()))
    longest = max(view.ids.shape[-1] for view in views.values())
    ids = torch.full((len(some.sampled), longest), -1, dtype=some.ids.dtype, device=some.ids.device)
    logprobs = some.sampled.new_full(ids.shape, -torch.inf)
    tail, sampled, entropy = (torch.zeros_like(some.sampled) for _ in range(3))
    own = torch.zeros_like(some.sampled, dtype=torch.int64)
    for domain, view in views.items():
        is_of = inputs.facts[f"domain={domain}"] > 0
        behind = (0, longest - view.ids.shape[-1])
        ids = torch.where(is_of.unsqueeze(-1), functional.pad(view.ids, behind, value=-1), ids)
        padded = functional.pad(view.outcomes.logprobs, behind, value=-torch.inf)
        logprobs = torch.where(is_of.unsqueeze(-1), padded, logprobs)
        tail = torch.where(is_of, view.outcomes.tail, tail)
        sampled = torch.where(is_of, view.sampled, sampled)
        own = own if view.own is None else torch.where(is_of, view.own, own)
        entropy = entropy if view.entropy is None else torch.where(is_of, view.entropy, entropy)
    return Target(ids, Outcomes(logprobs, tail), sampled, own, entropy)


@compose_views.register
def _mix(target: Mixture, inputs: Inputs) -> Target:
    views, powers = [inputs.targets[view] for view in target.views], list(target.views.values())
    mixed, log_z = target_formulas.geometric(_in_order_of_the_first(views), powers)
    sampled = torch.stack([view.sampled for view in views], dim=-1)
    sampled = (sampled * torch.tensor(powers, dtype=sampled.dtype, device=sampled.device)).sum(-1) - log_z
    return replace(views[0], outcomes=mixed, sampled=sampled)


@compose_views.register
def _extrapolate(target: Extrapolation, inputs: Inputs) -> Target:
    """Normalised over the outcomes, but not at the sampled token: a term that reads it alone does not know log Z."""
    view, reference = inputs.targets[target.view], inputs.targets[target.reference]
    powers = [target.factor, 1 - target.factor]
    sampled = powers[0] * view.sampled + powers[1] * reference.sampled
    outcomes, _ = target_formulas.geometric(_in_order_of_the_first([view, reference]), powers)
    return replace(view, outcomes=outcomes, sampled=sampled)


@compose_views.register
def _contrast(target: Contrast, inputs: Inputs) -> Target:
    view, reference = inputs.targets[target.view], inputs.targets[target.reference]
    positive, negative = _in_order_of_the_first([view, reference])
    outcomes, alpha = target_formulas.contrast(positive, negative, target.scale)
    sampled = (1 + alpha) * view.sampled - alpha * reference.sampled
    return replace(view, outcomes=outcomes, sampled=sampled, divisor=alpha)


@compose_views.register
def _correct(target: Corrected, inputs: Inputs) -> Target:
    view = inputs.targets[target.view]
    return replace(view, sampled=view.sampled - inputs.facts[target.column])


def _in_order_of_the_first(views: list[Target]) -> list[Outcomes]:
    first, *others = views
    return [first.outcomes, *(target_formulas.aligned(other.outcomes, other.ids, first.ids) for other in others)]


def check_same_ids(term: Term, inputs: Inputs) -> None:
    """Refuse views that a term puts together over ids and that keep different ones.

    Raises:
        ShardError: they do.
    """
    if term.target is None or not term.target.shares_ids or not term.reads_ids:
        return
    first, *others = term.views
    like = inputs.targets[first].ids
    for view in others:
        ids = inputs.targets[view].ids
        if ids.shape != like.shape or not bool((ids.sort(dim=-1).values == like.sort(dim=-1).values).all()):
            raise ShardError(
                f"the views `{first}` and `{view}` keep different ids, so they cannot be put together. Set "
                f"`score.views.{first}.support.same_as: [{view}]` and `score.views.{view}.support.same_as: [{first}]`, "
                "without `mass`, and run `dvc repro score`."
            )
