"""The files: which columns a shard has, what its footer says, how it is written and read.

**Alignment, stated here once.** Position t of every per-token list belongs to `response_ids[t]` and conditions on
the prompt and `response_ids[:t]`. So `sampled_logprobs[0]` is the log-probability of the first response token after
the prompt, and nothing is stored for the prompt's own tokens.

A shard is one Parquet file: the prompts, rollouts, grades or scores of one bucket, in row groups of `GROUP_ROWS`
rows. Log-probabilities are in nats, at temperature 1, over the whole vocabulary, unless a column says otherwise.

A kind of shard (`prompts`, `rollouts`, `grades`, `scores`) is a module beside this one, and knows its columns alone:
what is here follows from a schema, so that a new column edits no other file of this folder.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ShardError, damaged
from pipeline.storage.ragged import list_lengths

GROUP_ROWS = 64
"""Rows in a row group: what one read takes into memory."""

_ABOUT = b"potstill"

_DAMAGE = (OSError, ValueError, KeyError, pa.ArrowException)
"""What pyarrow raises on a damaged file; a name or JSON that is no text any more is a ValueError."""

WORD = pa.dictionary(pa.int32(), pa.string())

IDS, NATS, SMALL = pa.list_(pa.int32()), pa.list_(pa.float32()), pa.list_(pa.uint16())


class Writer:
    """Writes one shard, row group by row group; `identity` and `made_with` go into the footer."""

    def __init__(self, path: Path, schema: pa.Schema, identity: dict[str, Any], made_with: dict[str, Any]):
        about = json.dumps({"identity": identity, "made_with": made_with}, sort_keys=True)
        self._schema = schema.with_metadata({_ABOUT: about.encode()})
        leaves = _name_leaves(schema)
        planes = [name for name, kind in leaves.items() if _is_in_byte_planes(name, kind)]
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=[name for name in leaves if name not in planes],  # pyright: ignore[reportArgumentType]
            column_encoding=dict.fromkeys(planes, "BYTE_STREAM_SPLIT"),
            write_page_checksum=True,
        )
        self._pending: list[pa.Table] = []
        self._rows = 0

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._flush(1)
        self._writer.close()

    def write(self, table: pa.Table) -> None:
        """Add rows; they are written as soon as they fill a row group."""
        self._pending.append(table.select(self._schema.names).cast(self._schema))
        self._rows += table.num_rows
        self._flush(GROUP_ROWS)

    def _flush(self, at_least: int) -> None:
        if self._rows < at_least:
            return
        rows = pa.concat_tables(self._pending).combine_chunks()
        whole = rows.num_rows if at_least == 1 else rows.num_rows - rows.num_rows % GROUP_ROWS
        self._writer.write_table(rows.slice(0, whole), row_group_size=GROUP_ROWS)
        self._pending = [rows.slice(whole)]
        self._rows -= whole


def make_table(columns: Mapping[str, pa.Array | Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """Put the columns of one kind of shard together; a nullable column that is not given is null in every row.

    Args:
        columns: by name, all of one length, as the schema types them.
        schema: of the kind.
    """
    assert columns.keys() <= set(schema.names), f"{sorted(columns.keys() - set(schema.names))} are no columns"
    rows = len(next(iter(columns.values())))
    given = {field.name: pa.nulls(rows, field.type) for field in schema if field.nullable} | dict(columns)
    return pa.table({name: given[name] for name in schema.names}, schema)


def _name_leaves(schema: pa.Schema) -> dict[str, pa.DataType]:
    """Name the leaf columns as Parquet does, with their types; an encoding given to another name is ignored."""
    found: dict[str, pa.DataType] = {}
    for field in schema:
        name, kind = field.name, field.type
        while pa.types.is_list(kind):
            name, kind = f"{name}.list.element", kind.value_type
        found |= {f"{name}.{child.name}": child.type for child in kind} if pa.types.is_struct(kind) else {name: kind}
    return found


def _is_in_byte_planes(name: str, kind: pa.DataType) -> bool:
    """Tell whether a leaf holds 32-bit numbers in lists, as nearly all bytes of a shard do.

    Byte planes of fp32 rounded to fp16 hold zeros, which zstd removes (DuckDB cannot read fp16 so encoded); ids take
    111 bytes per token at K = 64 in them, 138 otherwise (measured).
    """
    return name.endswith(".list.element") and kind in (pa.int32(), pa.float32())


def list_shards(folder: Path, stage: str) -> list[Path]:
    """List the shards of a folder by name.

    Raises:
        ShardError: there are none; `stage` is named as the one that makes them.
    """
    found = sorted(folder.glob("*.parquet"))
    if not found:
        raise ShardError(
            f"{folder} holds no shards. Run `dvc repro {stage}`, or `dvc pull {folder}` if another machine made them."
        )
    return found


def read_shard(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a whole shard, or some columns of it, into memory.

    Raises:
        ShardError: the file is cut off or damaged, or lacks one of these columns; others that it lacks do not matter.
    """
    none = schema.empty_table().select(list(columns or schema.names))
    return pa.concat_tables(list(read_groups(path, schema, columns)) or [none])


