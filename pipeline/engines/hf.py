"""The transformers engine: exact, on any device; a response does not depend on what shares its batch.

Generation draws each token by inverting the distribution at one uniform number per request and position, so that
every request has its own seed. Scoring packs sequences and sends response positions alone through the head.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pipeline.engines.decoding import TOKENS, Decoding, choose_decoding
from pipeline.engines.engine import Request, Response, ScoreRequest, check_top_k, find_context_limit
from pipeline.engines.scores import unpad_scores
from pipeline.errors import EngineError
from pipeline.head.scores import score_tokens
from pipeline.head.support import Support
from pipeline.models.open import open_student
from pipeline.models.packing import build_pack, plan_batches
from pipeline.models.record import Model
from pipeline.progress import Progress
from pipeline.settings.machine import Machine
from pipeline.settings.models import EngineSettings, Sampling
from pipeline.storage.scores import Scores

VERSION = 2  # raise it when a rollout or a score would change; they are then made again

LIBRARIES = ("torch", "transformers")

TAIL = "exact"
"""How tails come about: by a logsumexp over all ids outside the entries."""


class HfEngine:
    """A model of transformers in one process."""

    def __init__(self, model: Model, settings: EngineSettings, machine: Machine):
        self.device = torch.device("cuda" if machine.device != "cpu" and torch.cuda.is_available() else "cpu")
        if machine.device == "cuda" and self.device.type != "cuda":
            raise EngineError("machine.yaml asks for `device: cuda`, and torch sees no GPU here.")
        self.model, self.machine, self.context = model, machine, find_context_limit(model, settings)
        self.student = open_student(model, getattr(torch, settings.dtype), settings.adapter).to(self.device).eval()

    def __enter__(self) -> "HfEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model's memory."""
        del self.student
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Request], sampling: Sampling, top_k: int = 0, progress: Progress | None = None
    ) -> list[Response]:
        """Write one response to each request, as `Engine.generate` says."""
        check_top_k(top_k, self.model, "refresh.behaviour_top_k")
        for request in requests:
            self._check_length(len(request.prompt_ids) + sampling.max_tokens, "a prompt and sampling.max_tokens")
        responses: dict[int, Response] = {}
        for batch in self._plan_batches(requests):
            written = self._generate([requests[index] for index in batch], sampling, top_k, self._decoding)
            responses.update(zip(batch, written, strict=True))
            if progress is not None:
                progress(len(written), sum(len(response.ids) for response in written))
        return [responses[index] for index in range(len(requests))]

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest], support: Support, progress: Progress | None = None) -> Scores:
        """Score each response, as `Engine.score` says."""
        prompts = [np.asarray(request.prompt_ids, np.int64) for request in requests]
        responses = [np.asarray(request.response_ids, np.int64) for request in requests]
        lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
        for length in lengths:
            self._check_length(length, "a sequence")
        check_top_k(support.top_k, self.model, "score.views.*.support.top_k")
        self._check_ids(prompts, responses)
        output = self.student.output()
        parts: dict[int, Scores] = {}
        for rows in plan_batches(lengths, self.machine.score_tokens, self.student.layout):
            pack = build_pack(rows, prompts, responses).to(self.device)
            asked = _pad_asked([requests[index].asked_ids for index in pack.sequences])
            asked = None if asked is None else asked.to(self.device)
            padded = score_tokens(self.student.hidden(pack), output, pack.sampled_ids, asked, support)
            taken = [len(responses[index]) for index in pack.sequences]
            parts.update(zip(map(int, pack.sequences), unpad_scores(padded).cut(taken), strict=True))
            if progress is not None:
                progress(len(pack.sequences), len(pack.sampled_ids))
        return Scores.concatenate([parts[index] for index in range(len(requests))])

    @functools.cached_property
    def _decoding(self) -> Decoding:
        """The way of decoding that is right for this model, found out when something is first written."""
        few = Sampling(max_tokens=TOKENS)

        def write(requests: Sequence[Request], decoding: Decoding) -> list[Response]:
            return self._generate(requests, few, 0, decoding)

        return choose_decoding(self.student, write, self.model.name, self.model.tokens)

    def _plan_batches(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Shortest prompts first: less padding, and it stands on the left; or prompts of one length alone."""
        lengths = [len(request.prompt_ids) for request in requests]
        order = sorted(range(len(requests)), key=lengths.__getitem__)
        alike = lengths.__getitem__ if self._decoding is not Decoding.PADDED else lambda _: 0
        for _, group in itertools.groupby(order, key=alike):
            batch, rows = list(group), self.machine.generate_rows
            yield from (batch[start : start + rows] for start in range(0, len(batch), rows))

    def _generate(
        self, requests: Sequence[Request], sampling: Sampling, top_k: int, decoding: Decoding
    ) -> list[Response]:
        longest = max(len(request.prompt_ids) for request in requests)
        ids = np.zeros((len(requests), longest), np.int64)
        is_prompt = np.zeros((len(requests), longest), np.int64)
        for row, request in enumerate(requests):
            ids[row, longest - len(request.prompt_ids) :] = request.prompt_ids
            is_prompt[row, longest - len(request.prompt_ids) :] = 1
        drawn = [
            np.random.Generator(np.random.Philox(request.seed)).random(sampling.max_tokens) for request in requests
        ]
        draw = _Draw(sampling, torch.from_numpy(np.stack(drawn)).to(self.device), top_k, self.student.tokens)
        eos_ids = list(self.model.eos_ids)
        written = self.student.transformer.generate(
            torch.from_numpy(ids).to(self.device),
            attention_mask=torch.from_numpy(is_prompt).to(self.device),
            generation_config=GenerationConfig(
                max_new_tokens=sampling.max_tokens,
                do_sample=False,
                use_cache=decoding is not Decoding.UNCACHED,
                eos_token_id=eos_ids,
                pad_token_id=eos_ids[0],
            ),
            logits_processor=LogitsProcessorList([draw]),
        )
        return draw.responses(written[:, longest:].cpu().numpy(), eos_ids)

    def _check_length(self, length: int, what: str) -> None:
        if self.context is not None and length > self.context:
            raise EngineError(
                f"{what} of {length} tokens does not fit {self.model.name}, whose context is {self.context} tokens. "
                "Shorten sampling.max_tokens, or leave long prompts out in `prompts`."
            )

    def _check_ids(self, prompts: list[np.ndarray], responses: list[np.ndarray]) -> None:
        vocabulary = len(self.student.output().weight)
        highest = max((int(ids.max()) for ids in [*prompts, *responses]), default=0)
        if highest >= vocabulary:
            raise EngineError(
                f"token id {highest} is outside the {vocabulary} ids of {self.model.name}: another model's rollouts?"
            )


class _Draw(LogitsProcessor):
    """Chooses each next token, and notes its log-probabilities; `generate` then only has the choice left."""

    def __init__(self, sampling: Sampling, uniforms: torch.Tensor, top_k: int, tokens: int | None):
        self.sampling, self.uniforms, self.top_k, self.tokens = sampling, uniforms, top_k, tokens
        self.warpers = LogitsProcessorList()
        if sampling.temperature not in (0.0, 1.0):
            self.warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            self.warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))
        self.behaviour: list[torch.Tensor] = []
        self.sampled: list[torch.Tensor] = []
        self.tops: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        logprobs = scores[:, : self.tokens].float().log_softmax(dim=-1)
        warped = logprobs if self.sampling.is_whole else self.warpers(input_ids, logprobs).log_softmax(dim=-1)  # pyright: ignore[reportArgumentType]
        if self.sampling.temperature == 0.0:
            chosen = logprobs.argmax(dim=-1, keepdim=True)
            warped = torch.full_like(logprobs, -torch.inf).scatter(-1, chosen, 0.0)
        else:
            step = len(self.behaviour)
            cumulative = warped.double().exp().cumsum(dim=-1)
            # The last column is 1 but for rounding: scaled by it, no uniform number falls behind the last id.
            point = self.uniforms[:, step : step + 1] * cumulative[:, -1:]
            chosen = torch.searchsorted(cumulative, point, right=True).clamp_max(logprobs.shape[-1] - 1)
        self.behaviour.append(logprobs.gather(-1, chosen).squeeze(-1))
        self.sampled.append(warped.gather(-1, chosen).squeeze(-1))
        if self.top_k:
            self.tops.append(logprobs.topk(self.top_k, dim=-1).indices)
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)  # pyright: ignore[reportReturnType]

    def responses(self, written: np.ndarray, eos_ids: list[int]) -> list[Response]:
        """Cut each row behind its first end-of-sequence token."""
        behaviour = torch.stack(self.behaviour, dim=1).cpu().numpy().astype(np.float32)
        sampled = torch.stack(self.sampled, dim=1).cpu().numpy().astype(np.float32)
        tops = torch.stack(self.tops, dim=1).cpu().numpy().astype(np.int32) if self.tops else None
        responses = []
        for row, ids in enumerate(written):
            ends = np.flatnonzero(np.isin(ids, eos_ids))
            length = int(ends[0]) + 1 if len(ends) else len(ids)
            responses.append(
                Response(
                    ids[:length].astype(np.int32),
                    behaviour[row, :length],
                    None if self.sampling.is_whole else sampled[row, :length],
                    None if tops is None else tops[row, :length],
                    "stop" if len(ends) else "length",
                )
            )
        return responses


def _pad_asked(asked: list[np.ndarray | None]) -> torch.Tensor | None:
    """Lay the sequences' matrices end to end, as wide as the widest."""
    widths = [0 if ids is None else ids.shape[1] for ids in asked]
    if not any(widths):
        return None
    padded = [
        np.pad(ids, ((0, 0), (0, max(widths) - ids.shape[1])), constant_values=-1) for ids in asked if ids is not None
    ]
    assert len(padded) == len(asked), "ids are asked for every sequence of a call, or for none"
    return torch.from_numpy(np.concatenate(padded).astype(np.int64))
