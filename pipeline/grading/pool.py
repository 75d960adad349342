"""Processes that run a grader which may hang or crash: each response has its own time and its own outcome.

A process is asked one response at a time, so it is known which one it was at. One that takes too long or dies is
replaced, and only that response has no grade.
"""

import importlib
import math
import multiprocessing
import os
import queue
import reprlib
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import GradeError

START_S = 300.0
"""Seconds that a process may take to import the grader."""

Verdict = tuple[bool | None, float | None, str | None]
"""Correct, reward and feedback."""

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Outcome:
    """What became of one response.

    Attributes:
        grade: of a failure None, None and what went wrong.
        failed: the grader hung, crashed, raised, or gave something that is no grade.
    """

    grade: Verdict
    failed: bool


class Pool:
    """Processes for one grader, `module:function`; they live as long as the `with` block.

    Raises:
        GradeError: on entering, where the grader cannot be imported.
    """

    def __init__(self, grader: str, timeout_s: float, workers: int | None = None):
        self._workers = [_Worker(grader, timeout_s) for _ in range(workers or min(os.cpu_count() or 1, 8))]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    def __enter__(self) -> "Pool":
        try:
            with ThreadPoolExecutor(len(self._workers)) as threads:
                for worker in threads.map(_Worker.start, self._workers):
                    self._idle.put(worker)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()

    def grade(self, pairs: Sequence[tuple[str, str | None]]) -> list[Outcome]:
        """Grade every pair of response and answer, in their order."""
        with ThreadPoolExecutor(len(self._workers)) as threads:
            return list(threads.map(self._grade, pairs))

    def _grade(self, pair: tuple[str, str | None]) -> Outcome:
        worker = self._idle.get()
        try:
            return worker.grade(pair)
        finally:
            self._idle.put(worker)


class _Worker:
    """One process at a time, started anew after each that was stopped."""

    def __init__(self, grader: str, timeout_s: float):
        self._grader, self._timeout_s = grader, timeout_s
        self._process: Any = None
        self._connection: Any = None

    def start(self) -> "_Worker":
        """Start the process and wait until the grader is imported."""
        context = multiprocessing.get_context("spawn")  # a fork would copy threads and accelerators in any state
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._grader, theirs))
        self._process.start()
        theirs.close()
        try:
            mistake = self._connection.recv() if self._connection.poll(START_S) else f"took more than {START_S:g} s"
        except EOFError:
            mistake = f"its process {self._ending()}"
        if mistake is not None:
            self.stop()
            raise GradeError(f"grade.grader: `{self._grader}` cannot be imported: {mistake}.")
        return self

    def grade(self, pair: tuple[str, str | None]) -> Outcome:
        """Ask for one grade; a process that gives none in time is stopped."""
        if self._process is None:
            self.start()
        try:
            self._connection.send(pair)
            if self._connection.poll(self._timeout_s):
                return self._connection.recv()
            failure = f"timed out after {self._timeout_s:g} s"
        except (EOFError, OSError):
            failure = self._ending()
        self.stop()
        return _failure(failure)

    def stop(self) -> None:
        """Kill the process and all that it started."""
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # not yet in a group of its own, or gone
            self._process.kill()
        self._process.join()
        self._connection.close()
        self._process = None

    def _ending(self) -> str:
        self._process.join(1.0)
        code = self._process.exitcode
        if code is None:
            return "closed its connection"
        return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"


def _serve(grader: str, connection: Connection) -> None:
    """Run in the process: import the grader, tell whether that worked, and grade what comes until nobody asks."""
    os.setsid()  # a group of its own, so that what the grader starts can be killed with it, and Ctrl-C is its owner's
    threading.Thread(target=_end_with_owner, daemon=True).start()
    sys.path.insert(0, str(Path.cwd()))
    try:
        module, _, name = grader.partition(":")
        function: Any = getattr(importlib.import_module(module), name)
        mistake = None if callable(function) else f"`{name}` is no function"
    except (Exception, SystemExit) as error:
        function, mistake = None, _describe(error)
    connection.send(mistake)
    while mistake is None:
        try:
            response, answer = connection.recv()
        except EOFError:
            return
        connection.send(_outcome(function, response, answer))


def _end_with_owner() -> None:
    owner = multiprocessing.parent_process()
    assert owner is not None
    owner.join()
    os.killpg(0, signal.SIGKILL)


def _outcome(function: Callable[[str, str | None], Any], response: str, answer: str | None) -> Outcome:
    try:
        value = function(response, answer)
    except (Exception, SystemExit) as error:
        return _failure(f"raised {_describe(error)}")
    try:
        return Outcome(_as_grade(value), failed=False)
    except (TypeError, ValueError, OverflowError) as error:
        return _failure(f"returned {reprlib.repr(value)}, which is no grade: {error}")


def _as_grade(value: Any) -> Verdict:
    """What a grader of the user's returned, as correct, reward and feedback."""
    value = {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else _plain(value)
    if isinstance(value, bool):
        return value, float(value), None
    if isinstance(value, int | float):
        return None, _reward(value), None
    if not isinstance(value, dict) or not value or not value.keys() <= {"correct", "reward", "feedback"}:
        raise TypeError("a bool, a number, or a dictionary of correct, reward and feedback is expected")
    correct, reward, feedback = value.get("correct"), value.get("reward"), value.get("feedback")
    if not isinstance(correct, bool | None):
        raise TypeError("`correct` is neither bool nor None")
    if not isinstance(feedback, str | None):
        raise TypeError("`feedback` is neither text nor None")
    (feedback or "").encode()  # half a surrogate pair cannot be written
    if reward is None:
        return correct, None if correct is None else float(correct), feedback
    return correct, _reward(reward), feedback


def _plain(value: Any) -> Any:
    """A scalar of numpy's as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


def _reward(value: Any) -> float:
    if not isinstance(value, bool | int | float):
        raise TypeError("`reward` is neither a number nor None")
    if not math.isfinite(value) or abs(value) > _LARGEST:
        raise ValueError("the reward is not a finite number of fp32")
    return float(value)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".encode(errors="replace").decode()


def _failure(what: str) -> Outcome:
    return Outcome((None, None, f"grader {what}"), failed=True)
