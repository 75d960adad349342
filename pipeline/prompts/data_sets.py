"""Data sets of the Hugging Face Hub, and folders in their layout: `datasets` finds the files, we read text ourselves.

`datasets` guesses the types of JSON and CSV: an answer `007` becomes 7, one of thirty digits a float, a key that is
missing null. So only files that carry their types (Parquet, Arrow) are read by it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import PromptError
from pipeline.prompts.files import (
    FoundRows,
    choose_columns,
    first_line,
    read_batches,
    read_csv,
    read_json,
    read_json_lines,
)
from pipeline.settings.prompts import Source

_OURS: dict[str, frozenset[str]] = {"json": frozenset(), "csv": frozenset({"sep", "delimiter"})}
"""The kinds of text, each with the options of `datasets` that we obey."""

_ABOUT_FILES = {"name", "version", "data_dir", "data_files", "description", "features"}
"""What a configuration of `datasets` says besides how a file is read."""


def read_data_set(source: Source, name: str, columns: Sequence[str]) -> FoundRows:
    """Read a split of a data set.

    Args:
        source: says which subset and split.
        name: the data set as the user wrote it.
        columns: that are read.

    Raises:
        PromptError: it cannot be found or read, lacks the split or a column, or asks for a way of reading that we lack.
    """
    # Slow to import, and needed by this kind of source alone.
    import datasets

    location, _, revision = (name, "", "") if Path(name).is_dir() else name.partition("@")
    if not Path(name).is_dir() and not revision:
        raise PromptError(
            f"{name} is no folder, and a data set of the Hugging Face Hub needs a revision (`{name}@main`, or better a "
            "commit): without one, equal settings can mean other rows."
        )
    where = {"path": location, "name": source.subset, "revision": revision or None}
    builder = _attempt(name, lambda: datasets.load_dataset_builder(**where))
    kind = builder.info.builder_name
    if kind in _OURS:
        yield from _read_text(name, source.dataset_split, kind, builder.config)
        return
    table = _attempt(name, lambda: datasets.load_dataset(split=source.dataset_split, **where))
    read = choose_columns(columns, table.column_names, name)
    try:
        yield from read_batches(
            table.select_columns(read).with_format("arrow").iter(1024), f"{name} ({source.dataset_split})"
        )
    except (OSError, pa.ArrowException) as error:
        raise PromptError(f"{name} cannot be read: {first_line(error)}") from None


def _read_text(name: str, split: str, kind: str, config: Any) -> FoundRows:
    """Read the files of a split that are text, each by its own name."""
    import datasets

    asked = {field.name for field in dataclasses.fields(config) if getattr(config, field.name) != field.default}
    if unknown := sorted(asked - _ABOUT_FILES - _OURS[kind]):
        raise PromptError(f"{name} asks for {', '.join(unknown)} in reading {kind}, which we do not do: convert it.")
    if split not in config.data_files:
        splits = ", ".join(str(one) for one in config.data_files)
        raise PromptError(f"{name} cannot be read: it has no split `{split}`; it has {splits}. Set `dataset_split`.")
    files = [str(file) for file in config.data_files[split]]
    unpacked = _attempt(name, lambda: datasets.DownloadManager().download_and_extract(files))
    for file, path in zip(files, unpacked, strict=True):
        yield from _read_file(Path(path), file, kind, config)


def _read_file(path: Path, file: str, kind: str, config: Any) -> Iterator[Any]:
    if kind == "csv":
        return read_csv(path, file, config.delimiter or config.sep)
    return read_json_lines(path, file) if ".jsonl" in Path(file).suffixes else read_json(path, file)


def _attempt(name: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # whatever its readers, its network and its Hub raise comes through
        cause: BaseException = error
        while cause.__cause__ is not None:  # "An error occurred while generating the dataset" says nothing
            cause = cause.__cause__
        raise PromptError(f"{name} cannot be read: {first_line(cause)}") from None
