"""From a recipe to one function of (live student, views, columns, step): per-token losses, summed, and diagnostics."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.head.answer import Answer, Ask
from pipeline.models.packing import Pack
from pipeline.objectives import diagnostics, divergences, estimators, ratios, reductions
from pipeline.objectives.inputs import Inputs, Target
from pipeline.objectives.outcomes import Outcomes, contains, gathered, places, renormalised, restricted, union
from pipeline.objectives.targets import Composed, check_same_ids, compose
from pipeline.objectives.weights import expected_weight, lengths_of, live_weight, number_at, stored_weight
from pipeline.settings.recipe import Recipe
from pipeline.settings.term import Term


@dataclass(frozen=True)
class Objective:
    """A compiled recipe: what to ask of the student, and the loss of its answer."""

    recipe: Recipe

    def ask(self, sampled_ids: Int[Tensor, " token"], columns: Inputs) -> Ask:
        """All that the terms need to know of the student."""
        ids = self._ids(columns)
        top_k = [term.top_k or 0 for term in self.recipe.terms if term.support == "intersection"]
        entropy = any(term.reads_entropy for term in self.recipe.terms)
        nothing = sampled_ids.new_empty(len(sampled_ids), 0)
        return Ask(sampled_ids, nothing if ids is None else ids, top_k=max(top_k, default=0), entropy=entropy)

    def weigh(self, packs: Sequence[tuple[Pack, Inputs]], step: int) -> list[tuple[Pack, Inputs]]:
        """The packs of a step with what each token counts for in each term; all packs of a step belong together.

        Raises:
            ShardError: views that a term puts together keep different ids.
        """
        columns = [replace(each, step=step) for _, each in packs]
        by_term: dict[int, list[Tensor]] = {}
        for place, term in enumerate(self.recipe.terms):
            for each in columns:
                check_same_ids(term, each)
            if term.has_own_factors or len(self.recipe.sources) > 1:
                by_term[place] = _factors(term, columns, len(self.recipe.sources) > 1)
        return [
            (pack, replace(each, factors={place: factors[number] for place, factors in by_term.items()}))
            for number, ((pack, _), each) in enumerate(zip(packs, columns, strict=True))
        ]

    def loss(self, student: Answer, columns: Inputs) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """This pack's share of the step's loss (nats), and per-token diagnostics.

        Packs of one step add up: the factors already divide by the tokens of the whole step.
        """
        total = student.sampled.new_zeros(())
        ids = self._ids(columns)
        for place, term in enumerate(self.recipe.terms):
            coefficient = number_at(term.coefficient, columns.step)
            factors = columns.factors[place] if place in columns.factors else columns.weights[term.reduction]
            total = total + coefficient * (per_token(term, student, ids, columns) * factors).sum()
        return total, diagnostics.of_tokens(self.recipe, student, ids, columns)

    def _ids(self, columns: Inputs) -> Int[Tensor, "token k"] | None:
        """The ids at which the student is asked."""
        supports = [columns.targets[view].ids for view in self.recipe.exact_views]
        return union(supports) if supports else None


def per_token(
    term: Term, student: Answer, ids: Int[Tensor, "token k"] | None, columns: Inputs
) -> Float[Tensor, " token"]:
    """The loss of one term at each token, with the weights that depend on the student as it is.

    Args:
        term: of the recipe.
        student: its answer for a pack.
        ids: those that it was asked at.
        columns: of the pack.
    """
    composed = compose(term, columns) if term.has_target else None
    target = None if composed is None else composed.target
    pair = _outcomes(term, student, ids, composed) if term.reads_ids else None
    value = _value(term, student, pair, target, columns)
    if composed is not None:
        value = value / composed.scale
    for weight in term.weights:
        if weight.is_live:
            apart = {} if pair is None else _apart(*pair)
            value = value * live_weight(weight, student.sampled, student.entropy, apart, target, columns)
    if term.ratio is not None and term.ratio.kind != "proximal" and term.estimator != "residual":
        value = value * _ratio(term, student, columns)
    return value


def _value(
    term: Term, student: Answer, pair: tuple[Outcomes, Outcomes] | None, target: Target | None, columns: Inputs
) -> Float[Tensor, " token"]:
    match term.estimator:
        case "nll":
            return estimators.nll(student.sampled)
        case "preference":
            assert target is not None
            assert term.beta is not None
            beta = number_at(term.beta, columns.step)
            return estimators.preference(student.sampled, target.sampled, lengths_of(columns), beta)
        case "analytic":
            assert pair is not None
            return _analytic(term, *pair, columns.step)
        case "residual":
            assert pair is not None
            assert target is not None
            assert columns.sampled_ids is not None
            is_outside = ~contains(columns.sampled_ids.unsqueeze(-1), target.ids).squeeze(-1)
            ratio = torch.ones_like(student.sampled) if term.ratio is None else _ratio(term, student, columns)
            sampled = student.sampled, target.sampled
            return estimators.residual_reverse_kl(pair[0], pair[1], *sampled, is_outside, ratio)
        case "policy_gradient":
            advantage = _advantage(term, student, pair, target, columns)
            if term.ratio is not None and term.ratio.kind == "proximal":
                sampling = columns.facts["sampling_logprobs"]
                low, high = term.ratio.low or 0.0, term.ratio.high or 0.0
                return estimators.proximal(student.sampled, sampling, advantage, low, high)
            return estimators.policy_gradient(student.sampled, advantage)


def _advantage(
    term: Term, student: Answer, pair: tuple[Outcomes, Outcomes] | None, target: Target | None, columns: Inputs
) -> Float[Tensor, " token"]:
    advantage = torch.zeros_like(student.sampled)
    if target is not None:
        writer = student.sampled if term.advantage == "live" else columns.facts["sampling_logprobs"]
        advantage = estimators.log_ratio_advantage(writer, target.sampled, term.advantage_clip, term.advantage_floor)
    if term.baseline == "kl":
        assert pair is not None
        advantage = advantage + divergences.reverse_kl(*pair).detach()  # the mean under the student is minus this
    if term.bonus is not None:
        advantage = advantage + columns.facts[term.bonus]
    return advantage


def _analytic(term: Term, student: Outcomes, target: Outcomes, step: int) -> Float[Tensor, " token"]:
    if term.tail.startswith("renormalise"):
        target = renormalised(target)
    if term.tail == "renormalise":
        student = renormalised(student)
    match term.tail, term.divergence:
        case "stop_gradient", _:
            return divergences.stop_gradient_reverse_kl(student, target)
        case "student_weighted", _:
            return divergences.student_weighted_reverse_kl(student, target)
        case _, "reverse_kl":
            return divergences.reverse_kl(student, target, term.entry_clip)
        case _, "forward_kl":
            return divergences.forward_kl(student, target, term.entry_clip)
    assert term.beta is not None
    beta = number_at(term.beta, step)
    if term.divergence == "jsd":
        return divergences.jsd(student, target, beta, term.entry_clip)
    return divergences.mixture(student, target, beta)


def _outcomes(
    term: Term, student: Answer, ids: Int[Tensor, "token k"] | None, composed: Composed | None
) -> tuple[Outcomes, Outcomes]:
    """Student and target over the term's support."""
    assert composed is not None
    assert ids is not None
    target, own = composed.target, Outcomes(student.logprobs, student.tail)
    if target.ids is not ids:
        own = gathered(own, places(target.ids, ids))
    if term.support == "intersection":
        is_kept = contains(target.ids, student.top_ids[:, : term.top_k])
    elif term.support == "own":
        assert target.own is not None
        most = target.own if term.top_k is None else target.own.clamp_max(term.top_k)
        is_kept = torch.arange(target.ids.shape[-1], device=ids.device) < most.unsqueeze(-1)
    else:
        return own, target.outcomes
    return restricted(own, is_kept), restricted(target.outcomes, is_kept)


