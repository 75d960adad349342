"""What is assumed of an architecture, tried on the opened model itself before anything is computed with it.

transformers promises none of it: that a token sees nothing behind it, that packed sequences do not see each other
(true where the mask is made from `position_ids` and nothing recurs or convolves), that the fast attention kernel
computes what the architecture says (`sdpa` drops soft-capping), and that logits are hidden states times a matrix.
Lists of architectures go out of date; a hundred tokens through the model do not.

Two computations are compared by the root mean square of their differences over all ids and tokens, relative to the
spread of the log-probabilities: rounding is some 1e-6 of it in float32, 1e-2 in bfloat16, and what is wrong is more.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.models.packing import Layout, Pack, build_pack
from pipeline.models.student import Student

LENGTHS = (11, 21)
"""Tokens of the two sequences that are sent through the model."""

TOLERANCE = {torch.bfloat16: 0.05, torch.float16: 0.05}
"""How far apart two computations of the same may be, relative to the spread; 1e-3 in float32 and float64."""

log = logging.getLogger("models")


@dataclass(frozen=True)
class Probe:
    """What a model was found to bear.

    Attributes:
        layout: how its sequences are batched.
        kernel: of attention, as transformers calls it.
    """

    layout: Layout
    kernel: str


@torch.no_grad()
def probe_student(student: Student, name: str, tokens: int) -> Probe:
    """Try what is assumed of a model, set the attention kernel that is right for it, and say what was found.

    Args:
        student: just opened; it is computed without dropout, and left as it was but for the kernel.
        name: as the user wrote it, for the error.
        tokens: ids below this one are drawn.

    Raises:
        ModelError: a token sees what follows it, the head does not give the model's own logits, or it cannot run.
    """
    was_training = student.training
    student.eval()
    try:
        found = _Prober(student, name, tokens).probe()
    except ModelError:
        raise
    except Exception as error:  # whatever foreign code raises: the model cannot be computed
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else 'without a word'}"
        raise ModelError(f"{name} cannot be computed as a causal language model by transformers: {reason}") from error
    student.train(was_training)
    if found.kernel == "eager":
        log.info("%s: attention is computed by transformers' own code (eager), which alone is right for it", name)
    if found.layout is not Layout.PACKED:
        log.info("%s: %s", name, found.layout.value)
    return found


class _Prober:
    """A model and the sequences that are sent through it."""

    def __init__(self, student: Student, name: str, tokens: int):
        self._student, self._name = student, name
        self._device = next(student.parameters()).device
        random = np.random.default_rng(0)
        self._short, self._long = (random.integers(tokens, size=length) for length in LENGTHS)

    def probe(self) -> Probe:
        """Refuse the model where the head differs, and find the kernel and the layout that are right for it."""
        alone = self._pack([[self._long]])
        own = self._by_model(alone)
        self._check_causal(own)
        self._check_head(own, self._by_head(alone))
        kernel, own = self._choose_kernel(alone, own)
        return Probe(self._choose_layout(own), kernel)

    def _check_causal(self, own: Tensor) -> None:
        beginning = self._by_model(self._pack([[self._long[: LENGTHS[0]]]]))
        if (nats := self._differ(own[: len(beginning)], beginning)) is not None:
            raise ModelError(
                f"{self._name} is no causal language model: its log-probabilities change by up to {nats:.2g} nats with "
                "the tokens that follow. (Of an encoder's checkpoint, config.json has to say `is_decoder: true`.)"
            )

    def _check_head(self, own: Tensor, by_head: Tensor) -> None:
        if (nats := self._differ(own, by_head)) is not None:
            raise ModelError(
                f"{self._name}: its log-probabilities differ from those of its hidden states and its output matrix by "
                f"up to {nats:.2g} nats: architecture `{self._student.architecture}` does something to its logits that "
                "Potstill's head does not compute. Choose a model of another architecture."
            )

    def _choose_kernel(self, pack: Pack, own: Tensor) -> tuple[str, Tensor]:
        """Take transformers' own code for attention where the fast kernel computes something else."""
        kernel = self._student.kernel
        if kernel == "eager":
            return kernel, own
        self._student.kernel = "eager"
        by_eager = self._by_model(pack)
        # Soft-capping shows only where scores are large, as random tokens may not make them.
        if self._student.caps_scores or self._differ(own, by_eager) is not None:
            return "eager", by_eager
        self._student.kernel = kernel
        return kernel, own

    def _choose_layout(self, own: Tensor) -> Layout:
        pack = self._pack([[self._short, self._long], [self._long], [self._short]])
        short, long = (length - 1 for length in LENGTHS)
        first, packed, padded, before_padding = self._by_head(pack).split([short, long, long, short])
        alone = self._by_head(self._pack([[self._short]]))
        if self._differ(own, padded) is not None or self._differ(alone, before_padding) is not None:
            return Layout.ALONE
        if self._differ(own, packed) is not None or self._differ(alone, first) is not None:
            return Layout.PADDED
        return Layout.PACKED

    def _differ(self, one: Tensor, other: Tensor) -> float | None:
        """The largest difference of two tensors of log-probabilities [T, vocabulary], in nats, if it is no rounding."""
        is_finite = one.isfinite() & other.isfinite()
        difference = (one - other)[is_finite]
        spread = one[is_finite].std().clamp_min(1e-6)
        tolerance = TOLERANCE.get(next(self._student.parameters()).dtype, 1e-3)
        apart = difference.square().mean().sqrt() > tolerance * spread
        same_ids = torch.equal(one.isfinite(), other.isfinite())
        return None if same_ids and not apart else float(difference.abs().max())

    def _pack(self, rows: Sequence[Sequence[np.ndarray]]) -> Pack:
        """Lay sequences out, each after a prompt of one token."""
        sequences = [ids for row in rows for ids in row]
        numbers = iter(range(len(sequences)))
        places = [[next(numbers) for _ in row] for row in rows]
        return build_pack(places, [ids[:1] for ids in sequences], [ids[1:] for ids in sequences]).to(self._device)

    def _by_model(self, pack: Pack) -> Tensor:
        """The model's own log-probabilities after each token but the last, [T, vocabulary]."""
        logits = self._student.logits(pack)
        return logits.float().log_softmax(dim=-1)

    def _by_head(self, pack: Pack) -> Tensor:
        """Those that scoring and training compute, [T, vocabulary]."""
        pieces: list[Any] = []
        for _, logits in self._student.output().chunks(self._student.hidden(pack)):
            pieces.append(logits.float().log_softmax(dim=-1))
        return torch.cat(pieces)
