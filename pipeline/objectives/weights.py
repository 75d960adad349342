"""The weights of a term, from their settings: those that stored columns decide, and those of the student as it is."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.objectives import weight_formulas
from pipeline.objectives.inputs import Inputs, Target
from pipeline.objectives.schedules import scheduled
from pipeline.settings.reading import Schedule
from pipeline.settings.weights import (
    AnyWeight,
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
    TopFraction,
    Where,
    Zone,
)


def number_at(value: float | Schedule, step: int) -> float:
    """A setting that may change with the optimiser step, as it is now."""
    if isinstance(value, Schedule):
        return scheduled(value.start, value.end, value.steps, value.shape, step)
    return value


def stored_weight(weight: AnyWeight, target: Target | None, columns: Inputs) -> Float[Tensor, " token"]:
    """A weight that does not depend on the student as it is; 1 for those that do."""
    facts, lengths = columns.facts, lengths_of(columns)
    match weight:
        case Where():
            wanted = 0.0 if weight.fact == "wrong" else 1.0
            return (facts["finished" if weight.fact == "finished" else "correct"] == wanted).float()
        case InDomain():
            return torch.stack([facts[f"domain={name}"] for name in weight.names]).amax(dim=0)
        case HasView():
            has = facts[f"has={weight.view}"]
            return has if weight.kind == "has_view" else 1 - has
        case NotSpecial():
            return 1 - facts["special"]
        case ColumnWeight():
            return _of_column(weight, facts[weight.name], columns.step)
        case SigmoidPosition():
            return weight_formulas.sigmoid_position(
                share_of_response(columns), weight.lowest, weight.turn, weight.width
            )
        case Earliness():
            return weight_formulas.earliness(_discrepancy(target, columns), lengths, weight.highest)
        case StepRatio():
            return weight_formulas.step_ratio(_discrepancy(target, columns), facts["segments"], lengths, weight.cap)
        case FirstSegments():
            shown = min(1 + columns.step // weight.every, weight.most)
            return weight_formulas.first_segments(facts["segments"], shown)
        case FirstTokens():
            return weight_formulas.prefix(position(columns), number_at(weight.tokens, columns.step))
        case Confidence():
            return weight_formulas.confidence(entropy_of(target), weight.rate)
        case EntropyGate():
            return (entropy_of(target) > weight.above).float()
    return torch.ones(int(lengths.sum()), device=lengths.device)


def expected_weight(weight: AnyWeight, columns: Inputs) -> Float[Tensor, " token"]:
    """Of a live weight whose sum over each rollout is known beforehand, its mean over that rollout; 1 for others."""
    lengths = lengths_of(columns)
    match weight:
        case TopFraction():
            count = weight_formulas.kept(lengths, weight.share)
        case Zone():
            of_target = weight_formulas.kept(lengths, weight.target_share)
            of_student = weight_formulas.kept(lengths, weight.student_share).minimum(lengths - of_target)
            count = of_target if weight.which == "target" else of_student
        case _:
            count = lengths
    return (count / lengths).repeat_interleave(lengths)


def live_weight(
    weight: AnyWeight,
    student: Float[Tensor, " token"],
    entropy: Float[Tensor, " token"] | None,
    divergences: dict[str, Float[Tensor, " token"]],
    target: Target | None,
    columns: Inputs,
) -> Float[Tensor, " token"]:
    """A weight that depends on the student as it is, as a constant.

    Args:
        weight: its settings; `is_live`.
        student: log-probability of the response tokens.
        entropy: the student's, nats.
        divergences: `reverse_kl` and `forward_kl` to the term's target, nats; empty where the term reads no ids.
        target: the term's.
        columns: of the pack.
    """
    lengths = lengths_of(columns)
    match weight:
        case TopFraction():
            assert entropy is not None
            match weight.by:
                case "entropy":
                    score = entropy
                case "soft_or":
                    score = weight_formulas.soft_or(entropy, divergences["reverse_kl"], lengths)
                case "confident_disagreement":
                    score = weight_formulas.confident_disagreement(entropy, divergences["forward_kl"], lengths)
            return weight_formulas.top_fraction(score, lengths, weight.share)
        case Zone():
            assert entropy is not None
            shares = weight.target_share, weight.student_share
            of_target, of_student = weight_formulas.zone(entropy_of(target), entropy, lengths, *shares)
            return of_target if weight.which == "target" else of_student
        case LogRatioWithin():
            assert target is not None
            log_ratio = (target.sampled - student).detach()
            low = -torch.inf if weight.low is None else weight.low
            high = torch.inf if weight.high is None else weight.high
            return ((log_ratio >= low) & (log_ratio <= high)).to(student.dtype)
        case Freshness():
            behaviour = columns.facts["behaviour_logprobs"]
            return weight_formulas.freshness(student, behaviour, lengths, weight.rate, weight.threshold)
    raise AssertionError(f"{weight.kind} is no live weight")


def position(columns: Inputs) -> Float[Tensor, " token"]:
    """Of each token in its response, from 0."""
    lengths = lengths_of(columns)
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    return (torch.arange(len(starts), device=lengths.device) - starts).float()


def share_of_response(columns: Inputs) -> Float[Tensor, " token"]:
    """Where the middle of each token is in its response, from 0 to 1."""
    lengths = lengths_of(columns)
    return (position(columns) + 0.5) / lengths.repeat_interleave(lengths)


def lengths_of(columns: Inputs) -> Int[Tensor, " rollout"]:
    """Tokens of each rollout of the pack."""
    assert columns.lengths is not None, "the loader gives a pack's lengths"
    return columns.lengths


def entropy_of(target: Target | None) -> Float[Tensor, " token"]:
    """Of the term's view."""
    assert target is not None
    assert target.entropy is not None, "the loader reads the entropies that a recipe names"
    return target.entropy


def _of_column(weight: ColumnWeight, values: Tensor, step: int) -> Tensor:
    if weight.at_least is None and weight.at_most is None:
        return values
    is_in = torch.ones_like(values, dtype=torch.bool)
    if weight.at_least is not None:
        is_in &= values >= number_at(weight.at_least, step)
    if weight.at_most is not None:
        is_in &= values <= number_at(weight.at_most, step)
    return is_in.float()


def _discrepancy(target: Target | None, columns: Inputs) -> Float[Tensor, " token"]:
    """|log target − log behaviour| of each token, nats."""
    assert target is not None
    return (target.sampled - columns.facts["behaviour_logprobs"]).abs()
