"""Progress bars over responses, with tokens per second and time left."""

import time
from collections.abc import Callable

from tqdm.auto import tqdm

Progress = Callable[[int, int], None]
"""Called with the responses, and the tokens in them, that were just finished."""


class Bar:
    """A progress bar over responses, with tokens per second and time left, on standard error."""

    def __init__(self, total: int, what: str):
        self._bar = tqdm(total=total, unit="response", desc=what, dynamic_ncols=True, mininterval=0.5)
        self._tokens, self._started = 0, time.monotonic()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, responses: int, tokens: int) -> None:
        """Advance the bar by responses that were just finished, and the tokens in them."""
        self._tokens += tokens
        rate = self._tokens / max(time.monotonic() - self._started, 1e-9)
        self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        self._bar.update(responses)
