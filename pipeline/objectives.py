"""The formulas: pure functions of small tensors, nats in and nats out, one value for each token.

A distribution over the vocabulary is reduced to *outcomes*: the ids that a view kept, and "any other id" (the tail).
Nothing here knows of masks, reductions, settings or logs. Gradient flows to the student's tensors only.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

VERSION = 1  # raise it when a loss would change; checkpoints are then trained anew


@dataclass(frozen=True)
class Outcomes:
    """A distribution reduced to the ids of a support and the tail outside them.

    Attributes:
        logprobs: [token, k], normalised over the whole vocabulary; −inf at padding.
        tail: [token], log of the probability outside the ids; −inf where nothing is left.
    """

    logprobs: Float[Tensor, "token k"]
    tail: Float[Tensor, " token"]

    @property
    def mass(self) -> Float[Tensor, " token"]:
        """Probability of the support."""
        return self.logprobs.exp().sum(dim=-1)

    @property
    def all(self) -> Float[Tensor, "token outcome"]:
        """The ids and the tail side by side."""
        return torch.cat([self.logprobs, self.tail.unsqueeze(-1)], dim=-1)


def reverse_kl(student: Outcomes, target: Outcomes) -> Float[Tensor, " token"]:
    """KL(student ‖ target) over the outcomes.

    It is 0 where the two agree, at most the KL over the whole vocabulary (data-processing inequality), and equal to
    it when the ids are the whole vocabulary: the tail is then −inf and drops out.

    Source: the divergence of MiniLLM (arXiv:2306.08543) on the teacher's top K as in arXiv:2603.25562, with a tail
    outcome in place of their renormalisation, which cannot move probability into or out of the top K.
    """
    student_all, target_all, counts = _paired(student, target)
    return (student_all.exp() * (student_all - target_all) * counts).sum(dim=-1)


def forward_kl(student: Outcomes, target: Outcomes) -> Float[Tensor, " token"]:
    """KL(target ‖ student) over the outcomes; the same limits hold as for `reverse_kl`.

    Source: GKD (arXiv:2306.13649) at β = 0, on the teacher's top K with a tail outcome.
    """
    student_all, target_all, counts = _paired(student, target)
    return (target_all.exp() * (target_all - student_all) * counts).sum(dim=-1)


def log_ratio_advantage(
    student: Float[Tensor, " token"], target: Float[Tensor, " token"], clip: float | None
) -> Float[Tensor, " token"]:
    """Log target − log student of the sampled token, as a constant, clipped to ±clip.

    Args:
        student: of the student as it is now, not of the one that wrote the token: with a stored one, repeated steps
            on one shard follow a fixed linear reward past the target (KL rises from 0.52 to 1.04 on a table).
        target: of the target's model.
        clip: nats; None does not clip.

    Source: Lightning OPD (arXiv:2604.13010), where the clip is 10.
    """
    advantage = (target - student).detach()
    return advantage if clip is None else advantage.clamp(-clip, clip)


def policy_gradient(student: Float[Tensor, " token"], advantage: Float[Tensor, " token"]) -> Float[Tensor, " token"]:
    """−advantage · log student of the sampled token.

    With `log_ratio_advantage` its gradient is that of the Huber loss of the log-ratio, so it is zero where both agree.
    """
    return -advantage.detach() * student


def nll(student: Float[Tensor, " token"]) -> Float[Tensor, " token"]:
    """−log student of the sampled token: supervised fine-tuning."""
    return -student


def _paired(student: Outcomes, target: Outcomes) -> tuple[Tensor, Tensor, Bool[Tensor, "token outcome"]]:
    """Both sides with finite numbers, and which of the outcomes exist: padding and an empty tail do not."""
    student_all, target_all = student.all, target.all.detach()
    counts = torch.isfinite(target_all) & torch.isfinite(student_all)
    return student_all.masked_fill(~counts, 0.0), target_all.masked_fill(~counts, 0.0), counts
