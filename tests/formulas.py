"""The loss of every recipe, written from its paper's formula: one token at a time, in floats, no torch.

`k.p` is the student through which gradients flow, `k.s` the same student where the paper stops them. Each function
gives the loss of a whole optimiser step; `BY_NAME` says whose it is.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import cast

from tests import reference
from tests.cases import PREFIX, Token
from tests.reference import outcomes

Formula = Callable[[list[Token]], float]
Value = Callable[[Token], float]


def token_mean(tokens: Sequence[Token], value: Value, weight: Value = lambda _: 1.0) -> float:
    return math.fsum(weight(k) * value(k) for k in tokens) / len(tokens)


def sequence_mean(tokens: Sequence[Token], value: Value, weight: Value = lambda _: 1.0) -> float:
    rows = {k.row for k in tokens}
    return math.fsum(weight(k) * value(k) / k.length for k in tokens) / len(rows)


def selected_mean(tokens: Sequence[Token], value: Value, weight: Value) -> float:
    total = math.fsum(weight(k) for k in tokens)
    return math.fsum(weight(k) * value(k) for k in tokens) / total if total else 0.0


def selected_sequence_mean(tokens: Sequence[Token], value: Value, weight: Value) -> float:
    """The mean over what is kept of a response, then over responses."""
    total = 0.0
    for row in {k.row for k in tokens}:
        total += selected_mean([k for k in tokens if k.row == row], value, weight)
    return total / len({k.row for k in tokens})


def kl(first: Sequence[float], second: Sequence[float]) -> float:
    return reference.kl(first, second)


def bucketed(k: Token, view: str = "teacher") -> tuple[list[float], list[float]]:
    """Student and view over the view's ids and the tail."""
    if view not in k.q:
        return [0.0], [0.0]
    return outcomes(k.p, k.ids[view]), outcomes(k.q[view], k.ids[view])


def reverse(k: Token, view: str = "teacher") -> float:
    p, q = bucketed(k, view)
    return kl(p, q)


def forward(k: Token, view: str = "teacher") -> float:
    p, q = bucketed(k, view)
    return kl(q, p)


def jsd(p: Sequence[float], q: Sequence[float], beta: float) -> float:
    """The published JSD, divided by β(1 − β)."""
    m = [math.log(beta * math.exp(b) + (1 - beta) * math.exp(a)) for a, b in zip(p, q, strict=True)]
    return (beta * kl(q, m) + (1 - beta) * kl(p, m)) / (beta * (1 - beta))


def clipped_forward(k: Token, view: str, clip: float) -> float:
    p, q = bucketed(k, view)
    return math.fsum(min(math.exp(b) * (b - a), clip) for a, b in zip(p, q, strict=True))


def log_ratio(k: Token, view: str = "teacher") -> float:
    """Log teacher − log student of the sampled token, the student still."""
    return k.q[view][k.y] - k.s[k.y]


def ratio(k: Token) -> float:
    return math.exp(k.s[k.y] - k.mu)


def ppo(k: Token, advantage: float, low: float, high: float) -> float:
    """Around the policy that wrote the token, as it is at temperature 1."""
    r = math.exp(k.p[k.y] - k.behaviour)
    return -min(r * advantage, min(max(r, 1 - low), 1 + high) * advantage)


def clip(value: float, bound: float) -> float:
    return max(-bound, min(bound, value))


def renormalised(logprobs: Sequence[float]) -> list[float]:
    return reference.log_softmax(logprobs)


def at(logprobs: Sequence[float], ids: Sequence[int]) -> list[float]:
    return [logprobs[id_] for id_ in ids]


def likeliest(k: Token, count: int) -> list[int]:
    return sorted(range(len(k.s)), key=lambda id_: -k.s[id_])[:count]


def best(tokens: Sequence[Token], score: Value, share: float) -> set[int]:
    """Places in `tokens` of the highest scores of each rollout."""
    chosen: set[int] = set()
    for row in {k.row for k in tokens}:
        mine = [place for place, k in enumerate(tokens) if k.row == row]
        count = max(1, round(share * len(mine)))
        chosen |= set(sorted(mine, key=lambda place: -score(tokens[place]))[:count])
    return chosen


