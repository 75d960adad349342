"""What a checkpoint can do: accuracy when it takes the likeliest token and when it samples, and how it writes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import GradeError


@dataclass(frozen=True)
class Answered:
    """The graded responses to the evaluation prompts, prompt by prompt.

    Attributes:
        correct: of each response, None where it could not be graded.
        lengths: of each response, tokens.
        finish_reasons: `stop` or `length`.
        repetitions: of each response, what `repetition` gives.
    """

    correct: Sequence[bool | None]
    lengths: np.ndarray
    finish_reasons: Sequence[str]
    repetitions: Sequence[float]


def compute_metrics(checkpoint: str, greedy: Answered, sampled: Answered, k: int) -> dict[str, Any]:
    """Compute the flat record of a metrics file.

    `greedy` and `avg_at_k` are mean accuracies with their standard errors over prompts, `pass_at_k` is the share of
    prompts with a correct response among the k, all of what has a grade: `graded` says how many of the `prompts` have
    (without an answer there is none). `mean_length` (tokens), `truncated` and `repetition` are shares and means over
    the sampled responses.

    Raises:
        GradeError: no response could be graded.
    """
    one, every = _list_grades(greedy), _list_grades(sampled).reshape(-1, k)
    many = every[~np.isnan(every).all(axis=1)]
    one = one[~np.isnan(one)]
    if not len(one) or not len(many):
        raise GradeError(
            "no response to the evaluation prompts could be graded: have they answers "
            "(prompts.sources.*.fields.answer), and does grade.grader work?"
        )
    means = np.nanmean(many, axis=1)
    return {
        "checkpoint": checkpoint,
        "greedy": float(one.mean()),
        "greedy_se": _standard_error(one),
        "avg_at_k": float(means.mean()),
        "avg_at_k_se": _standard_error(means),
        "pass_at_k": float((np.nanmax(many, axis=1) > 0).mean()),
        "k": k,
        "prompts": len(every),
        "graded": len(one),
        "mean_length": float(sampled.lengths.mean()),
        "truncated": float(np.mean([reason == "length" for reason in sampled.finish_reasons])),
        "repetition": float(np.mean(sampled.repetitions)),
    }


Z = 1.96
"""Standard errors on either side of a mean that hold 95 % of the cases."""


def find_interval(share: float, standard_error: float, count: int) -> tuple[float, float]:
    """Find the 95 % interval of an accuracy; it is never a point, also where all prompts are answered right.

    It is Wilson's (1927) for as many independent trials as would have this standard error: k samples of one prompt say
    less than k prompts. Without any spread each prompt counts as one.

    Args:
        share: the accuracy.
        standard_error: of it, over prompts.
        count: prompts.
    """
    spread = share * (1 - share)
    trials = spread / standard_error**2 if spread and standard_error else count
    middle = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    half = Z / (1 + Z**2 / trials) * math.sqrt(spread / trials + Z**2 / (4 * trials**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def find_change(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> tuple[float, float]:
    """Find the 95 % interval of the change of an accuracy between two checkpoints' metrics.

    It is Newcombe's hybrid of both intervals (Statistics in Medicine 17, 1998, method 10), which takes the checkpoints
    for independent: on shared prompts it is rather too wide.
    """
    (old, old_low, old_high), (new, new_low, new_high) = (
        (each[key], *find_interval(each[key], each[f"{key}_se"], each["graded"])) for each in (before, after)
    )
    down, up = math.hypot(new - new_low, old_high - old), math.hypot(new_high - new, old - old_low)
    return new - old - down, new - old + up


def find_degeneration(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Say what in a checkpoint's metrics, against those of the one before, shows that its writing collapses.

    Source: length, truncation and repetition as in Stable-OPD (arXiv:2604.08527); the thresholds are ours.
    """
    found = []
    if after["mean_length"] > 1.5 * before["mean_length"]:
        grown = f"{after['mean_length']:.1f} tokens long, {before['mean_length']:.1f} before"
        found.append(f"responses are {grown} (alarm above 1.5 times).")
    for key, what in (("truncated", "of the responses are cut off"), ("repetition", "of the 3-grams are repeats")):
        if after[key] > before[key] + 0.1:
            found.append(f"{after[key]:.0%} {what}, {before[key]:.0%} before (alarm above 10 points more).")
    return found


def repetition(ids: np.ndarray, n: int = 3) -> float:
    """Share of a response's n-grams that stood in it before; 0 where it has fewer than two.

    Source: the 3-gram repeat ratio of arXiv:2605.11182, a signature of collapse.
    """
    count = len(ids) - n + 1
    if count < 2:
        return 0.0
    return 1 - len({tuple(ids[start : start + n]) for start in range(count)}) / count


def _list_grades(answered: Answered) -> np.ndarray:
    """1 for right, 0 for wrong, NaN where there is no grade: that says nothing of the checkpoint."""
    return np.array([np.nan if correct is None else float(correct) for correct in answered.correct])


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
