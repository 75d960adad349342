"""Seconds and peak memory, measured so that neighbours in the same run do not count."""

import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
Ways = Mapping[str, Callable[[], object]]
"""What is timed, by name."""


def seconds(ways: Ways, rounds: int, warm_up: Ways | None = None) -> dict[str, float]:
    """Median wall time of each way, seconds.

    The ways take turns, so that a machine that slows down slows all of them. A first turn warms up and is not counted:
    of the same, or of `warm_up`, where a whole turn would take minutes.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for name in ways:
        (warm_up or ways)[name]()
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def in_child(function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> tuple[R, int]:
    """Run a module's function in a fresh process; its result, and the most bytes that the process ever held."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_peak, function, *arguments, **named).result()


def _with_peak(function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> tuple[R, int]:
    return function(*arguments, **named), peak_bytes()


def peak_bytes() -> int:
    """The most resident memory that this process held since it was started, bytes.

    From /proc, since `ru_maxrss` survives exec: a small child of a large parent would show the parent's.
    """
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, "Linux gives every process a VmHWM"
    return int(found[1]) * 1024
