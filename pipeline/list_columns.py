"""List columns of Arrow tables as numpy arrays, and the other way: no Python object per token."""

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.ragged import Ragged


def of(lengths: np.ndarray, values: pa.Array) -> pa.Array:
    """Cut values that lie end to end into rows of these lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    assert offsets[-1] == len(values)
    assert offsets[-1] < 2**31, "a row group holds fewer than 2^31 entries"
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def ragged(column: pa.ChunkedArray | pa.Array) -> Ragged:
    """A list column without nulls as numpy, without copying where Arrow allows."""
    array = _whole(column)
    assert array.null_count == 0
    offsets = array.offsets.to_numpy().astype(np.int64)
    return Ragged(array.flatten().to_numpy(zero_copy_only=False), offsets - offsets[0])


def ragged2(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, Ragged]:
    """A list<list> column without nulls: tokens of each row, and the entries cut by token."""
    array = _whole(column)
    return lengths(array), ragged(array.flatten())


def _whole(column: pa.ChunkedArray | pa.Array) -> Any:
    """A column as one array."""
    if isinstance(column, pa.ChunkedArray):
        return (
            column.chunk(0)
            if column.num_chunks == 1
            else pa.concat_arrays(column.chunks or [pa.array([], column.type)])
        )
    return column


def lengths(array: pa.Array) -> np.ndarray:
    """Values in each row of a list column; a null row has none."""
    if array.null_count == 0:
        return np.diff(array.offsets.to_numpy()).astype(np.int64)
    return array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
