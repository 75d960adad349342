"""Answers of SQL as text: comma-separated values, JSON or Markdown; a `table` is DuckDB's own box."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from pipeline.errors import PotstillError
from pipeline.project import find_home
from pipeline.report.sql import Database, QueryResult
from pipeline.storage.whole import write_whole
from pipeline.visible import make_visible

_FORMATS = {".csv": "csv", ".json": "json", ".md": "markdown"}
"""What an answer is written as, by how the name of the file ends; anything else is a table."""


def choose_format(asked: str | None, out: Path | None) -> str:
    """Choose how answers are written: as was asked, or else as the file is named, or else as a table."""
    return asked or _FORMATS.get("" if out is None else out.suffix.lower(), "table")


def write_answers(out: Path, text: str, data: Path) -> None:
    """Write answers to a file, whole.

    Raises:
        PotstillError: the file would lie in the data folder, the store or DVC's own folder, where it would replace or
            damage what stages made.
    """
    for folder in (data, find_home(), data.parent / ".potstill", data.parent / ".dvc"):
        if out.resolve().is_relative_to(folder.resolve()):
            raise PotstillError(
                f"--out {out} lies in {folder}, which holds what the stages made: name a file elsewhere."
            )
    write_whole(out, text)


def format_answers(database: Database, text: str, format_: str) -> str:
    """Answer each statement of a text, one after another.

    Args:
        database: that is asked.
        text: statements.
        format_: `table`, `csv`, `json` or `markdown`.

    Raises:
        PotstillError: DuckDB refuses a statement.
    """
    if format_ == "table":
        return "".join(f"{box}\n" for box in database.draw_boxes(text))
    write = {"csv": format_csv, "json": format_json, "markdown": format_markdown}[format_]
    return "".join(write(answer) for answer in database.answer(text))


def format_csv(answer: QueryResult) -> str:
    """Write a line of column names and one for each row; null is empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(answer.columns)
    writer.writerows(answer.rows)
    return stream.getvalue()


def format_json(answer: QueryResult) -> str:
    """Write an array of an object for each row, a row a line; what JSON has no number for (−inf, NaN) is null."""
    rows = [dict(zip(answer.columns, map(_make_plain, row), strict=True)) for row in answer.rows]
    lines = [json.dumps(row, ensure_ascii=False, default=str) for row in rows]
    return "[" + ",\n ".join(lines) + "]\n"


def _make_plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_make_plain(inside) for inside in value]
    if isinstance(value, dict):
        return {str(key): _make_plain(inside) for key, inside in value.items()}
    return value


def format_markdown(answer: QueryResult) -> str:
    """Write a table as GitHub reads it; floats have four significant digits, null is a dash."""
    lines = [answer.columns, ["---:" if _is_numeric(answer, place) else "---" for place in range(len(answer.columns))]]
    lines += [[_make_cell(value) for value in row] for row in answer.rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def _is_numeric(answer: QueryResult, place: int) -> bool:
    values = [row[place] for row in answer.rows if row[place] is not None]
    return bool(values) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _make_cell(value: Any) -> str:
    text = "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return make_visible(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
