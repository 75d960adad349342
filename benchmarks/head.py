"""The head against full logits in memory, and against cross-entropy in chunks in time, forward and backward.

    python -m benchmarks.head --check

Ours is asked for the log-probabilities of K ids and the tail outside them, and gets a reverse KL's gradient back. The
baselines compute less: the NLL of the sampled token alone.

- `full logits`: [tokens × vocabulary] at once, its `log_softmax`, and the same reverse KL;
- `torch per token`: `torch.nn.functional.linear_cross_entropy` in chunks, one value per token, which computes each
  chunk again for the backward pass, as ours has to, since the loss comes after it;
- `torch mean`: the same function with a mean, which knows its gradient while it computes the forward pass: three matrix
  products for four;
- `checkpoint`: `cross_entropy` of chunks under `torch.utils.checkpoint`;
- `Liger`: its fused linear cross-entropy, where there is a GPU and the package.

Each way's peak memory is a child process's own, weights and their gradient included. Times are taken in turns.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions
from torch.nn.functional import cross_entropy, linear, linear_cross_entropy
from torch.utils.checkpoint import checkpoint

from benchmarks import measure, qwen3
from benchmarks.rows import Bar, Check, JsonFile, Row, conclude
from pipeline import head
from pipeline.head import Ask, Output

CHUNK = 256
"""Tokens per chunk of the baselines, where they can be told; their fastest of 64 to 512 here."""


def main(
    tokens: Annotated[int, typer.Option(help="Response tokens.")] = 4096,
    hidden: Annotated[int, typer.Option(help="Width of the hidden states.")] = 512,
    vocabulary: Annotated[int, typer.Option(help="Rows of the output embedding.")] = qwen3.VOCABULARY,
    k: Annotated[int, typer.Option(help="Ids asked for at each token.")] = 32,
    rounds: Annotated[int, typer.Option(help="Timed turns of each way, behind one that is not timed.")] = 1,
    results: JsonFile = None,
    check: Check = False,
) -> None:
    """Measure memory, then time."""
    shape = (tokens, hidden, vocabulary, k)
    peak = {
        name: measure.in_child(_once, name, shape)[1] / 2**20 for name in ("ours", "full logits", "torch per token")
    }
    ways = _ways(shape)
    del ways["full logits"]
    seconds = measure.seconds(ways, rounds)
    ours = seconds["ours"]
    rows = [
        Row("peak memory: full logits", "MiB", peak["ours"], peak["full logits"], Bar("≤", 0.25)),
        Row("peak memory: torch per token", "MiB", peak["ours"], peak["torch per token"]),
        Row("time, ids and tail: torch per token", "s", ours, seconds["torch per token"], Bar("≤", 1.1)),
        Row("time, ids and tail: checkpoint", "s", ours, seconds["checkpoint"], Bar("≤", 1.1)),
        Row("time, ids and tail: torch mean", "s", ours, seconds["torch mean"]),
        *([Row("time, ids and tail: Liger", "s", ours, seconds["Liger"])] if "Liger" in seconds else []),
        Row("time, NLL alone: torch per token", "s", seconds["ours, NLL"], seconds["torch per token"]),
        Row("time, with the entropy: ids and tail", "s", seconds["ours, entropy"], ours),
        Row("time, with the live top 16: ids and tail", "s", seconds["ours, live top 16"], ours),
    ]
    print(f"{tokens} tokens × hidden {hidden} × vocabulary {vocabulary}, K = {k}, {torch.get_num_threads()} threads\n")
    conclude(rows, results, check)


def _once(name: str, shape: tuple[int, int, int, int]) -> None:
    _ways(shape)[name]()


def _ways(shape: tuple[int, int, int, int]) -> dict[str, Callable[[], None]]:
    """Forward and backward passes over the same tensors, by name."""
    tokens, width, vocabulary, k = shape
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, device=device).requires_grad_()
    weight = (0.05 * torch.randn(vocabulary, width, device=device)).requires_grad_()
    sampled = torch.randint(vocabulary, (tokens,), device=device)
    # Distinct in each row, and all over the vocabulary.
    ids = (sampled.unsqueeze(-1) + torch.arange(k, device=device) * (vocabulary // k)) % vocabulary
    target = torch.randn(tokens, k + 1, device=device).log_softmax(dim=-1)
    asked, options = Ask(sampled, ids), LinearCrossEntropyOptions(batch_chunk_size=CHUNK)

    def backward(loss: Callable[[], Tensor]) -> None:
        hidden.grad = weight.grad = None
        loss().backward()

    def divergence(logprobs: Tensor, tail: Tensor) -> Tensor:
        own = torch.cat([logprobs, tail.unsqueeze(-1)], dim=-1)
        return (own.exp() * (own - target)).sum(dim=-1).mean()

    def ours(asked: Ask) -> Tensor:
        answer = head.answer(hidden, Output(weight), asked)
        return divergence(answer.logprobs, answer.tail)

    def full() -> Tensor:
        logprobs = linear(hidden, weight).log_softmax(dim=-1)
        at_ids = logprobs.gather(-1, ids)
        return divergence(at_ids, logprobs.scatter(-1, ids, -torch.inf).logsumexp(dim=-1))

    def per_token() -> Tensor:
        return linear_cross_entropy(hidden, weight, sampled, reduction="none", options=options).mean()

    def checkpointed() -> Tensor:
        def loss(states: Tensor, labels: Tensor) -> Tensor:
            return cross_entropy(linear(states, weight), labels, reduction="sum")

        chunks = zip(hidden.split(CHUNK), sampled.split(CHUNK), strict=True)
        return torch.stack([checkpoint(loss, *chunk, use_reentrant=False) for chunk in chunks]).sum() / tokens

    losses = {
        "ours": partial(ours, asked),
        "ours, NLL": lambda: head.answer(hidden, Output(weight), Ask(sampled, ids[:, :0])).sampled.mean().neg(),
        "ours, entropy": partial(ours, Ask(sampled, ids, entropy=True)),
        "ours, live top 16": partial(ours, Ask(sampled, ids, top_k=16)),
        "full logits": full,
        "torch per token": per_token,
        "torch mean": partial(linear_cross_entropy, hidden, weight, sampled, options=options),
        "checkpoint": checkpointed,
    }
    if device == "cuda" and importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # pyright: ignore[reportMissingImports]

        losses["Liger"] = lambda: LigerFusedLinearCrossEntropyLoss()(weight, hidden, sampled)
    return {name: partial(backward, loss) for name, loss in losses.items()}


if __name__ == "__main__":
    typer.run(main)
