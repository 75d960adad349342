"""The loss of a recipe on one page: what is asked of the student, and what its answer costs, in nats.

From a term to its formula it is two calls: `Objective.loss` → `loss_of_tokens` → a formula of `estimators`, or by way
of `measure_divergence` one of `divergences`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.head.answer import Answer, Ask
from pipeline.models.packing import Pack
from pipeline.objectives import diagnostics, divergences, estimators, ratios, reductions, supervised, trust_regions
from pipeline.objectives.inputs import Inputs, Target
from pipeline.objectives.outcomes import Outcomes, contains, gathered, places, renormalised, restricted, union
from pipeline.objectives.targets import check_same_ids, find_target
from pipeline.objectives.weights import Seen, compute_weight, count_kept
from pipeline.settings.reading import value_at
from pipeline.settings.recipe import Recipe
from pipeline.settings.term import Term


@dataclass(frozen=True)
class Objective:
    """A recipe as functions of a pack's tokens: what to ask of the student, and the loss of its answer."""

    recipe: Recipe

    def ask(self, inputs: Inputs) -> Ask:
        """All that the terms need to know of the student."""
        ids = self._ids(inputs)
        top_k = [term.top_k or 0 for term in self.recipe.terms if term.support == "intersection"]
        entropy = any(term.reads_entropy for term in self.recipe.terms)
        nothing = inputs.sampled_ids.new_empty(len(inputs.sampled_ids), 0)
        return Ask(inputs.sampled_ids, nothing if ids is None else ids, max(top_k, default=0), entropy)

    def weigh(self, packs: Sequence[tuple[Pack, Inputs]], step: int) -> list[tuple[Pack, Inputs]]:
        """The packs of a step with what each token counts for in each term; all packs of a step belong together.

        Raises:
            ShardError: views that a term puts together keep different ids.
        """
        of_packs = [replace(inputs, step=step) for _, inputs in packs]
        has_sources = len(self.recipe.sources) > 1
        by_term: dict[int, list[Tensor]] = {}
        for place, term in enumerate(self.recipe.terms):
            for inputs in of_packs:
                check_same_ids(term, inputs)
            if term.has_own_factors or has_sources:
                by_term[place] = _factors(term, of_packs, has_sources)
        return [
            (pack, replace(inputs, factors={place: factors[number] for place, factors in by_term.items()}))
            for number, ((pack, _), inputs) in enumerate(zip(packs, of_packs, strict=True))
        ]

    def loss(self, student: Answer, inputs: Inputs) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """This pack's share of the step's loss (nats), and per-token diagnostics.

        Packs of one step add up: the factors already divide by the tokens of the whole step.
        """
        total = student.sampled.new_zeros(())
        ids = self._ids(inputs)
        for place, term in enumerate(self.recipe.terms):
            coefficient = value_at(term.coefficient, inputs.step)
            factors = inputs.factors[place] if place in inputs.factors else inputs.shares[term.reduction]
            total = total + coefficient * (loss_of_tokens(term, student, ids, inputs) * factors).sum()
        return total, diagnostics.measure_tokens(self.recipe, student, ids, inputs)

    def _ids(self, inputs: Inputs) -> Int[Tensor, "token k"] | None:
        """The ids at which the student is asked."""
        supports = [inputs.targets[view].ids for view in self.recipe.exact_views]
        return union(supports) if supports else None


def loss_of_tokens(
    term: Term, student: Answer, ids: Int[Tensor, "token k"] | None, inputs: Inputs
) -> Float[Tensor, " token"]:
    """The loss of one term at each token (nats), with the weights that depend on the student as it is.

    Args:
        term: of the recipe.
        student: its answer for a pack.
        ids: those that it was asked at.
        inputs: of the pack.
    """
    target = find_target(term, inputs)
    pair = reduce_to_support(term, student, ids, target) if term.reads_ids else None
    ratio = _ratio(term, student, inputs)
    match term.estimator:
        case "nll":
            value = supervised.nll(student.sampled)
        case "preference":
            assert target is not None
            assert term.beta is not None
            beta = value_at(term.beta, inputs.step)
            value = estimators.preference(student.sampled, target.sampled, inputs.lengths, beta)
        case "analytic":
            assert pair is not None
            value = measure_divergence(term, *pair, inputs.step)
        case "residual":
            assert pair is not None
            assert target is not None
            is_outside = ~contains(inputs.sampled_ids.unsqueeze(-1), target.ids).squeeze(-1)
            own = torch.ones_like(student.sampled) if ratio is None else ratio
            value = estimators.residual_reverse_kl(*pair, student.sampled, target.sampled, is_outside, own)
            ratio = None  # the ids have none
        case "policy_gradient":
            value = _policy_gradient(term, student.sampled, _advantage(term, student, pair, target, inputs), inputs)
    value = value if target is None else value / target.divisor
    seen = Seen(inputs, target, student, pair)
    for weight in term.weights:
        value = value * compute_weight(weight, seen) if weight.is_live else value
    return value if ratio is None else value * ratio