def _ratio(term: Term, student: Answer, columns: Inputs) -> Float[Tensor, " token"]:
    assert term.ratio is not None
    sampling = columns.facts["sampling_logprobs"]
    if term.ratio.kind == "two_sided":
        return ratios.two_sided(student.sampled, sampling, term.ratio.low or 0.0, term.ratio.high or 0.0)
    return ratios.importance(student.sampled, sampling, term.ratio.high)


def _apart(student: Outcomes, target: Outcomes) -> dict[str, Tensor]:
    """How far apart they are, as constants."""
    student = student.detached
    return {
        "reverse_kl": divergences.reverse_kl(student, target),
        "forward_kl": divergences.forward_kl(student, target),
    }


def _factors(term: Term, columns: Sequence[Inputs], has_sources: bool) -> list[Tensor]:
    """What each token of each pack counts for: its weights that are known by now, reduced over the whole step."""
    weights, counted, own, lengths = [], [], [], []
    for each in columns:
        target = compose(term, each).target if term.has_target else None
        rollouts = lengths_of(each)
        weight = torch.ones(int(rollouts.sum()), dtype=torch.float64)
        count = torch.ones_like(weight)
        for factor in term.weights:
            weight = weight * stored_weight(factor, target, each)
            count = count * expected_weight(factor, each) if factor.is_live else count
        weights.append(weight)
        counted.append(count)
        is_own = [each.facts[f"source={source}"].double() for source in term.sources if has_sources]
        own.append(torch.stack(is_own).sum(dim=0) if has_sources else torch.ones_like(weight))
        lengths.append(rollouts.repeat_interleave(rollouts))
    return reductions.factors(term.reduction, weights, counted, own, lengths)
