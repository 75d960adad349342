"""Rows of files, as they are written there: no digit is lost, no key is taken twice, no unreadable row is passed over.

The one place where files of prompts come in. Every row comes with the place where a person finds it; one that cannot
be read comes as the `UnusableError` that says why, so that all of them can be named at once.
"""

import codecs
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PromptError

MOST_DIGITS = 4300
"""Of an integer; Python reads none that is longer, and a grader is Python."""

SYSTEM = "system"
"""A field that is not passed over where no setting names it: without its system message a row is another prompt."""

_LONGEST_CELL = 1 << 30
"""Characters of a cell of CSV; the module's own limit is 131,072."""

_FORMATS = {
    b"\x1f\x8b": "gzip'ed",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ": "packed by xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "Parquet",
    codecs.BOM_UTF16_LE: "in UTF-16",
    codecs.BOM_UTF16_BE: "in UTF-16",
}
"""What a file is that begins so and shall be text; one message says more than one for every line."""


class UnusableError(Exception):
    """Why one row cannot be used."""


class ColumnError(PromptError):
    """A table has not the columns that `fields` names, or has one of them twice."""


@dataclass(frozen=True)
class Number:
    """A number as its file spells it: `4.10` has its zero, and thirty digits are thirty digits."""

    written: str


Found = dict[str, Any] | UnusableError

FoundRows = Iterator[tuple[str, Found]]
"""Each row's place, and its fields or why it has none."""


def read_json_lines(path: Path, name: str) -> FoundRows:
    """Read a file with one JSON object on each line; a byte order mark at its beginning is no part of it.

    Args:
        path: of the file.
        name: what people call it.

    Raises:
        PromptError: the file as a whole is no text, or cannot be read.
    """
    _check_is_text(path, name)
    with path.open("rb") as file:  # as bytes: a line ends at \n alone, and one that is not UTF-8 stays one mistake
        for number, line in enumerate(file, 1):
            yield f"{name}, line {number}", _read_line(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)


