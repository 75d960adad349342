"""Sources of prompts: rows of files and data sets, each checked, each known by the place where a person finds it."""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PromptError
from pipeline.prompts.data_sets import read_data_set
from pipeline.prompts.files import (
    SYSTEM,
    ColumnError,
    FoundRows,
    Number,
    UnusableError,
    describe_kind,
    first_line,
    read_json_lines,
    read_parquet,
)
from pipeline.settings.prompts import Fields, Source

SUMS = Fields(prompt="question", answer="answer", hint="hint", domain="domain")
"""The fields of the demo's rows."""

_ROLES = ("system", "user", "assistant")

_MESSAGES = re.compile(r"""\s*\[?\s*\{\s*(["'])(role|content|from|value|messages|conversations)\1\s*:""")
"""Text that begins so is a list of messages that somebody wrote out."""

_NO_NUMBERS = ("nan", "inf", "-inf")


@dataclass(frozen=True)
class Row:
    """One usable row of a source.

    Attributes:
        place: the file and the line (JSONL) or row (others), both counted from 1.
        messages: {role, content}; the source's system message is put in, the last one is the user's.
        answer: the gold answer, without what `answer_after` cuts off; a number has the digits of its file.
        hint: privileged information.
        domain: the row's own, or the source's.
    """

    place: str
    messages: tuple[dict[str, str], ...]
    answer: str | None
    hint: str | None
    domain: str


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
    origin = next(name for name in ("path", "dataset", "sums") if getattr(source, name) is not None)
    try:
        for place, found in itertools.islice(_find_rows(source), source.limit):
            try:
                rows.append(_checked(source, place, found))
            except UnusableError as mistake:
                mistakes.append(f"{place}: {mistake}")
    except ColumnError as error:
        raise PromptError(f"{setting}.fields: {error}") from None
    except PromptError as error:
        raise PromptError(f"{setting}.{origin}: {error}") from None
    except OSError as error:
        raise PromptError(f"{setting}.{origin}: {_name(source)} cannot be read: {first_line(error)}") from None
    if not rows and not mistakes:
        raise PromptError(f"{setting} ({_name(source)}) has no rows.")
    return rows, mistakes


def _name(source: Source) -> str:
    return source.path or source.dataset or f"sums {source.sums}"


def _fields(source: Source) -> Fields:
    return source.fields if source.sums is None else SUMS


def _columns(source: Source) -> list[str]:
    fields = _fields(source)
    named = (fields.prompt, fields.answer, fields.hint, fields.domain, fields.system)
    return list(dict.fromkeys(name for name in named if name is not None))


def _find_rows(source: Source) -> FoundRows:
    if source.sums is not None:
        return _draw_sums(source, source.sums)
    if source.dataset is not None:
        return read_data_set(source, source.dataset, _columns(source))
    path = Path(source.path or "")
    if not path.is_file():
        raise PromptError(f"{path} is missing or no file; it is looked for from {Path.cwd()}.")
    match path.suffix:
        case ".jsonl":
            return read_json_lines(path, str(path))
        case ".parquet":
            return read_parquet(path, str(path), _columns(source))
    raise PromptError(f"a .jsonl or .parquet file is expected, found {path}.")


def _draw_sums(source: Source, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    # The demo brings its task along; nobody else needs it.
    from pipeline.demo import task

    assert source.limit is not None
    domain = {"domain": source.domain} if "domain" in source.model_fields_set else {}
    for number, row in enumerate(task.draw_sums(seed, source.limit, source.hinted), 1):
        yield f"{_name(source)}, number {number}", row | domain


def _checked(source: Source, place: str, found: Any) -> Row:
    if isinstance(found, UnusableError):
        raise found
    fields = _fields(source)
    missing = [f"`{name}`" for name in _columns(source) if name not in found]
    if missing:
        raise UnusableError(
            f"lacks {', '.join(missing)}; it has {', '.join(found) or 'nothing'} (write null for unknown)"
        )
    return Row(
        place,
        _messages(found[fields.prompt], fields.prompt, _system(source, fields, found)),
        None if fields.answer is None else _answer(found[fields.answer], fields.answer, source.answer_after),
        None if fields.hint is None or found[fields.hint] is None else _text(found[fields.hint], fields.hint),
        source.domain if fields.domain is None else _text(found[fields.domain], fields.domain),
    )


def _system(source: Source, fields: Fields, found: Mapping[str, Any]) -> str | None:
    """Give the system message of a row: its own, or the source's."""
    if fields.system is not None and found[fields.system] is not None:
        if source.system is not None:
            raise UnusableError(f"`{fields.system}` has a system message, and so has the source (`system`)")
        return _text(found[fields.system], fields.system)
    if fields.system is None and source.system is None and found.get(SYSTEM) is not None:
        raise UnusableError(
            f"`{SYSTEM}` is used by no setting: name it in `fields.system`, or set the source's `system`"
        )
    return source.system


def _messages(prompt: Any, field: str, system: str | None) -> tuple[dict[str, str], ...]:
    if not isinstance(prompt, list):
        messages = [{"role": "user", "content": _prompt_text(prompt, field)}]
    elif not prompt:
        raise UnusableError(f"`{field}` is an empty list")
    else:
        messages = [_message(message, f"{field}[{number}]") for number, message in enumerate(prompt)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    for number, message in enumerate(messages):
        if message["role"] == "system" and number > 0:
            why = " (the source's `system` is put there)" if system is not None else ""
            raise UnusableError(f"`{field}` has a system message that is not the first{why}")
    if messages[-1]["role"] != "user":
        raise UnusableError(f"`{field}` ends with a message of role {messages[-1]['role']}, where user is expected")
    return tuple(messages)


def _prompt_text(prompt: Any, field: str) -> str:
    text = _text(prompt, field)
    if _MESSAGES.match(text):
        raise UnusableError(
            f"`{field}` is text that spells messages: a model would be asked the braces. Make it a list of "
            "{role, content}, or the text of one user message"
        )
    return text


def _message(message: Any, field: str) -> dict[str, str]:
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise UnusableError(f"`{field}` is {describe_kind(message)}, where {{role, content}} is expected")
    # Parquet gives every message all keys that any has; a key that is null here was not written.
    others = [key for key, value in message.items() if key not in ("role", "content") and value is not None]
    if others:
        raise UnusableError(f"`{field}` also has {', '.join(others)}, which no chat template would be given")
    if message["role"] not in _ROLES:
        raise UnusableError(f"`{field}.role` is {message['role']!r}, where one of {', '.join(_ROLES)} is expected")
    return {"role": message["role"], "content": _text(message["content"], f"{field}.content")}


def _answer(value: Any, field: str, after: str | None) -> str | None:
    if value is None:
        return None
    if after is not None:
        text = _text(value, field)
        if after not in text:
            raise UnusableError(f"`{field}` has no `{after}`, after which the answer is expected (`answer_after`)")
        return _text(text.rpartition(after)[2].strip(), f"{field}, after `{after}`,")
    if isinstance(value, Number):
        if value.written in _NO_NUMBERS:
            raise UnusableError(f"`{field}` is {value.written}, where a finite number is expected")
        return value.written
    if not isinstance(value, str):
        raise UnusableError(f"`{field}` is {describe_kind(value)}, where text, a number or null is expected")
    return _text(value, field)


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise UnusableError(f"`{field}` is {describe_kind(value)}, where text is expected")
    if not value.strip():
        raise UnusableError(f"`{field}` is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UnusableError(f"`{field}` has half a surrogate pair, which is no text") from None
    return value
