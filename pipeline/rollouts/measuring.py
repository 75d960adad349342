"""Measuring how far the student is from each shard of the round before, on as many responses as the policy needs."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from pipeline import head
from pipeline.engines.identity import identify_engine
from pipeline.engines.open import OnDemand
from pipeline.rollouts import drift
from pipeline.rollouts.drift import DRIFT_COLUMNS, Drift, ResponseDrift, estimate_drift, measure_drift
from pipeline.rollouts.stale import find_undecided
from pipeline.settings.refresh import Refresh
from pipeline.storage import hashing
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.shards import count_group_rows
from pipeline.storage.store import Store
from pipeline.storage.whole import read_json, write_json

log = logging.getLogger("refresh")


class ShardDrift:
    """The drift of one shard by some of its responses, and by more of them when it is extended.

    What was measured is in the store, once for each pair of shard and student.
    """

    def __init__(self, store: Store, engine: OnDemand, path: Path, settings: Refresh):
        self._store, self._engine, self._path = store, engine, path
        self._first = settings.drift_rows
        self._identity = {
            "stage": "drift",
            "version": [drift.VERSION, head.VERSION],
            "model": engine.model.identity,
            "engine": identify_engine(settings),
            "rollouts": hashing.hash_columns(path, ROLLOUTS, DRIFT_COLUMNS),
        }
        self._count = sum(count_group_rows(path))
        self._found: list[ResponseDrift] = []
        self.extend()

    @property
    def drift(self) -> Drift:
        """The estimate by all that was measured."""
        return estimate_drift(self._found, self._count)

    def extend(self) -> None:
        """Measure as many responses again as were measured, or find them; `drift_rows` at first."""
        places = len(self._found), max(self._first, 2 * len(self._found))
        identity = self._identity | {"responses": list(places)}

        def make(target: Path) -> None:
            found = measure_drift(self._engine.open(), self._path, *places)
            write_json(target, {"identity": identity, "drift": [asdict(each) for each in found]})

        obtained = self._store.obtain(identity, make, ".json")
        stored = read_json(self._store.path(obtained.entry.fingerprint, ".json"))["drift"]
        self._found += [ResponseDrift(**each) for each in stored]


def measure_until_decided(
    store: Store, engine: OnDemand, shards: Mapping[str, Path], settings: Refresh
) -> dict[str, Drift]:
    """Measure the drift of shards, by name, on twice as many responses each time where the policy cannot be sure."""
    measuring = {name: ShardDrift(store, engine, path, settings) for name, path in shards.items()}
    while True:
        measured = {name: shard.drift for name, shard in measuring.items()}
        undecided = sorted(find_undecided(settings, measured))
        growing = [name for name in undecided if 2 * measured[name].responses <= settings.most_drift_rows]
        if not growing:
            break
        for name in growing:
            measuring[name].extend()
    if undecided:
        most = max(measured[name].responses for name in undecided)
        log.info("%d of %d shards are too close to the cut to call by %d responses", len(undecided), len(shards), most)
    return measured