def read_groups(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Read as `read_shard`, a row group at a time."""
    wanted = columns or schema.names
    file = open_shard(path, wanted)
    for number in range(file.num_row_groups):
        yield read_group(path, file, number, wanted)


def read_group(path: Path, file: pq.ParquetFile, number: int, columns: Sequence[str]) -> pa.Table:
    """Read some columns of one row group of an open shard."""
    try:
        return file.read_row_group(number, columns=list(columns)).select(list(columns)).replace_schema_metadata()
    except _DAMAGE as error:
        raise _unreadable(path, error) from None


def count_group_rows(path: Path) -> list[int]:
    """Count the rows of each row group, from the footer alone."""
    with open_parquet(path) as file:
        return [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]


def read_about(path: Path) -> dict[str, Any]:
    """Open a shard and parse its footer, as `parse_footer` does."""
    with open_parquet(path) as file:
        return parse_footer(path, file)


def parse_footer(path: Path, file: pq.ParquetFile) -> dict[str, Any]:
    """Parse what the footer of an open shard says: `identity` and `made_with`.

    Raises:
        ShardError: it is damaged, or says nothing, so another program wrote the file.
    """
    # Parquet's own copy, and Arrow's, which is inside the schema: no checksum covers the footer, but these agree.
    said, again = (about.get(_ABOUT) for about in (file.metadata.metadata or {}, file.schema_arrow.metadata or {}))
    if said != again:
        raise damaged(path, "is cut off or damaged (its footer says two things of how it was made)")
    if said is None:
        raise ShardError(f"{path} is Parquet, but no shard: its footer does not say how it was made.")
    try:
        about = json.loads(said)
        return {"identity": dict(about["identity"]), "made_with": dict(about["made_with"])}
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from None


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file; its caller closes it.

    Raises:
        ShardError: it is missing, cut off or damaged.
    """
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        _ = file.schema_arrow.names  # decoded when first asked for, and then to be told as damage, too
        return file
    except FileNotFoundError:
        raise ShardError(f"{path} is missing. `dvc pull {path.parent}` fetches it, `dvc repro` makes it.") from None
    except _DAMAGE as error:
        raise _unreadable(path, error) from None


def open_shard(path: Path, columns: Sequence[str]) -> pq.ParquetFile:
    """Open a shard that is to have these columns; its caller closes it.

    Raises:
        ShardError: it is missing, cut off, damaged, or lacks one of them.
    """
    file = open_parquet(path)
    _require_columns(path, file, columns)
    return file


class ShardReader:
    """A shard that is opened when it is first read, can be read several times, and is closed with the `with` block."""

    def __init__(self, path: Path):
        self.path = path
        self._file: pq.ParquetFile | None = None

    def __enter__(self) -> "ShardReader":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def read_groups(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Read some columns, a row group at a time.

        Raises:
            ShardError: the file is missing, cut off, damaged, or lacks one of them.
        """
        if self._file is None:
            self._file = open_parquet(self.path)
        _require_columns(self.path, self._file, columns)
        for number in range(self._file.num_row_groups):
            yield read_group(self.path, self._file, number, columns)


def _require_columns(path: Path, file: pq.ParquetFile, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in file.schema_arrow.names]
    if missing:
        stage = parse_footer(path, file)["identity"].get("stage", "unknown")
        raise ShardError(
            f"{path} lacks {', '.join(missing)}: it has {', '.join(file.schema_arrow.names)}. It was written by "
            f"the stage `{stage}` of another version of Potstill; `dvc repro` runs it again and makes the file anew."
        )


def _unreadable(path: Path, error: Exception) -> ShardError:
    return damaged(path, f"is cut off or damaged ({(str(error).strip() or type(error).__name__).splitlines()[0]})")


def count_rows_and_tokens(path: Path) -> tuple[int, int]:
    """Count the rows, and the response tokens where the shard has any."""
    with open_parquet(path) as file:
        names, total = file.schema_arrow.names, file.metadata.num_rows
        per_token = [name for name in _PER_TOKEN if name in names][:1]
        groups = (
            read_group(path, file, number, per_token) for number in range(file.num_row_groups if per_token else 0)
        )
        return total, sum(count_tokens(group) for group in groups)


_PER_TOKEN = ("response_ids", "sampled_logprobs")


def count_tokens(group: pa.Table) -> int:
    """Count the response tokens of some rows of a shard; 0 of one that has none."""
    name = next((name for name in _PER_TOKEN if name in group.column_names), None)
    return 0 if name is None else sum(int(list_lengths(chunk).sum()) for chunk in group.column(name).chunks)