def read_json(path: Path, name: str) -> FoundRows:
    """Read a file that is one JSON list of objects, or else has an object on each line.

    Args:
        path: of the file.
        name: what people call it.

    Raises:
        PromptError: the file as a whole is no text or no JSON, or cannot be read.
    """
    _check_is_text(path, name)
    with path.open("rb") as file:
        is_list = file.read(1024).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
    if not is_list:
        yield from read_json_lines(path, name)
        return
    try:
        rows = _parse(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    except UnusableError as mistake:
        raise PromptError(f"{name} {mistake}.") from None
    for number, row in enumerate(rows, 1):
        yield f"{name}, item {number}", _object_or_mistake(row)


def read_csv(path: Path, name: str, delimiter: str = ",") -> FoundRows:
    """Read a file of comma-separated values whose first line names the columns; every cell is text, an empty one null.

    Args:
        path: of the file.
        name: what people call it.
        delimiter: between cells.

    Raises:
        PromptError: the file as a whole cannot be read, or names a column twice.
    """
    _check_is_text(path, name)
    csv.field_size_limit(_LONGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter=delimiter, strict=True)
            header = next(lines, [])
            check_names(header, name)
            for cells in lines:
                yield f"{name}, line {lines.line_num}", _named(header, cells)
    except UnicodeDecodeError as error:
        raise PromptError(f"{name} is not UTF-8 ({error.reason}).") from None
    except csv.Error as error:
        raise PromptError(f"{name} is not CSV ({error}).") from None


def read_parquet(path: Path, name: str, columns: Sequence[str]) -> FoundRows:
    """Read some columns of a Parquet file.

    Args:
        path: of the file.
        name: what people call it.
        columns: that are read.

    Raises:
        PromptError: the file as a whole cannot be read, or lacks a column.
    """
    try:
        with pq.ParquetFile(path) as file:
            read = choose_columns(columns, file.schema_arrow.names, name)
            yield from read_batches(file.iter_batches(batch_size=1024, columns=read), name)
    except (OSError, ValueError, OverflowError, MemoryError, pa.ArrowException) as error:
        raise PromptError(f"{name} cannot be read as Parquet: {first_line(error)}") from None


def read_batches(batches: Iterable[pa.RecordBatch | pa.Table], name: str) -> FoundRows:
    """Read rows of Arrow; numbers have the fewest digits that tell them apart in their own type.

    Args:
        batches: some rows each.
        name: what people call their file.
    """
    number = 0
    for batch in batches:
        for row in _spelled_rows(batch):
            number += 1
            yield f"{name}, row {number}", row


def choose_columns(wanted: Sequence[str], found: Sequence[str], name: str) -> list[str]:
    """Choose the columns of a table to read: those that are wanted, and `SYSTEM`, of which a row says if it is meant.

    Raises:
        ColumnError: the table lacks a column, or has two of one name.
    """
    if missing := [column for column in wanted if column not in found]:
        raise ColumnError(f"{name} has no column {', '.join(missing)}; it has {', '.join(found)}.")
    check_names([column for column in found if column in wanted], name)
    return [*wanted, *({SYSTEM} & {*found} - {*wanted})]


def check_names(columns: Sequence[str], name: str) -> None:
    """Refuse two columns of one name: either could be meant.

    Raises:
        ColumnError: names the column.
    """
    if twice := next((column for column in columns if columns.count(column) > 1), None):
        raise ColumnError(f"{name} has more than one column `{twice}`: either could be meant. Rename one.")


def first_line(error: BaseException) -> str:
    """Give the first line of what an error says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def describe_kind(value: Any) -> str:
    """Say what a value is, as a person who wrote JSON would say it."""
    names = {bool: "true or false", Number: "a number", str: "text", dict: "an object", list: "a list"}
    return "null" if value is None else names.get(type(value), f"of type {type(value).__name__}")


def _check_is_text(path: Path, name: str) -> None:
    with path.open("rb") as file:
        beginning = file.read(8)
    what = next((what for mark, what in _FORMATS.items() if beginning.startswith(mark)), None)
    if what is not None:
        raise PromptError(f"{name} is {what}, where text in UTF-8 is expected: unpack or convert it first.")


def _read_line(line: bytes) -> Found:
    if not line.strip():
        return UnusableError("is blank")
    try:
        return _object_or_mistake(_parse(line))
    except UnusableError as mistake:
        is_cut = not line.endswith(b"\n") and "JSON" in str(mistake)
        return UnusableError(f"{mistake}; the line has no end: is the file cut off?") if is_cut else mistake


def _parse(text: bytes) -> Any:
    try:
        return json.loads(
            text.decode(),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=Number,
            parse_constant=_no_number,
        )
    except UnicodeDecodeError as error:
        raise UnusableError(f"is not UTF-8 ({error.reason} at byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise UnusableError(f"is not JSON ({error.msg} at character {error.pos + 1})") from None
    except RecursionError:
        raise UnusableError("is nested too deeply to be read") from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs; JSON leaves open which of two equal keys counts, and taking one would be a guess."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise UnusableError(f"has the key `{next(key for key in keys if keys.count(key) > 1)}` more than once")
    return row


def _integer(digits: str) -> Number:
    if len(digits) > MOST_DIGITS:
        raise UnusableError(f"has an integer of {len(digits)} digits, {MOST_DIGITS} are the most: write it as text")
    return Number(digits)


def _no_number(constant: str) -> NoReturn:
    raise UnusableError(f"has {constant}, which is not JSON")


def _object_or_mistake(row: Any) -> Found:
    return row if isinstance(row, dict) else UnusableError(f"is {describe_kind(row)}, where an object is expected")


def _named(header: Sequence[str], cells: Sequence[str]) -> Found:
    if not cells:
        return UnusableError("is blank")
    if len(cells) != len(header):
        return UnusableError(f"has {len(cells)} cells, where the first line names {len(header)} columns")
    return {column: cell or None for column, cell in zip(header, cells, strict=True)}


def _spelled_rows(batch: pa.RecordBatch | pa.Table) -> Iterator[Found]:
    try:
        columns = [_spelled(column) for column in batch.columns]
    except (ValueError, OverflowError, pa.ArrowException) as error:
        # A date beyond Python's, or text that is not UTF-8: one value spoils its batch, and its row shall be named.
        if batch.num_rows == 1:
            yield UnusableError(f"has a value that cannot be read ({first_line(error)})")
        else:
            for row in range(batch.num_rows):
                yield from _spelled_rows(batch.slice(row, 1))
        return
    yield from (dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True))


def _spelled(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """List a column's values, its numbers spelled: as Python's a float32 4.1 would be 4.099999904632568."""
    kind, values = column.type, column.to_pylist()
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_floating(kind):
        return [None if value is None else Number(_spell_float(float(value), kind.bit_width)) for value in values]
    if pa.types.is_integer(kind):
        return [None if value is None else Number(str(value)) for value in values]
    if pa.types.is_decimal(kind):
        return [None if value is None else Number(f"{value:f}") for value in values]
    return values


def _spell_float(value: float, bits: int) -> str:
    """Spell a number by the fewest digits that give it back in its type; a whole one by all of its digits."""
    exact = {16: np.float16, 32: np.float32, 64: np.float64}[bits]
    return str(value) if value.is_integer() and abs(value) < 1e16 else str(exact(value))
