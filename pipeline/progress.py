"""Progress with speed and time left, on standard error: a bar on a terminal, a line now and then in a log file.

A log file gets a line for every ten per cent, ten seconds apart at least and a minute at most: enough to see that a
stage is alive, and no more than a person reads.
"""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

Progress = Callable[[int, int], None]
"""Called with the responses, and the tokens in them, that were just finished."""

SHARE_APART, LEAST_SECONDS_APART, MOST_SECONDS_APART = 0.1, 10.0, 60.0
"""How far apart the lines in a log file are."""


class Meter:
    """Shows how much of something is done; nothing before `start`, and time is counted from there."""

    def __init__(self, total: int, what: str, unit: str):
        self.total, self._what, self._unit = total, what, unit
        self._bar: tqdm | None = None
        self._is_shown = False
        self._done = self._found = self._told = 0
        self._note = ""
        self._started = self._told_at = time.monotonic()

    def start(self, done: int = 0) -> None:
        """Begin; of the whole, so much was done before and says nothing of the speed. A second call does nothing."""
        if self._is_shown:
            return
        self._is_shown = True
        self._done = self._found = self._told = done
        self._started = self._told_at = time.monotonic()
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=self.total, initial=done, desc=self._what, unit=self._unit, dynamic_ncols=True, mininterval=0.5
            )

    def advance(self, count: int, note: str = "") -> None:
        """Count what was just finished; the note stands behind the numbers."""
        self.start()
        self._done, self._note = self._done + count, note
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif self._is_line_due():
            self._write_line()

    def close(self) -> None:
        """End the bar, or write how far it came in a last line."""
        if self._bar is not None:
            self._bar.close()
        elif self._done > self._told:
            self._write_line()

    @property
    def seconds(self) -> float:
        """The time since the start."""
        return max(time.monotonic() - self._started, 1e-9)

    def _is_line_due(self) -> bool:
        waited = time.monotonic() - self._told_at
        is_far = self._done - self._told >= SHARE_APART * self.total
        return waited >= MOST_SECONDS_APART or (waited >= LEAST_SECONDS_APART and is_far)

    def _write_line(self) -> None:
        self._told, self._told_at = self._done, time.monotonic()
        left = self.seconds / (self._done - self._found) * (self.total - self._done)
        parts = [
            f"{self._done:,} of {self.total:,} {self._unit}s ({self._done / (self.total or self._done):.0%})",
            *([self._note] if self._note else []),
            f"{tqdm.format_interval(left)} left" if left > 0 else f"took {tqdm.format_interval(self.seconds)}",
        ]
        print(f"{self._what}: {', '.join(parts)}", file=sys.stderr, flush=True)


class Bar:
    """Progress over responses, with tokens per second and time left."""

    def __init__(self, total: int, what: str):
        self._meter = Meter(total, what, "response")
        self._tokens = 0

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._meter.close()

    def start(self) -> None:
        """Show it and count the time from here, where there is something to do."""
        if self._meter.total:
            self._meter.start()

    def __call__(self, responses: int, tokens: int) -> None:
        """Advance by responses that were just finished, and the tokens in them."""
        self._tokens += tokens
        self._meter.advance(responses, f"{self._tokens / self._meter.seconds:,.0f} tokens/s")
