"""Which shards of the round before are stale, and of which what was measured does not say it yet."""

import math
from collections.abc import Mapping

from pipeline.rollouts.drift import Drift
from pipeline.settings.refresh import Refresh

CLOSE = 0.1
"""Share of the cut within which a shard may be taken for fresh or stale: more responses would cost, and help little."""


def choose_stale(settings: Refresh, measured: Mapping[str, Drift]) -> set[str]:
    """Choose the shards to write anew, by name."""
    match settings.policy:
        case "all":
            return set(measured)
        case "drift":
            assert settings.bound is not None
            return {name for name, found in measured.items() if found.nats > settings.bound}
        case "fraction":
            return set(_rank(measured)[: _count_stale(settings, measured)])


def find_undecided(settings: Refresh, measured: Mapping[str, Drift]) -> set[str]:
    """Find the shards that could be on the other side of the cut by what was measured of them, by name."""
    cut = _find_cut(settings, measured)
    if cut is None:
        return set()
    return {name for name, found in measured.items() if found.margin > max(abs(found.nats - cut), CLOSE * cut)}


def _find_cut(settings: Refresh, measured: Mapping[str, Drift]) -> float | None:
    """The drift that stale shards are above, nats per token; None where all are written anew whatever it is."""
    match settings.policy:
        case "all":
            return None
        case "drift":
            return settings.bound
        case "fraction":
            ranked, count = _rank(measured), _count_stale(settings, measured)
            if count == len(ranked):
                return None
            return sum(measured[name].nats for name in ranked[count - 1 : count + 1]) / 2


def _count_stale(settings: Refresh, measured: Mapping[str, Drift]) -> int:
    assert settings.fraction is not None
    return math.ceil(settings.fraction * len(measured))


def _rank(measured: Mapping[str, Drift]) -> list[str]:
    """Names, those that drifted furthest first."""
    return sorted(measured, key=lambda name: (-measured[name].nats, name))
