"""The demo's task: sums of three numbers, their hints, and solutions with the working written out.

Everything is drawn from seeds, so nothing is downloaded, and the right answer to every prompt is known.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import PromptError
from pipeline.grading.graders import MARKER
from pipeline.models.templates import render_prompt
from pipeline.settings.models import Demo
from pipeline.settings.views import Hint
from pipeline.storage import hashing
from pipeline.storage.rollouts import ROLLOUTS, TOKEN_COLUMNS
from pipeline.storage.shards import Writer

SMALLEST, LARGEST = 10, 99
"""Every number has two digits, so every prompt is as long as the others."""


def draw_sums(seed: int, count: int, hinted: bool = False) -> Iterator[dict[str, str]]:
    """Draw `count` different sums.

    Two seeds may have sums in common; the `prompts` stage keeps those of the evaluation out of training.

    Args:
        seed: of the draw.
        count: of sums.
        hinted: whether the question itself shows the hint.

    Returns:
        Rows of `question` (`17+48+25=?`), `answer` (`90`), `hint` (`17+48=65`: the first half of the working) and
        `domain` (`sums`).

    Raises:
        PromptError: there are not so many.
    """
    numbers = LARGEST - SMALLEST + 1
    if count > numbers**3:
        raise PromptError(f"sums: at most {numbers**3} different ones can be drawn, found `limit: {count}`.")
    # Of a permutation of all, so that a larger count adds sums and changes none.
    drawn = np.random.default_rng(seed).permutation(numbers**3)[:count]
    places = np.stack(np.unravel_index(drawn, (numbers,) * 3), axis=1) + SMALLEST
    rows = ({**_row(*map(int, place)), "domain": "sums"} for place in places)
    return ({**row, "question": show_hint(row)} for row in rows) if hinted else rows


def show_hint(row: dict[str, str]) -> str:
    """Write the question with its hint, as a view with `context: hint` shows it."""
    return Hint().template.format(prompt=row["question"], hint=row["hint"])


def _row(first: int, second: int, third: int) -> dict[str, str]:
    question = f"{first}+{second}+{third}=?"
    return {"question": question, "answer": str(first + second + third), "hint": f"{first}+{second}={first + second}"}


def write_solution(question: str, write_number: Callable[[int], int] = int) -> str:
    r"""Write the worked solution: `17+48+25=?` gives `17+48=65\n65+25=90\n#### 90`.

    Args:
        question: the sum.
        write_number: gives what is written down for a computed number; the working goes on from that.
    """
    first, second, third = (int(number) for number in question.removesuffix("=?").split("+"))
    half = write_number(first + second)
    whole = write_number(half + third)
    return f"{first}+{second}={half}\n{half}+{third}={whole}\n{MARKER} {whole}"


def make_slips(share: float, seed: int) -> Callable[[int], int]:
    """Make a function that replaces this share of a number's digits, each by another digit drawn evenly."""
    draw = np.random.default_rng(seed)

    def slip(number: int) -> int:
        digits = np.array([int(digit) for digit in str(number)])
        offsets = draw.integers(1, 10, len(digits)) * (draw.random(len(digits)) < share)
        return int("".join(map(str, (digits + offsets) % 10)))

    return slip


def write_examples(path: Path, tokenizer: Any, settings: Demo) -> None:
    """Write worked sums as a shard that training can read; nobody sampled them, so they have no log-probabilities."""
    rows = list(draw_sums(settings.seed, settings.examples))
    write_number = make_slips(settings.slips, settings.seed)
    has_hint = np.random.default_rng([settings.seed, 1]).random(len(rows)) < settings.hinted
    asked = [show_hint(row) if has else row["question"] for row, has in zip(rows, has_hint, strict=True)]
    prompts = [render_prompt(tokenizer, [{"role": "user", "content": question}]) for question in asked]
    responses = [
        [*tokenizer.encode(write_solution(row["question"], write_number)), tokenizer.eos_token_id] for row in rows
    ]
    columns = {
        "rollout_id": [hashing.digest(row["question"]) for row in rows],
        "prompt_ids": prompts,
        "response_ids": responses,
    }
    schema = pa.schema([ROLLOUTS.field(name) for name in TOKEN_COLUMNS])
    identity = {"made": "worked sums", "seed": settings.seed, "count": settings.examples, "slips": settings.slips}
    identity |= {"hinted": settings.hinted} if settings.hinted else {}
    with Writer(path, schema, identity, {}) as writer:
        writer.write(pa.table(columns, schema))
