"""Rows that exist: a new shard takes over those it wants from the shards of its family, so that growth costs what grew.

The shards of a **family** have one identity but for what picks their rows (its part `rows`): the same model wrote or
scored them with the same settings. A row is then decided by its key, in whichever shard it stands: a response by its
prompt and the number of its sample (each has a seed of its own), a score by its response and its context.
"""

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.storage import hashing
from pipeline.storage.shards import open_shard, read_group, read_groups
from pipeline.storage.store import Store

Key = tuple[Hashable, ...]


class KnownRows:
    """Where the rows of some shards are, by their key columns; some 200 bytes a row, and nothing of what it holds."""

    def __init__(self, schema: pa.Schema, key: Sequence[str], shards: Iterable[Path] = ()):
        self._columns = schema.names
        self._empty = schema.remove_metadata().empty_table()
        self._places: dict[Key, tuple[Path, int, int]] = {}
        for path in shards:
            for number, group in enumerate(read_groups(path, schema, key)):
                keys = zip(*(group.column(name).to_pylist() for name in key), strict=True)
                self._places |= {own: (path, number, row) for row, own in enumerate(keys)}

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def read(self, keys: Sequence[Key]) -> pa.Table:
        """Read the rows of these keys, all of which are known, in their order; a row group at a time.

        Raises:
            ShardError: a shard is damaged.
        """
        wanted: dict[tuple[Path, int], list[tuple[int, int]]] = defaultdict(list)
        for position, key in enumerate(keys):
            path, number, row = self._places[key]
            wanted[path, number].append((position, row))
        parts: list[tuple[list[int], pa.Table]] = [([], self._empty)]
        for (path, number), places in wanted.items():
            with open_shard(path, self._columns) as file:
                group = read_group(path, file, number, self._columns)
            parts.append(([position for position, _ in places], group.take(pa.array([row for _, row in places]))))
        return put_in_order(parts)


class Families:
    """The known rows of the families of some shards that a stage wants; looked up when first asked for, once each."""

    def __init__(self, store: Store, schema: pa.Schema, key: Sequence[str], without: Collection[str | None] = ()):
        """Begin with nothing read.

        Args:
            store: of finished shards.
            schema: of the kind of shard.
            key: the columns that tell rows of a family apart.
            without: fingerprints of the stage's own shards, which give one another nothing.
        """
        self._store, self._schema, self._key, self._without = store, schema, key, without
        self._shards: dict[str, list[Path]] | None = None
        self._known: dict[str, KnownRows] = {}

    def of(self, identity: Mapping[str, Any]) -> KnownRows:
        """Find the rows that the family of this identity has in other shards."""
        family = hashing.fingerprint_family(identity)
        if family not in self._known:
            if self._shards is None:
                self._shards = self._store.list_families(self._without)
            self._known[family] = KnownRows(self._schema, self._key, self._shards.get(family, []))
        return self._known[family]


def put_in_order(parts: Iterable[tuple[Sequence[int] | np.ndarray, pa.Table]]) -> pa.Table:
    """Lay rows of one schema together, each at its position; words are plain strings, which a `Writer` encodes."""
    filled = [(np.asarray(positions, np.int64), _decode_words(table)) for positions, table in parts]
    filled = [part for part in filled if len(part[0])] or filled[:1]
    positions = np.concatenate([of_table for of_table, _ in filled])
    tables = [table for _, table in filled]
    if len(tables) == 1 and (np.diff(positions) > 0).all():
        return tables[0]  # as nearly always: nothing to copy
    return pa.concat_tables(tables).take(pa.array(np.argsort(positions), pa.int64()))


def _decode_words(table: pa.Table) -> pa.Table:
    """Leave the dictionaries behind: that of another shard has words which no row here has."""
    fields = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))
