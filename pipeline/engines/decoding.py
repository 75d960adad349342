"""How a model of transformers is decoded: with or without padding and a cache, whichever gives its own distribution.

Prompts of several lengths are padded on the left, and what was computed of earlier tokens is kept. Both are right for
most architectures; others count positions through the padding, recur over it, or keep states that cannot be continued.
A few tokens are written each way and compared with what a plain forward pass says of them.
"""

import itertools
import logging
from collections.abc import Callable, Sequence
from enum import Enum

import numpy as np
import torch

from pipeline.engines.engine import Request, Response
from pipeline.errors import EngineError
from pipeline.models.probe import TOLERANCE
from pipeline.models.student import Student

PROMPTS, TOKENS = (5, 9, 9), 4
"""Lengths of the prompts that are tried, and the tokens that are written after each."""

log = logging.getLogger("models")


class Decoding(Enum):
    """What shares a batch, and whether states are kept; the value says what is wrong with the one before."""

    PADDED = "prompts of any length share a batch"
    EQUAL = "padding would be seen, so prompts of one length alone share a batch (slower)"
    UNCACHED = "kept states would be wrong, so every token is computed from the beginning (far slower)"


def choose_decoding(
    student: Student, write: Callable[[Sequence[Request], Decoding], list[Response]], name: str, tokens: int
) -> Decoding:
    """Choose the fastest way of decoding that is right for a model.

    Args:
        student: the model.
        write: writes `TOKENS` tokens, drawn from the whole distribution, to requests.
        name: of the model, for the error.
        tokens: ids below this one are drawn.

    Raises:
        EngineError: no way is right.
    """
    random = np.random.default_rng(0)
    requests = [Request(random.integers(tokens, size=length).tolist(), seed) for seed, length in enumerate(PROMPTS)]
    told: list[str] = []
    for decoding in Decoding:
        try:
            found = max(_discrepancy(student, request, write, decoding) for request in _group(requests, decoding))
        except Exception as error:
            told.append(f"{decoding.name.lower()}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
            continue
        if found <= TOLERANCE.get(next(student.parameters()).dtype, 1e-3):
            if decoding is not Decoding.PADDED:
                log.info("%s: %s", name, decoding.value)
            return decoding
        told.append(f"{decoding.name.lower()}: off by {found:.2g} of the log-probabilities' spread")
    raise EngineError(
        f"{name} cannot be decoded by transformers so that its tokens come from its own distribution "
        f"({'; '.join(told)}). Use `engine: vllm`, or a model of another architecture."
    )


def _group(requests: Sequence[Request], decoding: Decoding) -> list[list[Request]]:
    """Put requests into batches as a way of decoding does."""
    if decoding is Decoding.PADDED:
        return [list(requests)]
    return [list(group) for _, group in itertools.groupby(requests, key=lambda request: len(request.prompt_ids))]


def _discrepancy(
    student: Student,
    requests: Sequence[Request],
    write: Callable[[Sequence[Request], Decoding], list[Response]],
    decoding: Decoding,
) -> float:
    """Say how far noted log-probabilities are from those of a plain forward pass, relative to their spread."""
    differences, spreads = [], []
    device = next(student.parameters()).device
    for request, response in zip(requests, write(requests, decoding), strict=True):
        ids = torch.tensor([[*request.prompt_ids, *response.ids.tolist()]], device=device)
        logits = student.transformer(input_ids=ids, use_cache=False).logits[0, len(request.prompt_ids) - 1 : -1]
        logprobs = logits[:, : student.tokens].float().log_softmax(dim=-1)
        chosen = logprobs.gather(-1, torch.from_numpy(response.ids).to(device).long()[:, None])[:, 0]
        differences.append((chosen.cpu() - torch.from_numpy(response.behaviour_logprobs)).abs())
        spreads.append(logprobs[logprobs.isfinite()].std().cpu())
    return float(torch.cat(differences).mean() / torch.stack(spreads).mean().clamp_min(1e-6))
