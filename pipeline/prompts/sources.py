"""Sources of prompts: rows of files and data sets, each checked, each known by the place where a person finds it."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PromptError
from pipeline.settings.prompts import Fields, Source

SUMS = Fields(prompt="question", answer="answer", hint="hint", domain="domain")
"""The fields of the demo's rows."""

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Row:
    """One usable row of a source.

    Attributes:
        place: the file and the line (JSONL) or row (others), both counted from 1.
        messages: {role, content}; the source's system message is put in, the last one is the user's.
        answer: the gold answer, without what `answer_after` cuts off.
        hint: privileged information.
        domain: the row's own, or the source's.
    """

    place: str
    messages: tuple[dict[str, str], ...]
    answer: str | None
    hint: str | None
    domain: str


class _UnusableError(Exception):
    """Why one row cannot be used."""


def read_source(source: Source, setting: str) -> tuple[list[Row], list[str]]:
    """Read a source to its end or its `limit`.

    Args:
        source: where the rows are and which field holds what.
        setting: the source's name in params.yaml, for errors: `prompts.sources.0`.

    Returns:
        The usable rows in the source's order, and of each other row its place and what is wrong with it.

    Raises:
        PromptError: the source as a whole cannot be read, lacks a column, or has no rows.
    """
    rows, mistakes = [], []
    for place, found in itertools.islice(_found(source, setting), source.limit):
        try:
            rows.append(_checked(source, place, found))
        except _UnusableError as mistake:
            mistakes.append(f"{place}: {mistake}")
    if not rows and not mistakes:
        raise PromptError(f"{setting} ({_name(source)}) has no rows.")
    return rows, mistakes


def _name(source: Source) -> str:
    return source.path or source.dataset or f"sums {source.sums}"


def _fields(source: Source) -> Fields:
    return source.fields if source.sums is None else SUMS


def _columns(source: Source) -> list[str]:
    fields = _fields(source)
    named = (fields.prompt, fields.answer, fields.hint, fields.domain)
    return list(dict.fromkeys(name for name in named if name is not None))


def _found(source: Source, setting: str) -> Iterator[tuple[str, Any]]:
    """Find each row's place and its fields; of a JSONL file the line itself, which may be anything."""
    if source.sums is not None:
        # The demo brings its task along; nobody else needs it.
        from pipeline.demo import task

        assert source.limit is not None
        drawn = enumerate(task.draw_sums(source.sums, source.limit, source.hinted), 1)
        domain = {"domain": source.domain} if "domain" in source.model_fields_set else {}
        return ((f"{_name(source)}, number {number}", row | domain) for number, row in drawn)
    if source.dataset is not None:
        return _dataset(source, source.dataset, setting)
    path = Path(source.path or "")
    if not path.is_file():
        raise PromptError(f"{setting}.path: {path} is missing or no file; it is looked for from {Path.cwd()}.")
    match path.suffix:
        case ".jsonl":
            return _jsonl(path)
        case ".parquet":
            return _parquet(path, source, setting)
    raise PromptError(f"{setting}.path: a .jsonl or .parquet file is expected, found {path}.")


def _jsonl(path: Path) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as file:  # as bytes: a line ends at \n alone, and one that is not UTF-8 stays one mistake
        for number, line in enumerate(file, 1):
            yield f"{path}, line {number}", line


