"""Rows of different lengths, kept end to end in one array: no Python object per token."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """Row i is `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        values: all rows end to end; its first axis is the one that is cut into rows.
        offsets: int64, one more than there are rows, from 0 to `len(values)`.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[Sequence[float] | np.ndarray], dtype: type[np.generic] | np.dtype) -> "Ragged":
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
        """Values in each row, int64."""
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray | Sequence[int]) -> "Ragged":
        """These rows, in this order."""
        chosen = [self[int(row)] for row in rows]
        values = np.concatenate(chosen) if chosen else self.values[:0]
        return Ragged.cut(values, np.array([len(row) for row in chosen], dtype=np.int64))
