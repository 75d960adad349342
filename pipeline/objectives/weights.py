"""The token weights of a term: here each class of `pipeline/settings/weights.py` meets its formula.

The formulas are in `weight_formulas`; a class says itself which facts it reads and whether it is live.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import singledispatch

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.head.answer import Answer
from pipeline.objectives import divergences, weight_formulas
from pipeline.objectives.inputs import Inputs, Target
from pipeline.objectives.outcomes import Outcomes
from pipeline.settings.reading import value_at
from pipeline.settings.weights import (
    ColumnWeight,
    Confidence,
    Earliness,
    EntropyGate,
    FirstSegments,
    FirstTokens,
    Freshness,
    HasView,
    InDomain,
    LogRatioWithin,
    NotSpecial,
    SigmoidPosition,
    StepRatio,
    TokenWeight,
    TopFraction,
    Where,
    Zone,
)

VERSION = 1  # raise it when a token weight would change, here or in `weight_formulas`


@dataclass(frozen=True)
class Seen:
    """What a token weight may look at, of the T response tokens of a pack; it gets what its class says that it reads.

    Attributes:
        inputs: facts, lengths and the step.
        term_target: what the term learns from; None for one that learns from no view.
        student: as it is now; None before the forward pass.
        outcomes: student and target over the term's support; None where the term reads no ids.
    """

    inputs: Inputs
    term_target: Target | None
    student: Answer | None = None
    outcomes: tuple[Outcomes, Outcomes] | None = None

    @property
    def facts(self) -> Mapping[str, Float[Tensor, " token"]]:
        """Facts of the tokens, [T] by name."""
        return self.inputs.facts

    @property
    def lengths(self) -> Int[Tensor, " rollout"]:
        """Tokens of each rollout of the pack."""
        return self.inputs.lengths

    @property
    def target(self) -> Target:
        """What the term learns from, for a weight that compares with it."""
        assert self.term_target is not None, "a weight that compares with a target is of a term that has one"
        return self.term_target

    @property
    def target_entropy(self) -> Float[Tensor, " token"]:
        """Entropy of the term's view, nats."""
        assert self.target.entropy is not None, "the loader reads the entropies that a recipe names"
        return self.target.entropy

    @property
    def discrepancy(self) -> Float[Tensor, " token"]:
        """|log target − log behaviour| of each token, nats."""
        return (self.target.sampled - self.facts["behaviour_logprobs"]).abs()

    @property
    def sampled(self) -> Float[Tensor, " token"]:
        """The student's log-probability of the response tokens, a constant."""
        assert self.student is not None, "a weight that reads the student is live"
        return self.student.sampled.detach()

    @property
    def entropy(self) -> Float[Tensor, " token"]:
        """The student's entropy, nats."""
        assert self.student is not None, "a weight that reads the student is live"
        assert self.student.entropy is not None, "the student is asked for its entropy where a weight needs it"
        return self.student.entropy

    @property
    def reverse_kl(self) -> Float[Tensor, " token"]:
        """KL(student ‖ target) over the term's outcomes, nats, a constant."""
        assert self.outcomes is not None, "a weight that reads a divergence needs ids"
        student, target = self.outcomes
        return divergences.reverse_kl(student.detached, target)


@singledispatch
def compute_weight(weight: TokenWeight, seen: Seen) -> Float[Tensor, " token"]:  # noqa: ARG001 (its formulas read it)
    """What each token counts for by one weight, a constant; of a live one, with the student as it is."""
    raise AssertionError(f"no formula is registered for the token weight {type(weight).__name__}")


@singledispatch
def count_kept(weight: TokenWeight, lengths: Int[Tensor, " rollout"]) -> Int[Tensor, " rollout"]:  # noqa: ARG001
    """How many tokens of each rollout a live weight will let through, where that is known before the forward pass."""
    raise AssertionError(f"no sum is known beforehand of the token weight {type(weight).__name__}")


@compute_weight.register
def _where(weight: Where, seen: Seen) -> Float[Tensor, " token"]:
    (fact,) = weight.reads
    return (seen.facts[fact] == (0.0 if weight.fact == "wrong" else 1.0)).float()


@compute_weight.register
def _in_domain(weight: InDomain, seen: Seen) -> Float[Tensor, " token"]:
    return torch.stack([seen.facts[fact] for fact in weight.reads]).amax(dim=0)


