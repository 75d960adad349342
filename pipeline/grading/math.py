"""`math`: whether a response's final answer equals the gold answer as mathematics, by math-verify.

Runs in a grader's process alone: math-verify is slow to import, and can take for ever over a large power.
"""

import logging
import re

from math_verify import parse, verify

from pipeline.grading.graders import find_final_answer

_DELIMITED = re.compile(r"(?<!\\)\$|\\boxed|\\\(|\\\[")
_MONEY = re.compile(r"\\text\s*\{\s*\\\$\s*([^{}]*)\}|\\\$")
_UNITS = re.compile(r"(?<=[0-9}])\s*(\\%|%|\^\s*\{?\\circ\}?|\\text\s*\{[^{}]*\})")
# It warns that its own clock is off. The pool's is on: math-verify's calls what takes too long wrong, ours says so.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def grade_math(response: str, answer: str) -> bool:
    r"""Tell whether they agree; the response's answer is a plain number, or LaTeX in `$…$`, `\boxed{}` and the like.

    Signs of money and thin spaces are left out on both sides. A unit behind a number, per cent and degrees among them,
    may stand on one side alone.

    Raises:
        ValueError: the answer holds nothing that math-verify can read.
    """
    gold_text, found_text = _strip(answer), _strip(_find_answer(response))
    golds = [_parse_gold(text) for text in dict.fromkeys((gold_text, _UNITS.sub("", gold_text)))]
    if not any(golds):
        raise ValueError(f"math-verify cannot read the answer {answer!r}")
    texts = dict.fromkeys((found_text, _UNITS.sub("", found_text)))
    found = [parse(text, parsing_timeout=0) for text in texts]
    return any(verify(gold, one, timeout_seconds=0) for gold in golds for one in found)


def _find_answer(response: str) -> str:
    r"""Take the response from its last box on; without a box what follows `####`, which may also be a heading."""
    _, box, after = response.rpartition(r"\boxed")
    return box + after if box else find_final_answer(response)


def _strip(text: str) -> str:
    r"""Leave out `\$` and the thin spaces of `32,\!348` and `100{,}000`, which math-verify takes for delimiters."""
    return _MONEY.sub(r"\1", text).replace(r"\!", "").replace("{,}", ",")


def _parse_gold(text: str) -> list:
    """Read a gold answer; without delimiters, math-verify looks for a number alone and would read 2 out of (1, 2]."""
    return parse(text if _DELIMITED.search(text) else f"${text}$", parsing_timeout=0)