def measure_divergence(term: Term, student: Outcomes, target: Outcomes, step: int) -> Float[Tensor, " token"]:
    """The divergence that a term names, by its tail (nats per token), of student and target over its support."""
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
    beta = value_at(term.beta, step)
    if term.divergence == "jsd":
        return divergences.jsd(student, target, beta, term.entry_clip)
    return divergences.mixture(student, target, beta)


def reduce_to_support(
    term: Term, student: Answer, ids: Int[Tensor, "token k"] | None, target: Target | None
) -> tuple[Outcomes, Outcomes]:
    """Student and target over the ids of the term's support, and a tail.

    Args:
        term: whose support it is.
        student: its answer.
        ids: those that it was asked at; the target's are among them.
        target: over all ids that its view kept.
    """
    assert target is not None
    assert ids is not None
    own = Outcomes(student.logprobs, student.tail)
    if target.ids is not ids:
        own = gathered(own, places(target.ids, ids))
    if term.support == "view":
        return own, target.outcomes
    is_kept = target.ids >= 0
    if term.reads_own:
        assert target.own is not None
        most = target.own if term.own_top_k is None else target.own.clamp_max(term.own_top_k)
        is_kept = torch.arange(target.ids.shape[-1], device=ids.device) < most.unsqueeze(-1)
    if term.support == "intersection":
        is_kept = is_kept & contains(target.ids, student.top_ids[:, : term.top_k])
    return restricted(own, is_kept), restricted(target.outcomes, is_kept)


def _policy_gradient(
    term: Term, student: Float[Tensor, " token"], advantage: Float[Tensor, " token"], inputs: Inputs
) -> Float[Tensor, " token"]:
    """The surrogate of a sampled token's advantage: PPO's where the term's ratio is its clip."""
    if term.ratio is None or term.ratio.kind != "proximal":
        return estimators.policy_gradient(student, advantage)
    low, high = term.ratio.low or 0.0, term.ratio.high or 0.0
    return trust_regions.proximal(student, inputs.facts[term.ratio.of], advantage, low, high)


def _advantage(
    term: Term, student: Answer, pair: tuple[Outcomes, Outcomes] | None, target: Target | None, inputs: Inputs
) -> Float[Tensor, " token"]:
    """What a sampled token is worth, nats: its log-ratio, less the baseline, and the bonus."""
    advantage = torch.zeros_like(student.sampled)
    if target is not None:
        writer = student.sampled if term.advantage == "live" else inputs.facts["behaviour_logprobs"]
        advantage = estimators.log_ratio_advantage(writer, target.sampled, term.advantage_clip, term.advantage_floor)
    if term.baseline == "kl":
        assert pair is not None
        advantage = advantage + divergences.reverse_kl(*pair).detach()  # the mean under the student is minus this
    return advantage if term.bonus is None else advantage + inputs.facts[term.bonus]


def _ratio(term: Term, student: Answer, inputs: Inputs) -> Float[Tensor, " token"] | None:
    """What a token's loss is multiplied by; None without a ratio, and for PPO's, which is in its surrogate."""
    if term.ratio is None or term.ratio.kind == "proximal":
        return None
    before = inputs.facts[term.ratio.of]
    if term.ratio.kind == "two_sided":
        return trust_regions.two_sided(student.sampled, before, term.ratio.low or 0.0, term.ratio.high or 0.0)
    return ratios.importance(student.sampled, before, term.ratio.high)


def _factors(term: Term, of_packs: Sequence[Inputs], has_sources: bool) -> list[Float[Tensor, " token"]]:
    """What each token of each pack counts for: its weights that are known by now, reduced over the whole step."""
    weights, expected, own, lengths = [], [], [], []
    for inputs in of_packs:
        seen = Seen(inputs, find_target(term, inputs))
        weight = torch.ones(len(inputs.sampled_ids), dtype=torch.float64)
        mean, is_own = torch.ones_like(weight), torch.ones_like(weight)
        for factor in term.weights:
            if not factor.is_live:
                weight = weight * compute_weight(factor, seen)
            elif factor.has_known_sum:
                kept = count_kept(factor, inputs.lengths) / inputs.lengths
                mean = mean * kept.repeat_interleave(inputs.lengths)
        if has_sources:
            is_own = torch.stack([inputs.facts[f"source={source}"].double() for source in term.sources]).sum(dim=0)
        weights.append(weight)
        expected.append(mean)
        own.append(is_own)
        lengths.append(inputs.lengths)
    return reductions.factors(term.reduction, weights, expected, own, lengths)
