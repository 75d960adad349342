"""Files of prompts that were damaged or filled at random, against a reader that is not ours, or what was written.

A trial makes one file from its seed and reads it as a source. Right is an error of ours that names the file, or
mistakes that each name file and row, or values that pydantic's JSON reader (Rust) finds too, or that Python wrote.
"""

import csv
import decimal
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic_core
import pytest

from pipeline.errors import PromptError
from pipeline.prompts.sources import Row, read_source
from pipeline.settings.prompts import Fields, Source
from tests.campaigns import trials

pytestmark = [pytest.mark.slow, pytest.mark.campaign]

SEEDS = trials(5000)
TEXTS = [
    "x",
    "007",
    "4.10",
    "é",
    "a\u2028b",
    "[1]",
    'say "hi"',
    "a,b",
    "two\nlines",
    "\ufeff",
    "0" * 99,
    "None",
    "名前",
]
NUMBERS = ["0", "-0", "4.10", "1e3", "1E400", "12345678901234567890123", "0.1", "7.0", "-3.25e-7", "9" * 4300]
TALK = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
BITS = [
    "[",
    "]",
    "{",
    "}",
    '"',
    ":",
    ",",
    "\\u0000",
    "\\ud83d",
    "NaN",
    "\r",
    "\n",
    "\x00",
    "1e9",
    "é",
    '"answer":',
    "[" * 2000,
]

Made = tuple[Path, Callable[[Row], bool] | None]
"""A file, and whether a row that was read from it is right; None where nobody can tell, since bytes were damaged."""


def value(draw: random.Random) -> str:
    """A value as JSON spells it."""
    return draw.choice([json.dumps(draw.choice(TEXTS)), draw.choice(NUMBERS), "null", "true", "[1]", json.dumps(TALK)])


def damaged(draw: random.Random, content: bytes) -> bytes:
    """A few bytes flipped, cut, doubled, or replaced by what means something in such a file."""
    for _ in range(draw.randint(0, 3)):
        place, length = draw.randrange(len(content) + 1), draw.choice([0, 1, 1, 5, 200])
        between = draw.choice([b"", bytes([draw.randrange(256)]), draw.choice(BITS).encode(), content[:length]])
        content = content[:place] + between + content[place + length :]
    return content


def json_rows(draw: random.Random) -> list[str]:
    rows = []
    for _ in range(draw.randint(1, 6)):
        keys = draw.sample(["prompt", "answer", "more"], k=3) + draw.choices(["prompt", "more"], k=draw.randint(0, 1))
        rows.append("{" + ", ".join(f'"{key}": {value(draw)}' for key in keys) + "}")
    return rows


def json_lines(draw: random.Random, folder: Path) -> Made:
    path = folder / "train.jsonl"
    path.write_bytes(damaged(draw, "".join(f"{row}\n" for row in json_rows(draw)).encode()))
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return path, lambda row: says(pydantic_core.from_json(lines[number_of(row) - 1]), row)


def json_list(draw: random.Random, folder: Path) -> Made:
    path = folder / "train.json"
    path.write_bytes(damaged(draw, f"[{', '.join(json_rows(draw))}]".encode()))
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    is_list = content.lstrip().startswith(b"[")

    def is_right(row: Row) -> bool:
        whole = content if is_list else content.split(b"\n")[number_of(row) - 1]
        found = pydantic_core.from_json(whole)
        return says(found[number_of(row) - 1] if is_list else found, row)

    return path, is_right


def csv_table(draw: random.Random, folder: Path) -> Made:
    path = folder / "train.csv"
    rows = [[draw.choice(TEXTS) + str(number), draw.choice([*TEXTS, *NUMBERS])] for number in range(4)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "answer"], *rows])
    if draw.random() < 0.5:
        path.write_bytes(damaged(draw, path.read_bytes()))
        return path, None
    return path, lambda row: [row.messages[0]["content"], row.answer] in rows


