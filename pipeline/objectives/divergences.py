"""Divergences between a student's and a target's outcomes, in nats per token: each the sum of one entry per outcome.

All are 0 where the two agree. With a tail they are at most the divergence over the whole vocabulary (data-processing
inequality), and equal to it when the ids are all: the tail is then −inf and drops out. Student and target are reduced
to the same outcomes, [token, k] ids in one order and a tail; gradient flows to the student alone.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.objectives.outcomes import Outcomes

VERSION = 1  # raise it when a divergence would change


def reverse_kl(student: Outcomes, target: Outcomes, entry_clip: float | None = None) -> Float[Tensor, " token"]:
    """KL(student ‖ target) over the outcomes: Σ p (log p − log q).

    Args:
        student: p, with gradient.
        target: q, a constant.
        entry_clip: most that one outcome may add, nats; None does not clip.

    Source: the divergence of MiniLLM (arXiv:2306.08543) on the teacher's top K as in arXiv:2603.25562, with a tail
    outcome in place of their renormalisation, which cannot move probability into or out of the top K.
    """
    log_p, log_q, exists = _paired(student, target)
    return (_clipped(log_p.exp() * (log_p - log_q), entry_clip) * exists).sum(dim=-1)


def forward_kl(student: Outcomes, target: Outcomes, entry_clip: float | None = None) -> Float[Tensor, " token"]:
    """KL(target ‖ student) over the outcomes: Σ q (log q − log p).

    Args:
        student: p, with gradient.
        target: q, a constant.
        entry_clip: most that one outcome may add, nats, as in arXiv:2605.21606; None does not clip.

    Source: GKD (arXiv:2306.13649) at β = 0, on the teacher's top K with a tail outcome.
    """
    log_p, log_q, exists = _paired(student, target)
    return (_clipped(log_q.exp() * (log_q - log_p), entry_clip) * exists).sum(dim=-1)


def jsd(student: Outcomes, target: Outcomes, beta: float, entry_clip: float | None = None) -> Float[Tensor, " token"]:
    """Generalised Jensen-Shannon divergence, divided by β(1 − β): [β KL(q ‖ m) + (1 − β) KL(p ‖ m)] / β(1 − β).

    Here p is the student, q the target, m = βq + (1 − β)p and 0 < β < 1. The published form tends to 0 at both ends,
    where it is special-cased to a KL, so that its scale jumps; divided, it tends to the forward KL for β → 0 and to the
    reverse KL for β → 1.

    Source: GKD (arXiv:2306.13649), without its division.
    """
    log_p, log_q, exists = _paired(student, target)
    log_shares = log_p.new_tensor([beta, 1 - beta]).log()
    log_m = torch.logaddexp(log_q + log_shares[0], log_p + log_shares[1])
    entries = log_q.exp() * (log_q - log_m) / (1 - beta) + log_p.exp() * (log_p - log_m) / beta
    return (_clipped(entries, entry_clip) * exists).sum(dim=-1)


def mixture(student: Outcomes, target: Outcomes, share: float) -> Float[Tensor, " token"]:
    """`share` of the reverse KL and the rest of the forward KL, as in arXiv:2605.16826."""
    return share * reverse_kl(student, target) + (1 - share) * forward_kl(student, target)


def stop_gradient_reverse_kl(student: Outcomes, target: Outcomes) -> Float[Tensor, " token"]:
    """Σ p · sg[log p − log q] over the ids alone, without the tail.

    The log-ratio is a constant, so the gradient is zero where both agree; with full gradient the same sum drives
    probability out of the ids (student mass 0.36 where the teacher has 0.96).

    Source: arXiv:2605.11182, the stop-gradient top-K loss.
    """
    log_p, log_q, exists = _paired(student, target)
    is_id = exists & (torch.arange(exists.shape[-1], device=exists.device) < exists.shape[-1] - 1)
    return (log_p.exp() * (log_p - log_q).detach() * is_id).sum(dim=-1)


def student_weighted_reverse_kl(student: Outcomes, target: Outcomes) -> Float[Tensor, " token"]:
    """`stop_gradient_reverse_kl` over the student's mass on the ids, a constant; 0 where it has none there.

    Source: the published code of arXiv:2604.13016 (weight `student_p`); the paper renormalises both sides instead.
    """
    mass = student.mass.detach()
    return stop_gradient_reverse_kl(student, target) / mass.masked_fill(mass == 0, 1.0)


def _clipped(entries: Float[Tensor, "token outcome"], most: float | None) -> Float[Tensor, "token outcome"]:
    return entries if most is None else entries.clamp_max(most)


def _paired(student: Outcomes, target: Outcomes) -> tuple[Tensor, Tensor, Bool[Tensor, "token outcome"]]:
    """Both sides, and which of the outcomes exist: padding and an empty tail, which are −inf, do not."""
    log_p, log_q = student.all, target.all.detach()
    # Not "is finite": what is no number must show in the loss, and end the run.
    exists = ~(torch.isneginf(log_q) | torch.isneginf(log_p))
    return log_p.masked_fill(~exists, 0.0), log_q.masked_fill(~exists, 0.0), exists
