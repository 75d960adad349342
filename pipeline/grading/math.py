"""`math`: whether a response's final answer equals the gold answer as mathematics, by math-verify.

Runs in a grader's process alone: math-verify is slow to import, and can take for ever over a large power.
"""

import logging
import re

from math_verify import parse, verify

from pipeline.grading.graders import find_final_answer

_DELIMITED = re.compile(r"\$|\\boxed|\\\(|\\\[")
# It warns that its own clock is off. The pool's is on: math-verify's calls what takes too long wrong, ours says so.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def grade_math(response: str, answer: str) -> bool:
    r"""Tell whether they agree; the response's answer is a plain number, or LaTeX in `$…$`, `\boxed{}` and the like.

    Raises:
        ValueError: the answer holds nothing that math-verify can read.
    """
    # Without delimiters, math-verify looks for a number alone and would read 2 out of (1, 2].
    gold = parse(answer if _DELIMITED.search(answer) else f"${answer}$", parsing_timeout=0)
    if not gold:
        raise ValueError(f"math-verify cannot read the answer {answer!r}")
    found = parse(find_final_answer(response), parsing_timeout=0)
    return verify(gold, found, timeout_seconds=0)