def parquet(draw: random.Random, folder: Path) -> Made:
    path, count = folder / "train.parquet", draw.randint(1, 40)
    kind, spelled = draw.choice(KINDS)
    drawn = [draw.uniform(-1, 1) * 10 ** draw.randint(-3, 9) for _ in range(count)]
    answers = pa.array([None if draw.random() < 0.1 else spelled(number) for number in drawn], kind)
    prompts = pa.array([f"{draw.choice(TEXTS)} {number}" for number in range(count)])
    options = {"compression": draw.choice(["none", "snappy", "zstd"]), "row_group_size": draw.randint(1, 50)}
    pq.write_table(
        pa.table({"prompt": prompts, "answer": answers}), path, use_dictionary=draw.random() < 0.5, **options
    )
    if draw.random() < 0.5:
        path.write_bytes(damaged(draw, path.read_bytes()))
        return path, None
    return path, lambda row: is_spelled(row.answer, answers[number_of(row) - 1].as_py(), kind)


KINDS: list[tuple[pa.DataType, Callable[[float], Any]]] = [
    (pa.float32(), float),
    (pa.float64(), float),
    (pa.float16(), lambda number: np.float16(number % 1000)),
    (pa.int64(), lambda number: int(number * 10**9)),
    (pa.decimal128(30, 9), lambda number: decimal.Decimal(f"{number:.9f}")),
    (pa.string(), lambda number: f"{number:.3f}"),
    (pa.timestamp("ms"), lambda number: int(number * 10**8)),
]


def is_spelled(answer: str | None, expected: Any, kind: pa.DataType) -> bool:
    """Whether a text gives the value back in its own type, without the digits that a wider type adds."""
    if answer is None or expected is None or kind == pa.string():
        return answer == expected
    if pa.types.is_floating(kind):
        exact = {16: np.float16, 32: np.float32, 64: np.float64}[kind.bit_width]
        digits = len(re.sub("[^0-9]", "", answer.partition("e")[0]).lstrip("0"))
        return exact(answer) == exact(expected) and (digits <= 17 if kind == pa.float64() else digits <= 11)
    return decimal.Decimal(answer) == decimal.Decimal(expected)


def number_of(row: Row) -> int:
    return int(row.place.rpartition(" ")[2])


def says(found: Any, row: Row) -> bool:
    """Whether JSON that another reader read has what the row has."""
    prompt, answer = found["prompt"], found["answer"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if list(row.messages) != messages:
        return False
    if answer is None or isinstance(answer, str):
        return row.answer == answer
    return isinstance(answer, int | float) and type(answer)(decimal.Decimal(row.answer or "")) == answer


MAKERS = (json_lines, json_list, csv_table, parquet)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    datasets = pytest.importorskip("datasets")
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, str(tmp_path / "cache" / name))
    return tmp_path


def try_one(seed: int, folder: Path) -> tuple[int, int]:
    """Make a file and read it; how many rows were read, and how many were refused."""
    draw = random.Random(seed)
    path, is_right = draw.choice(MAKERS)(draw, folder)
    by_path = path.suffix in (".jsonl", ".parquet") and draw.random() < 0.8
    fields = Fields(answer="answer")
    in_folder = Source(split="sft", dataset=str(folder), fields=fields)
    source = Source(split="sft", path=str(path), fields=fields) if by_path else in_folder
    try:
        rows, mistakes = read_source(source, "s")
    except PromptError as error:
        if str(path if by_path else folder) in str(error):
            return 0, 1
        raise
    named = re.compile(rf"{re.escape(str(path if by_path else folder))}.* (line|row|item) \d+: ")
    assert all(named.match(mistake) for mistake in mistakes), f"trial {seed}: {mistakes}"
    assert is_right is None or all(map(is_right, rows)), f"trial {seed}: {rows}"
    return len(rows), len(mistakes)


@pytest.mark.parametrize("part", range(5))
def test_a_file_is_read_as_others_read_it_or_named(folders: Path, part: int) -> None:
    read, refused = 0, 0
    for seed in list(SEEDS)[part::5]:
        folder = folders / str(seed)
        folder.mkdir()
        found = try_one(seed, folder)
        read, refused = read + found[0], refused + found[1]
    assert read > len(SEEDS) / 5
    assert refused > len(SEEDS) / 20
