"""A model's output layer, and all that architectures do to its logits, a chunk of tokens at a time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

CHUNK = 2**25
"""Logits that are held at once: chunk × vocabulary."""


@dataclass(frozen=True)
class LowRank:
    """LoRA's change of an output layer: its matrix becomes W + up · down, which nobody needs to hold.

    Attributes:
        down: [rank, hidden], with the adapter's scaling.
        up: [vocabulary, rank].
    """

    down: Float[Tensor, "rank hidden"]
    up: Float[Tensor, "vocabulary rank"]

    def inner(self, hidden: Float[Tensor, "token hidden"]) -> Float[Tensor, "token rank"]:
        """Compute what lies between the two matrices, in their precision, as peft does."""
        return functional.linear(hidden.to(self.down.dtype), self.down)


@dataclass(frozen=True)
class OutputLayer:
    """A model's output layer: logits = softcap · tanh(scale · (h Wᵀ + b) / softcap).

    Attributes:
        weight: [vocabulary, hidden].
        bias: [vocabulary], or None.
        scale: factor of the logits (1 for most architectures).
        softcap: bound of the logits, as in Gemma 2; None for most.
        adapter: what is added to W, or None.
    """

    weight: Float[Tensor, "vocabulary hidden"]
    bias: Float[Tensor, " vocabulary"] | None = None
    scale: float = 1.0
    softcap: float | None = None
    adapter: LowRank | None = None

    @property
    def chunk(self) -> int:
        """Tokens that are computed at once, at most."""
        return max(1, CHUNK // len(self.weight))

    def to(self, dtype: torch.dtype) -> "OutputLayer":
        """Convert the matrices to a dtype; gradient flows back to the original ones."""
        bias = None if self.bias is None else self.bias.to(dtype)
        adapter = None if self.adapter is None else LowRank(self.adapter.down.to(dtype), self.adapter.up.to(dtype))
        return replace(self, weight=self.weight.to(dtype), bias=bias, adapter=adapter)

    def chunks(
        self, hidden: Float[Tensor, "token hidden"]
    ) -> Iterator[tuple[slice, Float[Tensor, "piece vocabulary"]]]:
        """Give the logits of a few tokens at a time, each chunk in the memory of the one before (no tokens: one chunk).

        In the precision of the matrices; everything that sums over the vocabulary is at least fp32. They have no
        gradient, and the caller may write over them.
        """
        # Even chunks, in memory that is had once: to be given new pages costs as much as the product that fills them.
        tokens = max(1, len(hidden))
        size = math.ceil(tokens / math.ceil(tokens / self.chunk))
        room = hidden.new_empty(size, len(self.weight))
        for start in range(0, tokens, size):
            piece = slice(start, start + size)
            part = hidden[piece]
            yield piece, self._logits(part, room[: len(part)])

    def _logits(self, hidden: Tensor, room: Tensor) -> Tensor:
        matrix = self.weight.T
        if self.bias is None:
            torch.mm(hidden, matrix, out=room)
        else:
            torch.addmm(self.bias, hidden, matrix, out=room)
        logits = room if room.dtype == torch.float64 else room.float()
        if self.adapter is not None:
            logits.add_(functional.linear(self.adapter.inner(hidden), self.adapter.up))
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def slope(self, logits: Float[Tensor, "token vocabulary"]) -> Float[Tensor, "token vocabulary"] | None:
        """Derivative of the soft cap, from logits that are already soft-capped; None for a layer without one."""
        return None if self.softcap is None else 1 - (logits / self.softcap).square_()


def logit_scale(config: Any) -> float:
    """Find the factor that an architecture puts on its logits, from its text configuration in transformers."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):  # Cohere, Muse Glimmer, Falcon-H1
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = float(getattr(config, "logits_scaling", None) or 1.0)
    # Granite divides by it, HyperCLOVA X multiplies.
    return scaling if config.model_type.startswith("hyperclovax") else 1.0 / scaling
