"""Processes that run a grader which may hang or crash: each response has its own time and its own outcome.

A process is asked one response at a time, so it is known which one it was at. One that takes too long or dies is
replaced, and only that response has no grade. What comes back is JSON of bounded size, so nothing that a grader's
process sends is run here. (Pebble's pool keeps neither promise: its processes send pickles through one pipe, and where
one dies before its word of having begun is read, all responses are given up: 2 of 80 crashes with Pebble 5.2.3.)
"""

import contextlib
import ctypes
import importlib
import json
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
import psutil

from pipeline.errors import GradeError

START_S = 300.0
"""Seconds that a process may take to import the grader."""

LONGEST = 100_000
"""Characters of feedback, or of what went wrong, that a process may send."""

_LARGEST_BYTES = 12 * LONGEST + 1000
"""Of an answer in JSON, where a character takes 12 bytes at most."""

_PR_SET_CHILD_SUBREAPER = 36
"""Of Linux's prctl(2)."""

Verdict = tuple[bool | None, float | None, str | None]
"""Correct, reward and feedback."""

_LARGEST_REWARD = float(np.finfo(np.float32).max)


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
            is_told = self._connection.poll(START_S)
            mistake = json.loads(self._connection.recv_bytes(_LARGEST_BYTES)) if is_told else f"took over {START_S:g} s"
        except (ValueError, RecursionError):
            mistake = "it writes to the process's own pipe"
        except (EOFError, OSError):
            mistake = f"its process {self._describe_ending()}"
        if mistake is not None:
            self.stop()
            raise GradeError(f"grade.grader: `{self._grader}` cannot be imported: {mistake}.")
        return self

    def grade(self, pair: tuple[str, str | None]) -> Outcome:
        """Ask for one grade; a process that gives none in time is stopped."""
        if self._process is None:
            self.start()
        try:
            self._connection.send_bytes(json.dumps(pair).encode())
            if self._connection.poll(self._timeout_s):
                return _read_outcome(self._connection.recv_bytes(_LARGEST_BYTES))
            failure = f"timed out after {self._timeout_s:g} s"
        except (EOFError, OSError):
            failure = self._describe_ending()
        except (TypeError, ValueError, RecursionError):
            failure = "sent something else than an outcome"
        self.stop()
        return _failure(failure)

    def stop(self) -> None:
        """Kill the process and all that it started."""
        if self._process is None:
            return
        _kill_with_children(self._process.pid)
        self._process.join()
        self._connection.close()
        self._process = None

    def _describe_ending(self) -> str:
        self._process.join(1.0)
        code = self._process.exitcode
        if code is None:
            return "closed its connection, or sent too much"
        return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"


def _serve(grader: str, connection: Connection) -> None:
    """Import the grader in the process, tell whether that worked, and grade what comes until nobody asks."""
    os.setsid()  # Ctrl-C is its owner's
    _adopt_orphans()
    threading.Thread(target=_end_with_owner, daemon=True).start()
    sys.path.insert(0, str(Path.cwd()))
    try:
        module, _, name = grader.partition(":")
        function: Any = getattr(importlib.import_module(module), name)
        mistake = None if callable(function) else f"`{name}` is no function"
    except (Exception, SystemExit) as error:
        function, mistake = None, _describe_error(error)
    connection.send_bytes(json.dumps(mistake).encode())
    while mistake is None:
        try:
            response, answer = json.loads(connection.recv_bytes())
        except EOFError:
            return
        outcome = _grade(function, response, answer)
        connection.send_bytes(json.dumps([*outcome.grade, outcome.failed]).encode())


def _end_with_owner() -> None:
    owner = multiprocessing.parent_process()
    assert owner is not None
    owner.join()
    _kill_with_children(os.getpid())


def _adopt_orphans() -> None:
    """Stay the parent of what a grader starts, whichever way: a process of which no parent lives is found by nobody."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _kill_with_children(pid: int) -> None:
    """Kill a process and all that it started, in sessions of their own, too."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if pid != os.getpid():
            process.suspend()  # it starts no others meanwhile
        while alive := [child for child in process.children(recursive=True) if _is_alive(child)]:
            for child in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            psutil.wait_procs(alive, timeout=0.1)
        process.kill()


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _read_outcome(message: bytes) -> Outcome:
    correct, reward, feedback, failed = json.loads(message)
    return Outcome(_as_grade({"correct": correct, "reward": reward, "feedback": feedback}), bool(failed))


def _grade(function: Callable[[str, str | None], Any], response: str, answer: str | None) -> Outcome:
    try:
        value = function(response, answer)
    except (Exception, SystemExit) as error:
        return _failure(f"raised {_describe_error(error)}")
    try:
        return Outcome(_as_grade(value), failed=False)
    except (TypeError, ValueError, OverflowError) as error:
        return _failure(f"returned {reprlib.repr(value)}, which is no grade: {error}")


def _as_grade(value: Any) -> Verdict:
    """Read what a grader of the user's returned as correct, reward and feedback."""
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
    if len(feedback or "") > LONGEST:
        raise ValueError(f"`feedback` is longer than {LONGEST} characters")
    (feedback or "").encode()  # half a surrogate pair cannot be written
    if reward is None:
        return correct, None if correct is None else float(correct), feedback
    return correct, _reward(reward), feedback


def _plain(value: Any) -> Any:
    """Turn a scalar of numpy's into Python's own."""
    return value.item() if isinstance(value, np.generic) else value


def _reward(value: Any) -> float:
    if not isinstance(value, bool | int | float):
        raise TypeError("`reward` is neither a number nor None")
    if not math.isfinite(value) or abs(value) > _LARGEST_REWARD:
        raise ValueError("the reward is not a finite number of fp32")
    return float(value)


def _describe_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[: LONGEST // 2].encode(errors="replace").decode()


def _failure(what: str) -> Outcome:
    return Outcome((None, None, f"grader {what}"), failed=True)