def _parquet(path: Path, source: Source, setting: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with pq.ParquetFile(path) as file:
            _need(source, setting, file.schema_arrow.names)
            batches = file.iter_batches(batch_size=1024, columns=_columns(source))
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise PromptError(f"{setting}.path: {path} cannot be read as Parquet: {_first_line(error)}") from None


def _dataset(source: Source, name: str, setting: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # Slow to import, and needed by this kind of source alone.
    import datasets
    from datasets.exceptions import DatasetsError

    location, _, revision = (name, "", "") if Path(name).is_dir() else name.partition("@")
    if not Path(name).is_dir() and not revision:
        raise PromptError(
            f"{setting}.dataset: {name} is no folder, and a data set of the Hugging Face Hub needs a revision "
            f"(`{name}@main`, or better a commit): without one, equal settings can mean other rows."
        )
    try:
        table: Any = datasets.load_dataset(
            location, source.subset, split=source.dataset_split, revision=revision or None
        )
    except (OSError, ValueError, DatasetsError) as error:
        raise PromptError(f"{setting}.dataset: {name} cannot be read: {_first_line(error)}") from None
    _need(source, setting, table.column_names)
    for number, row in enumerate(table.select_columns(_columns(source)), 1):
        yield f"{name} ({source.dataset_split}), row {number}", row


def _need(source: Source, setting: str, found: Sequence[str]) -> None:
    missing = [name for name in _columns(source) if name not in found]
    if missing:
        raise PromptError(
            f"{setting}.fields: {_name(source)} has no column {', '.join(missing)}; it has {', '.join(found)}."
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _checked(source: Source, place: str, found: Any) -> Row:
    fields = _fields(source)
    row = _parsed(found) if isinstance(found, bytes) else found
    missing = [f"`{name}`" for name in _columns(source) if name not in row]
    if missing:
        raise _UnusableError(
            f"lacks {', '.join(missing)}; it has {', '.join(row) or 'nothing'} (write null for unknown)"
        )
    return Row(
        place,
        _messages(row[fields.prompt], fields.prompt, source.system),
        None if fields.answer is None else _answer(row[fields.answer], fields.answer, source.answer_after),
        None if fields.hint is None or row[fields.hint] is None else _text(row[fields.hint], fields.hint),
        source.domain if fields.domain is None else _text(row[fields.domain], fields.domain),
    )


def _parsed(line: bytes) -> dict[str, Any]:
    if not line.strip():
        raise _UnusableError("is blank")
    try:
        row = json.loads(line, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise _UnusableError(f"is not UTF-8 ({error.reason} at byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        ending = "" if line.endswith(b"\n") else "; the line has no end: is the file cut off?"
        raise _UnusableError(f"is not JSON ({error.msg} at character {error.colno}){ending}") from None
    if not isinstance(row, dict):
        raise _UnusableError(f"is {_kind(row)}, where an object is expected")
    return row


def _no_number(constant: str) -> NoReturn:
    raise _UnusableError(f"has {constant}, which is not JSON")


def _messages(prompt: Any, field: str, system: str | None) -> tuple[dict[str, str], ...]:
    if not isinstance(prompt, list):
        messages = [{"role": "user", "content": _text(prompt, field)}]
    elif not prompt:
        raise _UnusableError(f"`{field}` is an empty list")
    else:
        messages = [_message(message, f"{field}[{number}]") for number, message in enumerate(prompt)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    for number, message in enumerate(messages):
        if message["role"] == "system" and number > 0:
            why = " (the source's `system` is put there)" if system is not None else ""
            raise _UnusableError(f"`{field}` has a system message that is not the first{why}")
    if messages[-1]["role"] != "user":
        raise _UnusableError(f"`{field}` ends with a message of role {messages[-1]['role']}, where user is expected")
    return tuple(messages)


def _message(message: Any, field: str) -> dict[str, str]:
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise _UnusableError(f"`{field}` is {_kind(message)}, where {{role, content}} is expected")
    # Parquet gives every message all keys that any has; a key that is null here was not written.
    others = [key for key, value in message.items() if key not in ("role", "content") and value is not None]
    if others:
        raise _UnusableError(f"`{field}` also has {', '.join(others)}, which no chat template would be given")
    if message["role"] not in _ROLES:
        raise _UnusableError(f"`{field}.role` is {message['role']!r}, where one of {', '.join(_ROLES)} is expected")
    return {"role": message["role"], "content": _text(message["content"], f"{field}.content")}


def _answer(value: Any, field: str, after: str | None) -> str | None:
    if value is None:
        return None
    if after is not None:
        text = _text(value, field)
        if after not in text:
            raise _UnusableError(f"`{field}` has no `{after}`, after which the answer is expected (`answer_after`)")
        return _text(text.rpartition(after)[2].strip(), f"{field}, after `{after}`,")
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise _UnusableError(f"`{field}` is {value}, where a finite number is expected")
        return str(value)
    if not isinstance(value, str):
        raise _UnusableError(f"`{field}` is {_kind(value)}, where text, a number or null is expected")
    return _text(value, field)


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise _UnusableError(f"`{field}` is {_kind(value)}, where text is expected")
    if not value.strip():
        raise _UnusableError(f"`{field}` is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _UnusableError(f"`{field}` has half a surrogate pair, which is no text") from None
    return value


def _kind(value: Any) -> str:
    """Say what a value is, as a person who wrote JSON would say it."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", dict: "an object", list: "a list"}
    return "null" if value is None else names.get(type(value), f"of type {type(value).__name__}")
