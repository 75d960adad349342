"""What an engine gives is finite, or the stage ends: no shard holds a number that is none."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.engines.engine import Engine, Request, Response, ScoreRequest
from pipeline.errors import EngineError
from pipeline.head.support import Support
from pipeline.models.record import Model
from pipeline.progress import Progress
from pipeline.settings.models import EngineSettings, Sampling
from pipeline.storage.scores import Scores


class CheckedEngine:
    """An engine whose responses and scores are looked at before anybody else sees them."""

    def __init__(self, engine: Engine, model: Model, settings: EngineSettings):
        self.inner, self._model, self._settings = engine, model, settings

    def __enter__(self) -> "CheckedEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the engine."""
        self.inner.close()

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, top_k: int = 0, progress: Progress | None = None
    ) -> list[Response]:
        """Write as `Engine.generate` says.

        Raises:
            EngineError: a log-probability is no finite number.
        """
        responses = self.inner.generate(requests, sampling, top_k, progress)
        for number, response in enumerate(responses):
            for values in (response.behaviour_logprobs, response.sampling_logprobs):
                if values is not None and (wrong := _find_wrong(values, ~np.isfinite(values))):
                    raise self._no_number(f"response {number + 1} of {len(responses)}, token {wrong[0] + 1}", wrong[1])
        return responses

    def score(self, requests: Sequence[ScoreRequest], support: Support, progress: Progress | None = None) -> Scores:
        """Score as `Engine.score` says.

        Raises:
            EngineError: a log-probability or an entropy is no finite number; a tail of −inf says that nothing is left.
        """
        scores = self.inner.score(requests, support, progress)
        wrong = (
            _find_wrong(scores.sampled_logprobs, ~np.isfinite(scores.sampled_logprobs))
            or _find_wrong(scores.tail_logprobs, np.isnan(scores.tail_logprobs) | np.isposinf(scores.tail_logprobs))
            or _find_wrong(scores.logprobs.values, ~np.isfinite(scores.logprobs.values), scores.logprobs.offsets)
        )
        if wrong is None and scores.entropies is not None:
            wrong = _find_wrong(scores.entropies, ~np.isfinite(scores.entropies))
        if wrong is not None:
            ends = np.cumsum([len(request.response_ids) for request in requests])
            row = int(np.searchsorted(ends, wrong[0], side="right"))
            token = wrong[0] - (ends[row - 1] if row else 0)
            raise self._no_number(f"response {row + 1} of {len(requests)}, token {token + 1}", wrong[1])
        return scores

    def _no_number(self, where: str, value: float) -> EngineError:
        return EngineError(
            f"{self._model.name} gives {value} as a log-probability ({where}), by engine {self._settings.engine} in "
            f"{self._settings.dtype}: numbers overflow, or its weights are damaged. Try `dtype: bfloat16` or "
            "`dtype: float32` in the stage's settings; nothing of this shard was written."
        )


def _find_wrong(values: np.ndarray, is_wrong: Any, offsets: np.ndarray | None = None) -> tuple[int, float] | None:
    """Find the first wrong value, and the token that it belongs to; entries are told by where each token's begin."""
    if not is_wrong.any():
        return None
    place = int(np.argmax(is_wrong))
    token = place if offsets is None else int(np.searchsorted(offsets, place, side="right")) - 1
    return token, float(values[place])
