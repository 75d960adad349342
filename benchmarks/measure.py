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


def seconds(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median wall time of each way, seconds.

    The ways take turns, so that a machine that slows down slows all of them; a first turn warms up and is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:
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
