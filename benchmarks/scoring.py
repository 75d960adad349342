"""Scoring at a vocabulary of 151,936: each way to score against vLLM used plainly, and `hf` against a bare forward.

    python -m benchmarks.scoring --check

- The first rows score the same sequences with a small Qwen3, once per way and K. Their baseline asks vLLM for
  `prompt_logprobs=K` and leaves the rest at its defaults: a list of dictionaries of objects, each with its text. Ours
  give arrays; by hidden states and on `hf` they include the exact tail and the entropy, which the others have not.
- The last rows score at K = 64 with a Qwen3 of 8 layers × 512. Their baseline is the same packs through the same
  transformer, then logits and the sampled token's log-probability, a chunk at a time.

Weights are random, with output layers as peaked as a trained model's. Tokens are those of responses, per second.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import typer

from benchmarks import qwen3
from benchmarks.measure import in_child, seconds
from benchmarks.qwen3 import VOCABULARY
from benchmarks.rows import Bar, Check, JsonFile, Row, conclude
from pipeline.engines.engine import EngineUse, ScoreRequest
from pipeline.engines.hf import HfEngine
from pipeline.engines.open import open_engine
from pipeline.engines.vllm import process
from pipeline.head.support import Support
from pipeline.models.packing import build_pack, plan_packs
from pipeline.models.record import record_model
from pipeline.settings.machine import Machine, VllmMachine
from pipeline.settings.models import EngineName, EngineSettings

KS = (1, 32, 128)
SEQUENCES, PROMPT, RESPONSE = 8, 32, 224
"""How many sequences, and tokens of each."""

LOGIT_SPREAD = 4.0
"""Standard deviation of the logits; the likeliest of 151,936 then has a probability of about 0.1."""

Way = Literal["naive vLLM", "vLLM flat", "vLLM hidden states", "hf"]
WAYS: tuple[Way, ...] = ("naive vLLM", "vLLM flat", "vLLM hidden states", "hf")


def main(results: JsonFile = None, check: Check = False) -> None:
    """Measure, and print a table."""
    with tempfile.TemporaryDirectory() as scratch:
        small, large = Path(scratch) / "small", Path(scratch) / "large"
        make_model(small, layers=2, hidden=64)
        rates = {way: in_child(rates_of, way, small)[0] for way in WAYS}
        make_model(large, layers=8, hidden=512)
        hf, _ = in_child(hf_rates, large)
    rows = [
        Row(f"{way} against naive vLLM, K = {k}", "tokens/s", rates[way][k], rates["naive vLLM"][k])
        for k in KS
        for way in WAYS[1:]
    ]
    rows += [
        Row("hf, K = 64, against a bare forward", "tokens/s", hf["score"], hf["forward"], Bar("≥", 0.85)),
        Row("hf, K = 64 with entropies, against a bare forward", "tokens/s", hf["entropies"], hf["forward"]),
    ]
    conclude(rows, results, check)


def make_model(folder: Path, layers: int, hidden: int) -> None:
    """Save a random Qwen3."""
    import torch

    torch.manual_seed(0)
    made = qwen3.model(layers, hidden)
    torch.nn.init.normal_(made.model.embed_tokens.weight, std=LOGIT_SPREAD / hidden**0.5)
    qwen3.save(made, folder)


def sequences() -> list[ScoreRequest]:
    """What is scored: any ids do."""
    drawn = np.random.default_rng(0).integers(1, VOCABULARY, (SEQUENCES, PROMPT + RESPONSE))
    return [ScoreRequest(row[:PROMPT], row[PROMPT:].astype(np.int32)) for row in drawn]


def machine() -> Machine:
    """The same for every way that runs vLLM."""
    return Machine(vllm=VllmMachine(enforce_eager=True, max_num_batched_tokens=1024))


def rates_of(way: Way, folder: Path) -> dict[int, float]:
    """Response tokens per second of one way at each K."""
    os.environ["TQDM_DISABLE"] = "1"
    with _opened(way, folder) as score:
        return {k: SEQUENCES * RESPONSE / seconds({way: partial(score, k)}, rounds=1)[way] for k in KS}


@contextlib.contextmanager
def _opened(way: Way, folder: Path) -> Iterator[Callable[[int], object]]:
    """A model, open, that scores the sequences at a K."""
    if way == "naive vLLM":
        with _naive(folder) as score:
            yield score
        return
    name: EngineName = "hf" if way == "hf" else "vllm"
    use = EngineUse("prompt_logprobs" if way == "vLLM flat" else "hidden_states", max(KS))
    with open_engine(record_model(str(folder)), EngineSettings(engine=name), machine(), use) as engine:
        yield lambda k: engine.score(sequences(), Support(k))


@contextlib.contextmanager
def _naive(folder: Path) -> Iterator[Callable[[int], object]]:
    """As in vLLM's examples of offline inference."""
    process.find_device(machine())
    from vllm import LLM, SamplingParams, TokensPrompt

    own = machine().vllm
    llm = LLM(
        str(folder), dtype="float32", max_logprobs=max(KS), enforce_eager=own.enforce_eager,
        max_num_batched_tokens=own.max_num_batched_tokens, gpu_memory_utilization=own.gpu_memory_utilization,
    )  # fmt: skip
    prompts = [
        TokensPrompt(prompt_token_ids=[*map(int, one.prompt_ids), *map(int, one.response_ids)]) for one in sequences()
    ]
    try:
        yield lambda k: llm.generate(prompts, SamplingParams(max_tokens=1, prompt_logprobs=k), use_tqdm=False)
    finally:
        llm.llm_engine.engine_core.shutdown(timeout=process.SHUTDOWN_S)


def hf_rates(folder: Path) -> dict[str, float]:
    """Response tokens per second of `hf` at K = 64, without and with entropies, and of the bare forward pass."""
    with HfEngine(record_model(str(folder)), EngineSettings(), machine()) as engine:
        times = seconds(
            {
                "forward": partial(forward, engine),
                "score": lambda: engine.score(sequences(), Support(64, entropies=False)),
                "entropies": lambda: engine.score(sequences(), Support(64)),
            },
            rounds=2,
        )
    return {name: SEQUENCES * RESPONSE / taken for name, taken in times.items()}


def forward(engine: HfEngine) -> list[np.ndarray]:
    """Log-probabilities of the response tokens, and nothing else."""
    import torch

    prompts, responses = zip(*[(one.prompt_ids, one.response_ids.astype(np.int64)) for one in sequences()], strict=True)
    output = engine.student.output()
    sampled = []
    with torch.inference_mode():
        for rows in plan_packs([PROMPT + RESPONSE] * SEQUENCES, engine.machine.score_tokens):
            pack = build_pack(rows, prompts, responses)
            hidden = engine.student.hidden(pack)
            for states, ids in zip(hidden.split(output.chunk), pack.sampled_ids.split(output.chunk), strict=True):
                logits = torch.nn.functional.linear(states, output.weight)
                sampled.append((logits.gather(-1, ids[:, None]).squeeze(-1) - logits.logsumexp(dim=-1)).numpy())
    return sampled


if __name__ == "__main__":
    typer.run(main)
