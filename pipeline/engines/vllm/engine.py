"""The vLLM engine: fast, batched by vLLM's scheduler, over several GPUs, quantised.

It scores in two ways. *By hidden states* (the default): vLLM's pooling runner gives last hidden states, and the
project's own head does the rest, so any ids, the exact tail and the entropy are to be had. *By vLLM's own prompt
log-probabilities* (`hidden_states: false`, and every stage but `score`): no second output layer in memory, but no ids
beyond the top k, tails that are derived, and no entropies.

vLLM tells either raw or processed log-probabilities, and raw ones are needed; so `sampling_logprobs` is None even
where a response is not drawn from the whole distribution at temperature 1, and a recipe with a ratio refuses it.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from pipeline.engines.engine import WRITING, EngineUse, Request, Response, ScoreRequest, check_top_k, find_context_limit
from pipeline.engines.scores import unpad_scores
from pipeline.engines.vllm import process
from pipeline.engines.vllm.lora import read_rank
from pipeline.engines.vllm.process import Runner, VllmRequest
from pipeline.engines.vllm.prompt_logprobs import read_scores
from pipeline.errors import EngineError
from pipeline.head.layer import OutputLayer
from pipeline.head.scores import score_tokens
from pipeline.head.support import Support
from pipeline.models.output_layer import load_output_layer
from pipeline.models.record import Model
from pipeline.progress import Progress
from pipeline.settings.machine import Machine
from pipeline.settings.models import EngineSettings, Sampling
from pipeline.storage.scores import Scores

LEAST_TEMPERATURE = 0.01
"""vLLM silently takes a smaller one, but for 0, as this."""

BATCHES_IN_FLIGHT = 8
"""Scoring hands vLLM so many batches ahead: it never waits for the head, and few hidden states wait for it."""

VLLM_MAX_LOGPROBS = 20
"""Ids that vLLM gives at a position unless it is opened to give more."""

LOGITS_AT_ONCE = 2**28
"""Most logits of one batch, 1 GiB in fp32. For prompt log-probabilities vLLM holds some such matrices, tokens ×
vocabulary, that it leaves out when it measures how much memory the cache may take (vllm#5907): long batches of a
large vocabulary ran out of it."""

_Mode = Literal["writing", "hidden_states", "prompt_logprobs"]
"""How vLLM is opened."""


class VllmEngine:
    """A model of vLLM's; generating and scoring by hidden states are two engines, of which one is open at a time."""

    def __init__(self, model: Model, settings: EngineSettings, machine: Machine, use: EngineUse = WRITING):
        model.check_unchanged()
        self.device = process.find_device(machine)
        self.model, self.settings, self.machine = model, settings, machine
        self.context = find_context_limit(model, settings)
        self.by_hidden_states = use.scores_by == "hidden_states"
        # An engine that writes scores on what it writes with: `refresh` measures drift so.
        self._scoring_mode: _Mode = use.scores_by or "writing"
        self._max_logprobs = max(VLLM_MAX_LOGPROBS, use.top_k)
        self._lora_rank = read_rank(settings.adapter, self.by_hidden_states) if settings.adapter else None
        self._runner: Runner | None = None
        self._mode: _Mode | None = None
        self._output: OutputLayer | None = None

    def __enter__(self) -> "VllmEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End vLLM's processes and free the model's memory."""
        self._output = None
        if self._runner is not None:
            runner, self._runner = self._runner, None
            runner.close()

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, top_k: int = 0, progress: Progress | None = None
    ) -> list[Response]:
        """Write one response to each request, as `Engine.generate` says."""
        if not requests:
            return []
        if 0 < sampling.temperature < LEAST_TEMPERATURE:
            raise EngineError(
                f"sampling.temperature is {sampling.temperature}: vLLM would take {LEAST_TEMPERATURE} in its place. "
                "Set 0 (the likeliest token each time) or at least that."
            )
        prompts = [np.asarray(request.prompt_ids, np.int64) for request in requests]
        lengths = [len(prompt) + sampling.max_tokens for prompt in prompts]
        self._check(prompts, top_k, "refresh.behaviour_top_k", by_hidden_states=False)
        runner = self._open("writing", lengths, "a prompt and sampling.max_tokens")
        submitted = [
            VllmRequest(request.prompt_ids, self._sampling_params(request, sampling, top_k)) for request in requests
        ]
        responses: dict[int, Response] = {}
        for number, output in runner.run(submitted):
            responses[number] = _response(output.outputs[0], top_k)
            if progress is not None:
                progress(1, len(responses[number].ids))
        return [responses[number] for number in range(len(submitted))]

    def score(self, requests: Sequence[ScoreRequest], support: Support, progress: Progress | None = None) -> Scores:
        """Score each response, as `Engine.score` says; entropies are None by prompt log-probabilities."""
        if not requests:
            return Scores.concatenate([])
        by_hidden_states = self.by_hidden_states
        if not by_hidden_states:
            self._check_prompt_logprobs(requests)
        wholes = [np.concatenate([request.prompt_ids, request.response_ids]).astype(np.int64) for request in requests]
        self._check(wholes, support.top_k, "score.views.*.support.top_k", by_hidden_states=by_hidden_states)
        # vLLM gives no log-probabilities of a prompt to a request that writes nothing.
        lengths = [len(whole) + (not by_hidden_states) for whole in wholes]
        what = "a sequence" if by_hidden_states else "a sequence, and one token that vLLM wants room for behind it,"
        runner = self._open(self._scoring_mode, lengths, what)
        score = self._score_hidden_states if by_hidden_states else self._read_prompt_logprobs
        # The last token's own hidden state predicts nothing that is asked.
        ends = -1 if by_hidden_states else None
        submitted = [VllmRequest(whole[:ends].tolist(), self._scoring_params(support)) for whole in wholes]
        parts: dict[int, Scores] = {}
        for number, output in runner.run(submitted, BATCHES_IN_FLIGHT * self.machine.vllm.max_num_batched_tokens):
            parts[number] = score(output, requests[number], support)
            if progress is not None:
                progress(1, len(requests[number].response_ids))
        return Scores.concatenate([parts[number] for number in range(len(submitted))])

    def _score_hidden_states(self, output: Any, request: ScoreRequest, support: Support) -> Scores:
        import torch

        if self._output is None:  # after vLLM has taken its share of the memory
            self._output = load_output_layer(self.model, torch.device(self.device))
        device = self._output.weight.device
        hidden = output.outputs.data[len(request.prompt_ids) - 1 :].to(device, torch.float32)
        asked = request.asked_ids
        asked = None if asked is None else torch.from_numpy(np.asarray(asked, np.int64)).to(device)
        sampled_ids = torch.from_numpy(np.asarray(request.response_ids, np.int64)).to(device)
        return unpad_scores(score_tokens(hidden, self._output, sampled_ids, asked, support))

    def _read_prompt_logprobs(self, output: Any, request: ScoreRequest, support: Support) -> Scores:
        return read_scores(output.prompt_logprobs, len(request.prompt_ids), self.model.vocabulary, support)

    def _sampling_params(self, request: Request, sampling: Sampling, top_k: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            seed=request.seed,
            stop_token_ids=list(self.model.eos_ids),
            logprobs=top_k,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _scoring_params(self, support: Support) -> Any:
        from vllm import PoolingParams, SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if self.by_hidden_states:
            return PoolingParams(task="token_embed", use_activation=False)
        return SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=support.top_k,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _check(self, sequences: list[np.ndarray], top_k: int, setting: str, by_hidden_states: bool) -> None:
        """Refuse what vLLM would not notice, or notice late."""
        for ids in sequences:
            if len(ids) == 0 or int(ids.min()) < 0 or int(ids.max()) >= self.model.tokens:
                found = f"{int(ids.min())} to {int(ids.max())}" if len(ids) else "none"
                raise EngineError(
                    f"token ids from 0 to {self.model.tokens - 1} are expected by {self.model.name}, found {found}:"
                    " another model's prompts or rollouts?"
                )
        check_top_k(top_k, self.model, setting)
        if not by_hidden_states and top_k > self._max_logprobs:
            raise EngineError(
                f"{setting} is {top_k}, and vLLM was opened to give {self._max_logprobs} ids at a position: lower it, "
                "or set `score.hidden_states: true`."
            )

    def _check_prompt_logprobs(self, requests: Sequence[ScoreRequest]) -> None:
        if any(request.asked_ids is not None and (request.asked_ids >= 0).any() for request in requests):
            raise EngineError(
                "ids besides the model's own top k (`same_as`, `behaviour`) cannot be scored from vLLM's prompt "
                "log-probabilities: set `score.hidden_states: true`."
            )
        if self.settings.adapter and self.device == "cpu":
            # Its LoRA layer counts sampled tokens where prompt log-probabilities have a row for every token.
            raise EngineError(
                f"vLLM on a CPU gives no prompt log-probabilities with a LoRA adapter ({self.settings.adapter}): set "
                "`score.hidden_states: true`; where `refresh` measures drift, merge the adapter or use `engine: hf`."
            )

    def _open(self, mode: _Mode, lengths: list[int], what: str) -> Runner:
        """Open vLLM for the task, once everything is known to fit."""
        longest = max(lengths)
        if self.context is not None and longest > self.context:
            raise EngineError(
                f"{what} of {longest} tokens does not fit {self.model.name}, whose context is {self.context} tokens. "
                "Shorten sampling.max_tokens, or leave long prompts out in `prompts`."
            )
        if self._mode != mode:
            self.close()
        if self._runner is None:
            self._runner = Runner(self._arguments(mode), self.model.name, self.settings.adapter)
            self._mode = mode
        if longest > self._runner.context:
            raise EngineError(
                f"{what} of {longest} tokens does not fit the memory that vLLM found: {self._runner.context} tokens do "
                f"({self.model.name}). Raise vllm.gpu_memory_utilization, on a CPU vllm.cpu_cache_gib, in machine.yaml."
            )
        return self._runner

    def _arguments(self, mode: _Mode) -> dict[str, Any]:
        machine, settings = self.machine.vllm, self.settings
        arguments: dict[str, Any] = {
            "model": self.model.location,
            "revision": self.model.commit,
            "dtype": settings.dtype,
            "quantization": settings.quantization,
            "max_model_len": settings.max_model_len or -1,  # -1: the model's own, or less where memory holds less
            "max_logprobs": self._max_logprobs,
            "tensor_parallel_size": machine.tensor_parallel_size,
            "gpu_memory_utilization": machine.gpu_memory_utilization,
            "max_num_seqs": machine.max_num_seqs,
            "max_num_batched_tokens": self._batched_tokens(mode),
            "enforce_eager": machine.enforce_eager,
            "generation_config": "vllm",  # the sampling is ours, not what the checkpoint recommends
            "skip_tokenizer_init": True,
            "use_tqdm_on_load": False,
            "disable_log_stats": True,
        }
        if self._lora_rank is not None:
            arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": self._lora_rank}
        if mode == "hidden_states":
            arguments |= {"runner": "pooling", "convert": "embed", "enable_prefix_caching": False}
            arguments |= {"pooler_config": {"task": "token_embed", "use_activation": False}}
        elif mode == "writing" and self.device == "cpu":
            # A prompt in pieces draws a token for each piece and winds its generator back, which torch has for CUDA
            # alone ("CPU Generator does not use offset").
            arguments |= {"enable_chunked_prefill": False}
        return arguments

    def _batched_tokens(self, mode: _Mode) -> int:
        """Choose how many tokens vLLM computes at once."""
        wanted = self.machine.vllm.max_num_batched_tokens
        if mode == "hidden_states":
            return wanted
        if mode == "writing" and self.device == "cpu":  # whole prompts
            return max(wanted, self.context or wanted)
        # vLLM wants a token for each of its sequences.
        return min(wanted, max(self.machine.vllm.max_num_seqs, LOGITS_AT_ONCE // self.model.vocabulary))


def _response(written: Any, top_k: int) -> Response:
    if written.finish_reason not in ("stop", "length"):
        raise EngineError(f"vLLM gave a response up: {written.finish_reason} ({written.stop_reason}).")
    entries = (len(written.token_ids), top_k + 1)
    logprobs = np.array(written.logprobs.logprobs, np.float32).reshape(entries)
    topk_ids = np.array(written.logprobs.token_ids, np.int32).reshape(entries)[:, 1:]
    return Response(
        np.array(written.token_ids, np.int32),
        logprobs[:, 0].copy(),
        None,
        topk_ids if top_k else None,
        written.finish_reason,
    )
