"""A bigram model whose probabilities are known exactly: for tests of everything around a model.

It opens the folder of a Llama whose layers, if it has any, add nothing: there the next token depends on the last one
alone, so its whole behaviour is one table, computed here with numpy. The other engines open the same folder, and must
agree.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from pipeline.engines.engine import Request, Response, ScoreRequest, check_top_k
from pipeline.errors import EngineError
from pipeline.head.support import Support
from pipeline.models.record import Model
from pipeline.progress import Progress
from pipeline.settings.models import EngineSettings, Sampling
from pipeline.storage.ragged import Ragged
from pipeline.storage.scores import Scores

VERSION = 1  # raise it when a rollout or a score would change; they are then made again

LIBRARIES = ("numpy",)

TAIL = "exact"
"""How tails come about: by a logsumexp over all ids outside the entries."""


class BigramEngine:
    """Table lookups; float64 inside."""

    def __init__(self, model: Model, settings: EngineSettings):  # noqa: ARG002 - as the other engines
        model.check_unchanged()
        self.model = model
        self.logprobs = bigram_logprobs(Path(model.location))

    def __enter__(self) -> "BigramEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing to free."""

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, top_k: int = 0, progress: Progress | None = None
    ) -> list[Response]:
        """Write one response to each request, as `Engine.generate` says."""
        check_top_k(top_k, self.model, "refresh.behaviour_top_k")
        responses = [self._write(request, sampling, top_k) for request in requests]
        if progress is not None:
            progress(len(responses), sum(len(response.ids) for response in responses))
        return responses

    def score(self, requests: Sequence[ScoreRequest], support: Support, progress: Progress | None = None) -> Scores:
        """Score each response, as `Engine.score` says."""
        check_top_k(support.top_k, self.model, "score.views.*.support.top_k")
        sampled, own, tails, entropies, values = [], [], [], [], []
        ids: list[list[int]] = []
        for request in requests:
            last = [int(request.prompt_ids[-1]), *map(int, request.response_ids[:-1])]
            for position, (before, token) in enumerate(zip(last, map(int, request.response_ids), strict=True)):
                row = self.logprobs[before]
                asked = () if request.asked_ids is None else request.asked_ids[position]
                kept = _choose_own(row, support)
                more = sorted({int(id_) for id_ in asked if id_ >= 0} - set(kept), key=lambda id_: (-row[id_], id_))
                outside = np.delete(row, kept + more)
                sampled.append(row[token])
                own.append(len(kept))
                ids.append(kept + more)
                values.append(row[kept + more])
                tails.append(np.logaddexp.reduce(outside) if len(outside) else -np.inf)
                entropies.append(-(np.exp(row) * row).sum())
            if progress is not None:
                progress(1, len(request.response_ids))
        return Scores(
            np.array(sampled, np.float32),
            Ragged.from_rows(ids, np.int32),
            Ragged.from_rows(values, np.float32),
            np.array(own, np.uint16),
            np.array(tails, np.float32),
            np.array(entropies, np.float32) if support.entropies else None,
        )

    def _write(self, request: Request, sampling: Sampling, top_k: int) -> Response:
        random = np.random.Generator(np.random.Philox(request.seed))
        last = int(request.prompt_ids[-1])
        ids: list[int] = []
        behaviour, sampled, tops = [], [], []
        while len(ids) < sampling.max_tokens and not (ids and ids[-1] in self.model.eos_ids):
            row = self.logprobs[last]
            warped = _warped(row, sampling)
            last = int(random.choice(len(row), p=np.exp(warped)))
            ids.append(last)
            behaviour.append(row[last])
            sampled.append(warped[last])
            tops.append(_choose_own(row, Support(top_k)))
        return Response(
            np.array(ids, np.int32),
            np.array(behaviour, np.float32),
            None if sampling.is_whole else np.array(sampled, np.float32),
            np.array(tops, np.int32) if top_k else None,
            "stop" if ids[-1] in self.model.eos_ids else "length",
        )


def bigram_logprobs(folder: Path) -> np.ndarray:
    """The table [last token, next token] of log-probabilities of a Llama whose layers add nothing, float64.

    Raises:
        EngineError: the folder holds another model.
    """
    config = json.loads((folder / "config.json").read_text())
    tensors = {name: tensor.astype(np.float64) for name, tensor in load_file(folder / "model.safetensors").items()}
    adds = any(tensor.any() for name, tensor in tensors.items() if name.endswith(("o_proj.weight", "down_proj.weight")))
    if adds or config.get("model_type") != "llama":
        raise EngineError(f"{folder}: `engine: fake` opens bigram models for tests; use `engine: hf` for this one.")
    embedding = tensors["model.embed_tokens.weight"]
    scale = np.sqrt((embedding**2).mean(axis=1, keepdims=True) + config["rms_norm_eps"])
    states = embedding / scale * tensors["model.norm.weight"]
    logits = states @ tensors.get("lm_head.weight", embedding).T
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def _choose_own(row: np.ndarray, support: Support) -> list[int]:
    """Choose the ids of a view's own support, as slowly and as plainly as its definition says."""
    order = sorted(range(len(row)), key=lambda id_: (-row[id_], id_))[: support.top_k]
    if support.mass is None:
        return order
    kept: list[int] = []
    for id_ in order:
        if len(kept) >= support.min_k and sum(np.exp(row[kept])) >= support.mass:
            break
        kept.append(id_)
    return kept


def _warped(row: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Log-probabilities of the distribution sampled from: temperature, then top k, then top p."""
    if sampling.temperature == 0:
        return np.where(np.arange(len(row)) == row.argmax(), 0.0, -np.inf)
    warped = row / sampling.temperature
    order = np.argsort(-warped, kind="stable")
    if sampling.top_k:
        warped[order[sampling.top_k :]] = -np.inf
    warped = warped - np.logaddexp.reduce(warped)
    before = np.cumsum(np.exp(warped[order])) - np.exp(warped[order])
    warped[order[before >= sampling.top_p]] = -np.inf
    return warped - np.logaddexp.reduce(warped)
