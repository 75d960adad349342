"""The definitions, written differently from the library: one token at a time, loops and `math.fsum`, no torch.

A distribution is a list of log-probabilities over the whole vocabulary. Gradients are closed forms, with respect to
the student's logits.
"""

import math
from collections.abc import Sequence

Logprobs = Sequence[float]


def log_softmax(logits: Sequence[float]) -> list[float]:
    """Log-probabilities of the logits."""
    highest = max(logits)
    total = highest + math.log(math.fsum(math.exp(logit - highest) for logit in logits))
    return [logit - total for logit in logits]


def tail(logprobs: Logprobs, ids: Sequence[int]) -> float:
    """Log of the probability of every id that is not among these; −inf where none is left."""
    outside = [math.exp(logprob) for id_, logprob in enumerate(logprobs) if id_ not in ids]
    return math.log(math.fsum(outside)) if outside else -math.inf


def outcomes(logprobs: Logprobs, ids: Sequence[int]) -> list[float]:
    """The log-probabilities of these ids, and that of any other id behind them."""
    return [logprobs[id_] for id_ in ids] + [tail(logprobs, ids)]


def kl(first: Logprobs, second: Logprobs) -> float:
    """Σ p (log p − log q), where p > 0."""
    return math.fsum(math.exp(p) * (p - q) for p, q in zip(first, second, strict=True) if p > -math.inf)


def reverse_kl(student: Logprobs, target: Logprobs, ids: Sequence[int]) -> float:
    """KL(student ‖ target) over the ids and the tail."""
    return kl(outcomes(student, ids), outcomes(target, ids))


def forward_kl(student: Logprobs, target: Logprobs, ids: Sequence[int]) -> float:
    """KL(target ‖ student) over the ids and the tail."""
    return kl(outcomes(target, ids), outcomes(student, ids))


def reverse_kl_gradient(student: Logprobs, target: Logprobs, ids: Sequence[int]) -> list[float]:
    """π_j (log P(o) − log Q(o) − KL), where o is the outcome that id j belongs to."""
    value = reverse_kl(student, target, ids)
    p, q = outcomes(student, ids), outcomes(target, ids)
    return [
        math.exp(logprob) * (p[_outcome(id_, ids)] - q[_outcome(id_, ids)] - value)
        for id_, logprob in enumerate(student)
    ]


def forward_kl_gradient(student: Logprobs, target: Logprobs, ids: Sequence[int]) -> list[float]:
    """π_j (1 − Q(o) / P(o)), where o is the outcome that id j belongs to."""
    p, q = outcomes(student, ids), outcomes(target, ids)
    return [
        math.exp(logprob) * (1 - math.exp(q[_outcome(id_, ids)] - p[_outcome(id_, ids)]))
        for id_, logprob in enumerate(student)
    ]


def policy_gradient_gradient(student: Logprobs, target: Logprobs, sampled: int, clip: float) -> list[float]:
    """−A (1[j = y] − π_j), with the clipped log-ratio A = log q(y) − log π(y)."""
    advantage = min(clip, max(-clip, target[sampled] - student[sampled]))
    return [-advantage * ((id_ == sampled) - math.exp(logprob)) for id_, logprob in enumerate(student)]


def nll_gradient(student: Logprobs, sampled: int) -> list[float]:
    """π_j − 1[j = y]."""
    return [math.exp(logprob) - (id_ == sampled) for id_, logprob in enumerate(student)]


def huber(value: float, threshold: float) -> float:
    """Half the square up to the threshold, a straight line beyond it."""
    return value**2 / 2 if abs(value) <= threshold else threshold * (abs(value) - threshold / 2)


def kept_prefix(logprobs: Logprobs, top_k: int, mass: float | None, min_k: int) -> list[int]:
    """The shortest prefix of the top k that holds the mass, at least `min_k` ids; by probability, then by id."""
    order = sorted(range(len(logprobs)), key=lambda id_: (-logprobs[id_], id_))[:top_k]
    if mass is None:
        return order
    for length in range(min(min_k, len(order)), len(order)):
        if math.fsum(math.exp(logprobs[id_]) for id_ in order[:length]) >= mass:
            return order[:length]
    return order


def entropy(logprobs: Logprobs) -> float:
    """−Σ p log p."""
    return -math.fsum(math.exp(logprob) * logprob for logprob in logprobs)


def _outcome(id_: int, ids: Sequence[int]) -> int:
    """Place of the outcome that an id belongs to; the tail is the last."""
    return list(ids).index(id_) if id_ in ids else len(ids)
