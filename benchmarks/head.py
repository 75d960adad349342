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
from dataclasses import dataclass, replace
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
from pipeline.head.answer import Ask
from pipeline.head.gradient import answer_tokens
from pipeline.head.layer import OutputLayer

CHUNK = 256
"""Tokens per chunk of the baselines, where they can be told; their fastest of 64 to 512 here."""


def main(
    tokens: Annotated[int, typer.Option(help="Response tokens.")] = 4096,
    hidden: Annotated[int, typer.Option(help="Width of the hidden states.")] = 512,
    vocabulary: Annotated[int, typer.Option(help="Rows of the output embedding.")] = qwen3.VOCABULARY,
    k: Annotated[int, typer.Option(help="Ids asked for at each token.")] = 32,
    rounds: Annotated[int, typer.Option(help="Timed turns of each way, behind one of a few tokens.")] = 1,
    results: JsonFile = None,
    check: Check = False,
) -> None:
    """Measure memory, then time."""
    shape = Shape(tokens, hidden, vocabulary, k)
    peak = {
        name: measure.in_child(_once, name, shape)[1] / 2**20 for name in ("ours", "full logits", "torch per token")
    }
    ways, warm_up = _ways(shape), _ways(replace(shape, tokens=max(1, tokens // 16)))
    del ways["full logits"]
    seconds = measure.seconds(ways, rounds, warm_up)
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


@dataclass(frozen=True)
class Shape:
    """Of what is computed: response tokens, width of their hidden states, rows of the output embedding, ids asked."""

    tokens: int
    hidden: int
    vocabulary: int
    k: int


class Case:
    """Hidden states, an output layer and a teacher's log-probabilities, at random; and the losses that ways compute."""

    def __init__(self, shape: Shape):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(0)
        self.hidden = torch.randn(shape.tokens, shape.hidden, device=device).requires_grad_()
        self.weight = (0.05 * torch.randn(shape.vocabulary, shape.hidden, device=device)).requires_grad_()
        self.sampled = torch.randint(shape.vocabulary, (shape.tokens,), device=device)
        # Distinct in each row, and all over the vocabulary.
        apart = torch.arange(shape.k, device=device) * (shape.vocabulary // shape.k)
        self.ids = (self.sampled.unsqueeze(-1) + apart) % shape.vocabulary
        self.target = torch.randn(shape.tokens, shape.k + 1, device=device).log_softmax(dim=-1)

    def backward(self, loss: Callable[[], Tensor]) -> None:
        """A loss and its gradients."""
        self.hidden.grad = self.weight.grad = None
        loss().backward()

    def ours(self, entropy: bool = False, top_k: int = 0) -> Tensor:
        """A reverse KL from the head's small tensors."""
        asked = Ask(self.sampled, self.ids, entropy=entropy, top_k=top_k)
        answer = answer_tokens(self.hidden, OutputLayer(self.weight), asked)
        return self._divergence(answer.logprobs, answer.tail)

    def nll(self) -> Tensor:
        """The sampled token alone, by the same head."""
        return (
            answer_tokens(self.hidden, OutputLayer(self.weight), Ask(self.sampled, self.ids[:, :0]))
            .sampled.mean()
            .neg()
        )

    def full(self) -> Tensor:
        """The same reverse KL, from all logits at once."""
        logprobs = linear(self.hidden, self.weight).log_softmax(dim=-1)
        outside = logprobs.scatter(-1, self.ids, -torch.inf).logsumexp(dim=-1)
        return self._divergence(logprobs.gather(-1, self.ids), outside)

    def fused(self, reduction: str) -> Tensor:
        """Cross-entropy in chunks by torch's own function."""
        options = LinearCrossEntropyOptions(batch_chunk_size=CHUNK)
        losses = linear_cross_entropy(self.hidden, self.weight, self.sampled, reduction=reduction, options=options)
        return losses.mean()

    def checkpointed(self) -> Tensor:
        """Cross-entropy of chunks, each computed again for its gradient."""

        def loss(states: Tensor, labels: Tensor) -> Tensor:
            return cross_entropy(linear(states, self.weight), labels, reduction="sum")

        chunks = zip(self.hidden.split(CHUNK), self.sampled.split(CHUNK), strict=True)
        return torch.stack([checkpoint(loss, *chunk, use_reentrant=False) for chunk in chunks]).sum() / len(self.hidden)

    def liger(self) -> Tensor:
        """Liger's fused cross-entropy."""
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # pyright: ignore[reportMissingImports]

        return LigerFusedLinearCrossEntropyLoss()(self.weight, self.hidden, self.sampled)

    def _divergence(self, logprobs: Tensor, tail: Tensor) -> Tensor:
        own = torch.cat([logprobs, tail.unsqueeze(-1)], dim=-1)
        return (own.exp() * (own - self.target)).sum(dim=-1).mean()


def _once(name: str, shape: Shape) -> None:
    _ways(shape)[name]()


def _ways(shape: Shape) -> dict[str, Callable[[], None]]:
    """Forward and backward passes over the same tensors, by name."""
    case = Case(shape)
    losses = {
        "ours": case.ours,
        "ours, NLL": case.nll,
        "ours, entropy": partial(case.ours, entropy=True),
        "ours, live top 16": partial(case.ours, top_k=16),
        "full logits": case.full,
        "torch per token": partial(case.fused, "none"),
        "torch mean": partial(case.fused, "mean"),
        "checkpoint": case.checkpointed,
    }
    if case.hidden.is_cuda and importlib.util.find_spec("liger_kernel"):
        losses["Liger"] = case.liger
    return {name: partial(case.backward, loss) for name, loss in losses.items()}


if __name__ == "__main__":
    typer.run(main)