@compute_weight.register
def _has_view(weight: HasView, seen: Seen) -> Float[Tensor, " token"]:
    has = seen.facts[f"has={weight.view}"]
    return has if weight.kind == "has_view" else 1 - has


@compute_weight.register
def _of_column(weight: ColumnWeight, seen: Seen) -> Float[Tensor, " token"]:
    values, step = seen.facts[weight.name], seen.inputs.step
    if weight.at_least is None and weight.at_most is None:
        return values
    low = -torch.inf if weight.at_least is None else value_at(weight.at_least, step)
    high = torch.inf if weight.at_most is None else value_at(weight.at_most, step)
    return ((values >= low) & (values <= high)).float()


@compute_weight.register
def _not_special(weight: NotSpecial, seen: Seen) -> Float[Tensor, " token"]:  # noqa: ARG001
    return 1 - seen.facts["special"]


@compute_weight.register
def _by_position(weight: SigmoidPosition, seen: Seen) -> Float[Tensor, " token"]:
    share = seen.inputs.share_of_response
    return weight_formulas.sigmoid_position(share, weight.lowest, weight.turn, weight.width)


@compute_weight.register
def _by_earliness(weight: Earliness, seen: Seen) -> Float[Tensor, " token"]:
    return weight_formulas.earliness(seen.discrepancy, seen.lengths, weight.highest)


@compute_weight.register
def _by_step(weight: StepRatio, seen: Seen) -> Float[Tensor, " token"]:
    return weight_formulas.step_ratio(seen.discrepancy, seen.facts["segments"], seen.lengths, weight.cap)


@compute_weight.register
def _first_segments(weight: FirstSegments, seen: Seen) -> Float[Tensor, " token"]:
    shown = min(1 + seen.inputs.step // weight.every, weight.most)
    return weight_formulas.first_segments(seen.facts["segments"], shown)


@compute_weight.register
def _first_tokens(weight: FirstTokens, seen: Seen) -> Float[Tensor, " token"]:
    return weight_formulas.first_tokens(seen.inputs.position, value_at(weight.tokens, seen.inputs.step))


@compute_weight.register
def _confidence(weight: Confidence, seen: Seen) -> Float[Tensor, " token"]:
    return weight_formulas.confidence(seen.target_entropy, weight.rate)


@compute_weight.register
def _entropy_gate(weight: EntropyGate, seen: Seen) -> Float[Tensor, " token"]:
    return (seen.target_entropy > weight.above).float()


@compute_weight.register
def _top_fraction(weight: TopFraction, seen: Seen) -> Float[Tensor, " token"]:
    score = seen.entropy
    if weight.by == "soft_or":
        score = weight_formulas.soft_or(score, seen.reverse_kl, seen.lengths)
    return weight_formulas.top_fraction(score, seen.lengths, weight.share)


@count_kept.register
def _kept_of_top_fraction(weight: TopFraction, lengths: Int[Tensor, " rollout"]) -> Int[Tensor, " rollout"]:
    return weight_formulas.kept(lengths, weight.share)


@compute_weight.register
def _zone(weight: Zone, seen: Seen) -> Float[Tensor, " token"]:
    shares = weight.target_share, weight.student_share
    of_target, of_student = weight_formulas.zone(seen.target_entropy, seen.entropy, seen.lengths, *shares)
    return of_target if weight.which == "target" else of_student


@count_kept.register
def _kept_of_zone(weight: Zone, lengths: Int[Tensor, " rollout"]) -> Int[Tensor, " rollout"]:
    of_target = weight_formulas.kept(lengths, weight.target_share)
    of_student = weight_formulas.kept(lengths, weight.student_share).minimum(lengths - of_target)
    return of_target if weight.which == "target" else of_student


@compute_weight.register
def _log_ratio_within(weight: LogRatioWithin, seen: Seen) -> Float[Tensor, " token"]:
    log_ratio = seen.target.sampled - seen.sampled
    low = -torch.inf if weight.low is None else weight.low
    high = torch.inf if weight.high is None else weight.high
    return ((log_ratio >= low) & (log_ratio <= high)).to(log_ratio.dtype)


@compute_weight.register
def _freshness(weight: Freshness, seen: Seen) -> Float[Tensor, " token"]:
    behaviour = seen.facts["behaviour_logprobs"]
    return weight_formulas.freshness(seen.sampled, behaviour, seen.lengths, weight.rate, weight.threshold)
