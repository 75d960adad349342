"""The protocol of engines: what is asked of one, and what it answers; arrays in and arrays out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from pipeline.errors import EngineError
from pipeline.head.support import Support
from pipeline.models.record import Model
from pipeline.progress import Progress
from pipeline.settings.models import EngineSettings, Sampling
from pipeline.storage.scores import Scores


@dataclass(frozen=True)
class Request:
    """One response to write.

    Attributes:
        prompt_ids: what stands before the response; ids in, ids out.
        seed: of this request alone, so that a response does not depend on what else is in its batch.
    """

    prompt_ids: Sequence[int]
    seed: int


@dataclass(frozen=True)
class Response:
    """One response, end-of-sequence token included where the model wrote it.

    Attributes:
        ids: int32 [T].
        behaviour_logprobs: float32 [T], nats at temperature 1 over the whole vocabulary, whatever it was sampled with.
        sampling_logprobs: float32 [T] under the distribution sampled from, or None where that is the same, or where
            the engine does not know it.
        topk_ids: int32 [T, k], the model's own likeliest ids, or None where none were asked for.
        finish_reason: `stop` (the model ended it) or `length` (`max_tokens` did).
    """

    ids: np.ndarray
    behaviour_logprobs: np.ndarray
    sampling_logprobs: np.ndarray | None
    topk_ids: np.ndarray | None
    finish_reason: str


@dataclass(frozen=True)
class ScoreRequest:
    """One response to score: T = len(response_ids) ≥ 1 tokens.

    Attributes:
        prompt_ids: what the scoring model sees before the response; not always what the student saw.
        response_ids: int32 [T].
        asked_ids: int32 [T, k], ids to score besides the model's own, padded with −1; or None.
    """

    prompt_ids: Sequence[int] | np.ndarray
    response_ids: np.ndarray
    asked_ids: np.ndarray | None = None


@dataclass(frozen=True)
class EngineUse:
    """The work that an engine is opened for, besides its settings.

    Attributes:
        scores_by: an engine that only scores does it from last hidden states with the project's own head, or from its
            library's prompt log-probabilities, where it has such; None for an engine that writes.
        top_k: so many of the likeliest ids are asked for at a position, at most.
    """

    scores_by: Literal["hidden_states", "prompt_logprobs"] | None = None
    top_k: int = 0


WRITING = EngineUse()
"""The use of an engine that writes, and scores what it wrote by the way."""


class Engine(Protocol):
    """A model that is open on this machine; it belongs to one process. Close it with `close` or a `with` block."""

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, top_k: int = 0, progress: Progress | None = None
    ) -> list[Response]:
        """Write one response to each request.

        Args:
            requests: prompts and seeds; the order of the responses is theirs.
            sampling: the distribution to draw from.
            top_k: also give the model's own likeliest ids at each position.
            progress: told of responses as they are finished.

        Raises:
            EngineError: a prompt leaves no room for a response in the model's context, or the vocabulary has fewer ids
                than are asked for.
        """
        ...

    def score(self, requests: Sequence[ScoreRequest], support: Support, progress: Progress | None = None) -> Scores:
        """Give each response's log-probabilities, end to end in the order of the requests.

        Args:
            requests: contexts and responses.
            support: which of the model's own ids are kept.
            progress: told of responses as they are scored.

        Raises:
            EngineError: a sequence is longer than the model's context, an id is outside its vocabulary, or the
                vocabulary has fewer ids than are asked for.
        """
        ...

    def close(self) -> None:
        """Free the model's memory and end its processes."""
        ...

    def __enter__(self) -> "Engine": ...

    def __exit__(self, *_: object) -> None: ...


def find_context_limit(model: Model, settings: EngineSettings) -> int | None:
    """Find the longest sequence, in tokens; None where neither the settings nor the model name a limit.

    Raises:
        EngineError: the settings ask for more than the model has.
    """
    asked = settings.max_model_len
    if asked is not None and model.context is not None and asked > model.context:
        raise EngineError(
            f"max_model_len is {asked}, and {model.name} has a context of {model.context} tokens: lower it, or leave "
            "it out to take the model's own."
        )
    return asked or model.context


def check_top_k(top_k: int, model: Model, setting: str) -> None:
    """Refuse to look for more ids than the model's vocabulary has.

    Raises:
        EngineError: names the setting.
    """
    if top_k > model.tokens:
        raise EngineError(f"{setting} is {top_k}, {model.name} has {model.tokens} token ids. Lower it.")