def quantile(values: Sequence[float], share: float) -> float:
    """Linear between the two values beside it."""
    rising = sorted(values)
    place = share * (len(rising) - 1)
    below = math.floor(place)
    above = min(below + 1, len(rising) - 1)
    return rising[below] + (place - below) * (rising[above] - rising[below])


def scaled(tokens: Sequence[Token], value: Value, k: Token) -> float:
    mine = [value(other) for other in tokens if other.row == k.row]
    top = quantile(mine, 0.98)
    cut = [min(each, top) for each in mine]
    return (min(value(k), top) - min(cut)) / max(max(cut) - min(cut), 1e-8)


def still_reverse(k: Token) -> float:
    return kl(outcomes(k.s, k.ids["teacher"]), outcomes(k.q["teacher"], k.ids["teacher"]))


def lightning(tokens: list[Token]) -> float:
    return sequence_mean(tokens, lambda k: -clip(log_ratio(k), 10) * k.p[k.y])


def sft(tokens: list[Token]) -> float:
    return token_mean(tokens, lambda k: -k.p[k.y])


def topk_reverse_kl(tokens: list[Token]) -> float:
    return token_mean(tokens, reverse)


def topk_forward_kl(tokens: list[Token]) -> float:
    return token_mean(tokens, forward)


def gkd(tokens: list[Token]) -> float:
    return sequence_mean(tokens, lambda k: jsd(*bucketed(k), 0.5))


def revisiting(tokens: list[Token]) -> float:
    def value(k: Token) -> float:
        ids = k.ids["teacher"][: k.own]
        return kl(renormalised(at(k.p, ids)), renormalised(at(k.q["teacher"], ids)))

    return selected_sequence_mean(tokens, value, lambda k: 1 - k.facts["special"])


def many_faces(tokens: list[Token]) -> float:
    """Equation 17, with the gradient stopped as it is written there."""

    def value(k: Token) -> float:
        ids = [id_ for id_ in k.ids["teacher"][: min(3, k.own)] if id_ in likeliest(k, 3)]
        if not ids:
            return 0.0
        p, s, q = (renormalised(at(logprobs, ids)) for logprobs in (k.p, k.s, k.q["teacher"]))
        return math.fsum(math.exp(a) * (b - c) for a, b, c in zip(p, s, q, strict=True))

    return sequence_mean(tokens, value)


def stopped(k: Token, ids: Sequence[int]) -> float:
    return math.fsum(math.exp(k.p[id_]) * (k.s[id_] - k.q["teacher"][id_]) for id_ in ids)


def many_faces_stop_gradient(tokens: list[Token]) -> float:
    return sequence_mean(tokens, lambda k: stopped(k, k.ids["teacher"]))


def rethinking(tokens: list[Token]) -> float:
    def value(k: Token) -> float:
        ids = [id_ for id_ in k.ids["teacher"] if id_ in likeliest(k, 3)]
        mass = math.fsum(math.exp(k.s[id_]) for id_ in ids)
        return stopped(k, ids) / mass if ids else 0.0

    return token_mean(tokens, value)


def vopd(tokens: list[Token]) -> float:
    return token_mean(tokens, lambda k: -min(ratio(k), 2) * (log_ratio(k) + still_reverse(k)) * k.p[k.y])


def lightning_ratio(tokens: list[Token]) -> float:
    def value(k: Token) -> float:
        return -min(ratio(k), 2) * (clip(log_ratio(k), 10) + still_reverse(k)) * k.p[k.y]

    return sequence_mean(tokens, value)


def exopd(tokens: list[Token]) -> float:
    def value(k: Token) -> float:
        advantage = 1.25 * k.q["teacher"][k.y] - 0.25 * k.q["reference"][k.y] - k.s[k.y]
        return -min(ratio(k), 5) * advantage * k.p[k.y]

    return token_mean(tokens, value)


def thinking_machines(tokens: list[Token]) -> float:
    return token_mean(tokens, lambda k: -ratio(k) * log_ratio(k) * k.p[k.y])


