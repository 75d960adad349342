"""List columns of Arrow tables as numpy arrays, and the other way: no Python object per token."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length, end to end in one array: row i is `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        values: all rows end to end; its first axis is the one that is cut into rows.
        offsets: int64, one more than there are rows, from 0 to `len(values)`.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[float] | np.ndarray], dtype: type[np.generic] | np.dtype) -> "Ragged":
        """Lay the rows end to end."""
        arrays = [np.asarray(row, dtype=dtype) for row in rows]
        values = np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)
        return cls.cut(values, np.array([len(array) for array in arrays], dtype=np.int64))

    @classmethod
    def cut(cls, values: np.ndarray, lengths: np.ndarray) -> "Ragged":
        """Cut an array into rows of these lengths."""
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        assert offsets[-1] == len(values), f"lengths add up to {offsets[-1]}, there are {len(values)} values"
        return cls(values, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """Count the values in each row, int64."""
        return np.diff(self.offsets)


def to_list_array(lengths: np.ndarray, values: pa.Array) -> pa.Array:
    """Cut values that lie end to end into rows of these lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    assert offsets[-1] == len(values)
    assert offsets[-1] < 2**31, "a row group holds fewer than 2^31 entries"
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def to_lists(rows: Sequence[np.ndarray | Sequence[Any] | None], kind: pa.DataType) -> pa.Array:
    """Make a list or list<list> column of numbers from the value of each row.

    Args:
        rows: one array for each row, [T], or [T, k] for list<list>; or None for each.
        kind: of the column.
    """
    present = [row for row in rows if row is not None]
    if not present:
        return pa.nulls(len(rows), kind)
    assert len(present) == len(rows), "a column is null in all rows of a shard or in none"
    is_nested = pa.types.is_list(kind.value_type)
    number = kind.value_type.value_type if is_nested else kind.value_type
    laid = Ragged.from_rows(present, number.to_pandas_dtype())
    values = pa.array(laid.values.ravel(), number)
    if is_nested:
        count, k = laid.values.shape
        values = to_list_array(np.full(count, k), values)
    return to_list_array(laid.lengths, values)


def from_lists(column: pa.ChunkedArray | pa.Array) -> Ragged:
    """Turn a list column without nulls into numpy, without copying where Arrow allows."""
    array = _whole(column)
    assert array.null_count == 0
    offsets = array.offsets.to_numpy().astype(np.int64)
    return Ragged(array.flatten().to_numpy(zero_copy_only=False), offsets - offsets[0])


def from_nested_lists(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, Ragged]:
    """Turn a list<list> column without nulls into the tokens of each row, and the entries cut by token."""
    array = _whole(column)
    return list_lengths(array), from_lists(array.flatten())


def _whole(column: pa.ChunkedArray | pa.Array) -> Any:
    """Join a column's chunks into one array."""
    if isinstance(column, pa.ChunkedArray):
        return (
            column.chunk(0)
            if column.num_chunks == 1
            else pa.concat_arrays(column.chunks or [pa.array([], column.type)])
        )
    return column


def list_lengths(array: pa.Array) -> np.ndarray:
    """Count the values in each row of a list column; a null row has none."""
    if array.null_count == 0:
        return np.diff(array.offsets.to_numpy()).astype(np.int64)
    return array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
