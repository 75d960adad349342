"""Losses of the sampled token, in nats per token: advantages, and what scales its log-probability by them.

`student` is the log-probability [token] of the response tokens, with gradient; all else is constant.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.objectives.outcomes import Outcomes

VERSION = 1  # raise it when a loss of a sampled token would change


def log_ratio_advantage(
    student: Float[Tensor, " token"],
    target: Float[Tensor, " token"],
    clip: float | None = None,
    floor: float | None = None,
) -> Float[Tensor, " token"]:
    """Log target − log student of the sampled token, as a constant, clipped to ±clip and from below.

    Args:
        student: of the student as it is now, not of the one that wrote the token: with a stored one, repeated steps
            on one shard follow a fixed linear reward past the target (KL rises from 0.52 to 1.04 on a table).
        target: of the target's model.
        clip: nats; None does not clip.
        floor: nats; None sets none.

    Source: Lightning OPD (arXiv:2604.13010), where the clip is 10; the floor is that of REOPOLD (arXiv:2603.11137).
    """
    advantage = (target - student).detach()
    if clip is not None:
        advantage = advantage.clamp(-clip, clip)
    return advantage if floor is None else advantage.clamp_min(floor)


def policy_gradient(student: Float[Tensor, " token"], advantage: Float[Tensor, " token"]) -> Float[Tensor, " token"]:
    """−advantage · log student of the sampled token.

    With `log_ratio_advantage` its gradient is that of the Huber loss of the log-ratio, so it is zero where both agree.

    Args:
        student: of the sampled token.
        advantage: nats, or a reward's; no gradient flows into it.

    Source: the score-function estimator (Williams, 1992); of a log-ratio as in Lightning OPD (arXiv:2604.13010).
    """
    return -advantage.detach() * student


def residual_reverse_kl(
    student: Outcomes,
    target: Outcomes,
    sampled: Float[Tensor, " token"],
    sampled_target: Float[Tensor, " token"],
    is_outside: Bool[Tensor, " token"],
    ratio: Float[Tensor, " token"],
) -> Float[Tensor, " token"]:
    """Σ p · sg[log p − log q] over the ids, and for a sampled token outside them its policy gradient.

    Its gradient, in expectation over the student's own tokens, is that of the reverse KL over the whole vocabulary; no
    tail is read.

    Args:
        student: over the ids.
        target: over the same.
        sampled: the student's log-probability of the response token y.
        sampled_target: the target's.
        is_outside: whether y is none of the ids.
        ratio: student over sampling distribution, a constant; 1 where the student wrote the tokens as it is now.

    Source: no paper's; the part over the ids is the stop-gradient loss of arXiv:2605.11182.
    """
    log_p, log_q = student.logprobs, target.logprobs
    exists = ~(torch.isneginf(log_p) | torch.isneginf(log_q))
    log_ratio = (log_p - log_q).detach().masked_fill(~exists, 0.0)
    inside = (log_p.exp().masked_fill(~exists, 0.0) * log_ratio).sum(dim=-1)
    outside = policy_gradient(sampled, log_ratio_advantage(sampled, sampled_target)) * ratio
    return inside + torch.where(is_outside, outside, torch.zeros_like(outside))


def preference(
    student: Float[Tensor, " token"],
    reference: Float[Tensor, " token"],
    lengths: Int[Tensor, " rollout"],
    beta: float,
) -> Float[Tensor, " token"]:
    """−log σ(β (Δ chosen − Δ rejected)), Δ = log student − log reference of a whole response; of a pair, at its tokens.

    Averaged over each response and then over responses, it is the mean over pairs.

    Args:
        student: of the response tokens, response after response; each rejected one follows its chosen one.
        reference: of the same.
        lengths: tokens of each response, an even number of them.
        beta: what a nat counts for.

    Source: DPO (arXiv:2305.18290), equation 7.
    """
    response = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    gain = torch.zeros(len(lengths), dtype=student.dtype, device=student.device)
    gain = gain.index_add(0, response, student - reference)
    loss = torch.nn.functional.softplus(-beta * (gain[0::2] - gain[1::2]))
    return loss.repeat_interleave(2)[response]