def eopd(tokens: list[Token]) -> float:
    def covering(k: Token) -> float:
        ids = k.ids["teacher"][: min(3, k.own)]
        return kl(renormalised(at(k.q["teacher"], ids)), at(k.p, ids))

    gate = token_mean(tokens, covering, lambda k: float(reference.entropy(k.q["teacher"]) > 0.8))
    return token_mean(tokens, lambda k: ppo(k, log_ratio(k), 0.2, 0.2)) + gate


def tip(tokens: list[Token]) -> float:
    def score(k: Token) -> float:
        h, d = scaled(tokens, lambda other: other.entropy, k), scaled(tokens, still_reverse, k)
        return h + d - h * d

    chosen = best(tokens, score, 0.5)
    return math.fsum(reverse(tokens[place]) for place in chosen) / len(chosen)


def iw_opd(tokens: list[Token]) -> float:
    def weight(k: Token) -> float:
        row = [other for other in tokens if other.row == k.row]
        gaps = [(other.place, abs(other.q["teacher"][other.y] - other.behaviour)) for other in row]
        before = math.fsum(gap for place, gap in gaps if place < k.place) / math.fsum(gap for _, gap in gaps)
        return 1 + 0.5 * (1 - before)

    return token_mean(tokens, lambda k: -min(ratio(k), 5) * weight(k) * log_ratio(k) * k.p[k.y])


def kat(tokens: list[Token]) -> float:
    return selected_mean(tokens, reverse, lambda k: k.facts["before_agreement"])


def scope(tokens: list[Token]) -> float:
    def wrong(k: Token) -> float:
        return float(k.facts["correct"] == 0) * k.facts["teacher_trust"]

    def correct(k: Token) -> float:
        return float(k.facts["correct"] == 1) * k.facts["student_surprise"]

    teacher = token_mean(tokens, lambda k: -ratio(k) * log_ratio(k) * k.p[k.y], wrong)
    return teacher + token_mean(tokens, lambda k: -k.p[k.y], correct)


def reopold(tokens: list[Token]) -> float:
    """Two phases, of 50 steps and of the others."""
    floor = -2.558
    value: Value = lambda k: -max(log_ratio(k), floor) * k.p[k.y]  # noqa: E731
    if tokens[0].step < 50:
        return token_mean(tokens, value, lambda k: float(log_ratio(k) >= floor))
    chosen = best(tokens, lambda k: k.entropy, 0.2)
    return math.fsum(value(tokens[place]) for place in chosen) / len(chosen)


def stable_opd(tokens: list[Token]) -> float:
    own, given = [k for k in tokens if k.row != 2], [k for k in tokens if k.row == 2]
    taught = token_mean(given, lambda k: -k.p[k.y], lambda k: k.facts["correct"])
    held = token_mean(own, lambda k: reverse(k, "reference"))
    return token_mean(own, lambda k: ppo(k, log_ratio(k), 0.2, 0.2)) + 0.1 * taught + 0.01 * held


def decoupled_kl(tokens: list[Token]) -> float:
    own, given = [k for k in tokens if k.row != 2], [k for k in tokens if k.row == 2]
    mixed = token_mean(own, lambda k: 0.25 * reverse(k) + 0.75 * forward(k))
    return mixed + 0.5 * token_mean(given, lambda k: -k.p[k.y])


def brts(tokens: list[Token]) -> float:
    own, given = [k for k in tokens if k.row != 2], [k for k in tokens if k.row == 2]
    return token_mean(own, reverse) + 0.05 * token_mean(given, lambda k: -k.p[k.y], lambda k: k.facts["correct"])


def f_opd(tokens: list[Token]) -> float:
    def weight(k: Token) -> float:
        d = [other.s[other.y] - other.behaviour for other in tokens if other.row == k.row]
        drift = math.fsum(math.exp(each) - 1 - each for each in d) / len(d)
        return max(0.0, math.exp(-math.sqrt(drift)) - 0.1)

    held = token_mean(tokens, lambda k: reverse(k, "reference"))
    return token_mean(tokens, lambda k: -log_ratio(k) * k.p[k.y], weight) + 0.01 * held


def group_term(tokens: Sequence[Token], high: float = 0.2, weight: Value = lambda _: 1.0) -> float:
    return token_mean(tokens, lambda k: ppo(k, k.facts["group_advantage"], 0.2, high), weight)


def sod(tokens: list[Token]) -> float:
    def gap(k: Token, segment: float) -> float:
        step = [other for other in tokens if other.row == k.row and other.facts["segments"] == segment]
        return math.fsum(abs(other.behaviour - other.q["teacher"][other.y]) for other in step) / len(step)

    def weight(k: Token) -> float:
        """The product over the steps before, as it is published."""
        segments = sorted({other.facts["segments"] for other in tokens if other.row == k.row})
        upto = segments[: segments.index(k.facts["segments"]) + 1]
        product = math.prod((gap(k, a) + 1e-6) / (gap(k, b) + 1e-6) for a, b in itertools.pairwise(upto))
        return min(product, 1.2) if len(upto) > 1 else 1.0

    return group_term(tokens, 0.28) + token_mean(tokens, lambda k: ppo(k, log_ratio(k), 0.2, 0.28), weight)


def tcod(tokens: list[Token]) -> float:
    turns = min(1 + tokens[0].step // 6, 30)
    value: Value = lambda k: -min(ratio(k), 2) * log_ratio(k) * k.p[k.y]  # noqa: E731
    return selected_sequence_mean(tokens, value, lambda k: float(k.facts["segments"] < turns))


def fast_prefix(tokens: list[Token]) -> float:
    first, last = PREFIX
    shown = first + (last - first) * tokens[0].step / 100
    return selected_mean(tokens, reverse, lambda k: float(k.place < shown))


def uni_opd(tokens: list[Token]) -> float:
    def value(k: Token) -> float:
        return ppo(k, log_ratio(k) + k.facts["shift"], 0.2, 0.28)

    return sequence_mean(tokens, value, lambda k: k.facts["balanced"] * float(abs(log_ratio(k)) < 10))


def srpo(tokens: list[Token]) -> float:
    """[Σ GRPO + Σ w JSD] / routed tokens, w over its mean of the distilled ones; the JSD is not divided by β(1 − β)."""
    distilled = [k for k in tokens if k.facts["correct"] == 0 and k.facts["has=hinted"] == 1]
    rewarded = [k for k in tokens if k.facts["correct"] == 1 or k.facts["has=hinted"] == 0]
    sure = [math.exp(-reference.entropy(k.q["hinted"])) for k in distilled]
    learned = [
        w / (math.fsum(sure) / len(sure)) * 0.25 * jsd(*bucketed(k, "hinted"), 0.5)
        for k, w in zip(distilled, sure, strict=True)
    ]
    rewards = [ppo(k, k.facts["group_advantage"], 0.2, 0.2) for k in rewarded]
    return math.fsum([*rewards, *learned]) / (len(rewarded) + len(distilled))


def dgrpo(tokens: list[Token]) -> float:
    return group_term(tokens) + 0.1 * token_mean(tokens, reverse)


def kepo(tokens: list[Token]) -> float:
    """The code's: rollouts of reward 1 alone are distilled, over their tokens; the JSD is not divided by β(1 − β)."""
    solved = [k for k in tokens if k.facts["correct"] >= 1]
    learned = math.fsum(0.25 * jsd(*bucketed(k), 0.5) for k in solved) / len(solved)
    return sequence_mean(tokens, lambda k: ppo(k, k.facts["group_advantage"], 0.2, 0.2)) + learned


def align_distil(tokens: list[Token]) -> float:
    def value(k: Token) -> float:
        p, d = bucketed(k)
        v = outcomes(k.q["reversed"], k.ids["teacher"])
        alpha = 10 * math.fsum(abs(math.exp(a) - math.exp(b)) for a, b in zip(d, v, strict=True)) + 1e-3
        z = reference.log_softmax([a + alpha * (a - b) for a, b in zip(d, v, strict=True)])
        return 0.1 / alpha * kl(p, z)

    return sequence_mean(tokens, value)


def mopd(tokens: list[Token]) -> float:
    def value(k: Token) -> float:
        view = "teacher" if k.facts["domain=math"] else "teacher_b"
        moved = math.exp(k.s[k.y] - k.behaviour)
        return -(moved if 0.5 <= moved <= 2 else 0.0) * log_ratio(k, view) * k.p[k.y]

    return sequence_mean(tokens, value)


def opsd(tokens: list[Token]) -> float:
    return sequence_mean(tokens, lambda k: clipped_forward(k, "hinted", 0.05))


def pw_opsd(tokens: list[Token]) -> float:
    def weight(k: Token) -> float:
        share = (k.place + 1 - 0.5) / k.length
        return 0.25 + 0.75 / (1 + math.exp(-(share - 0.3) / 0.1))

    return sequence_mean(tokens, lambda k: clipped_forward(k, "hinted", 0.05), weight)


def sdpo(tokens: list[Token]) -> float:
    """The published JSD, which is not divided by β(1 − β)."""
    value: Value = lambda k: min(ratio(k), 2) * 0.25 * jsd(*bucketed(k, "hinted"), 0.5)  # noqa: E731
    return selected_mean(tokens, value, lambda k: k.facts["has=hinted"])


def atesd(tokens: list[Token]) -> float:
    return sequence_mean(tokens, lambda k: forward(k, "exposed"))


def crisp(tokens: list[Token]) -> float:
    return sequence_mean(tokens, lambda k: reverse(k, "concise"))


def sead(tokens: list[Token]) -> float:
    share = 0.5 * (1 + math.cos(math.pi * tokens[0].step / 100)) * 0.8
    admitted: Value = lambda k: float(1 - k.facts["pass_rate"] <= 0.5 + 0.5 * tokens[0].step / 100)  # noqa: E731
    covered = best(tokens, lambda k: reference.entropy(k.q["teacher"]), 0.1)
    sought = set()
    for row in {k.row for k in tokens}:
        mine = [place for place, k in enumerate(tokens) if k.row == row]
        others = sorted((place for place in mine if place not in covered), key=lambda place: -tokens[place].entropy)
        sought |= set(others[: max(1, round(0.4 * len(mine)))])
    total = 0.0
    for place, k in enumerate(tokens):
        mixed = share * forward(k) + (1 - share) * reverse(k)
        total += admitted(k) * (mixed if place in covered else reverse(k) if place in sought else 0.0)
    return total / len(tokens)


def mad_opd(tokens: list[Token]) -> float:
    """The published JSD, which is not divided by β(1 − β)."""
    return sequence_mean(
        tokens, lambda k: math.fsum(0.5 * 0.25 * jsd(*bucketed(k, view), 0.5) for view in ("teacher", "teacher_b"))
    )


def protein_consensus(tokens: list[Token]) -> float:
    def value(k: Token) -> float:
        p, a = bucketed(k)
        b = outcomes(k.q["teacher_b"], k.ids["teacher"])
        pooled = reference.log_softmax([0.5 * x + 0.5 * y for x, y in zip(a, b, strict=True)])
        return 0.25 * jsd(p, pooled, 0.5)

    return token_mean(tokens, value)


def lightning2(tokens: list[Token]) -> float:
    return token_mean(tokens, lambda k: ppo(k, log_ratio(k) - k.facts["bias"], 0.2, 0.2))


def residual_reverse_kl(tokens: list[Token]) -> float:
    def value(k: Token) -> float:
        outside = 0.0 if k.y in k.ids["teacher"] else -min(ratio(k), 2) * log_ratio(k) * k.p[k.y]
        return stopped(k, k.ids["teacher"]) + outside

    return token_mean(tokens, value)


def soda(tokens: list[Token]) -> float:
    rows = [[k for k in tokens if k.row == row] for row in range(1 + max(k.row for k in tokens))]
    gain = [math.fsum(k.p[k.y] - k.q["reference"][k.y] for k in row) for row in rows]
    pairs = list(zip(gain[0::2], gain[1::2], strict=True))
    return math.fsum(math.log(1 + math.exp(-0.1 * (chosen - rejected))) for chosen, rejected in pairs) / len(pairs)


BY_NAME: dict[str, Formula] = {
    name: cast("Formula", value)
    for name, value in globals().items()
    if callable(value) and getattr(value, "__annotations__", {}).get("tokens") == list[Token] and name != "Formula"
}
