"""Packs: several sequences in one row, told apart by positions that start again at zero.

A pack is given to the model with restarting `position_ids`, `use_cache=False` and **no** attention mask: transformers
then keeps packed sequences apart in most architectures. With a mask, or with the cache, they see each other, silently
(0.5 on logits). Where they do so anyway (`models/probe.py` finds out), each sequence has a row of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

SPREAD = 4
"""Sequences that differ more in length have rows of their own width, but to fill a pack."""


class Layout(Enum):
    """How the sequences of a model are batched; the value says why."""

    PACKED = "a row holds several sequences, none of which sees another"
    PADDED = "packed sequences would see each other, so each has a row of its own (slower)"
    ALONE = "a sequence would see others and its padding, so rows hold one each, of one length (slower still)"


@dataclass(frozen=True)
class Pack:
    """Sequences of prompt and response in `row` rows of one width, and where their responses are predicted.

    Attributes:
        input_ids: int64 [row, width]; behind a row's last sequence stands padding, which nothing sees.
        position_ids: int64 [row, width], from 0 in each sequence.
        predicts: int64 [T], flat indices of the positions that predict response tokens.
        sampled_ids: int64 [T], the response tokens, sequence by sequence.
        sequences: which of the given sequences are in the pack, in the order of their tokens.
    """

    input_ids: Int[Tensor, "row width"]
    position_ids: Int[Tensor, "row width"]
    predicts: Int[Tensor, " token"]
    sampled_ids: Int[Tensor, " token"]
    sequences: np.ndarray

    def to(self, device: torch.device) -> "Pack":
        """Copy the pack to another device; the copy may still be under way when this returns."""
        moved = (tensor.to(device, non_blocking=True) for tensor in self.tensors)
        return Pack(*moved, sequences=self.sequences)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All that goes to the device."""
        return self.input_ids, self.position_ids, self.predicts, self.sampled_ids


def plan_packs(lengths: Sequence[int] | np.ndarray, tokens: int) -> list[list[list[int]]]:
    """Spread sequences over packs: pack → row → sequences.

    Longest first, each into the first row with room (first-fit decreasing). Rows are as wide as the longest sequence.
    Attention costs the square of a row's width, so a sequence shorter than 1/`SPREAD` of it gets a row of its own only
    to fill a pack that is begun; the others wait for narrower packs. Packs hold rows of similar fill; a sequence
    longer than `tokens` has a pack to itself.

    Args:
        lengths: tokens of each sequence.
        tokens: most tokens of one pack, padding included.
    """
    waiting = sorted(range(len(lengths)), key=lambda index: (-int(lengths[index]), index))
    packs = []
    while waiting:
        width = int(lengths[waiting[0]])
        if width > tokens:
            packs.append([[waiting.pop(0)]])
            continue
        rows: list[list[int]] = []
        filled: list[int] = []
        left = []
        for index in waiting:
            length = int(lengths[index])
            row = next((number for number, taken in enumerate(filled) if taken + length <= width), None)
            if row is not None:
                rows[row].append(index)
                filled[row] += length
            elif length * SPREAD >= width or len(rows) % (tokens // width):
                rows.append([index])
                filled.append(length)
            else:
                left.append(index)
        fullest = sorted(range(len(rows)), key=lambda row: (-filled[row], row))
        while fullest:
            most = tokens // filled[fullest[0]]
            packs.append([rows[row] for row in fullest[:most]])
            fullest = fullest[most:]
        waiting = left
    return packs


def plan_batches(
    lengths: Sequence[int] | np.ndarray, tokens: int, layout: Layout = Layout.PACKED
) -> list[list[list[int]]]:
    """Spread sequences over packs as a model bears it: pack → row → sequences.

    Args:
        lengths: tokens of each sequence.
        tokens: most tokens of one pack, padding included.
        layout: PACKED plans as `plan_packs`; else a row has one sequence, longest first, in packs of similar lengths.
    """
    if layout is Layout.PACKED:
        return plan_packs(lengths, tokens)
    packs: list[list[list[int]]] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-int(lengths[index]), index)):
        length = int(lengths[index])
        fits = packs and (len(packs[-1]) + 1) * width <= tokens
        is_alike = length == width if layout is Layout.ALONE else length * SPREAD >= width
        if not fits or not is_alike:
            packs.append([])
            width = length
        packs[-1].append([index])
    return packs


def share_packs(packs: list[list[list[int]]], parts: int) -> list[list[list[int]]]:
    """Halve the fullest packs until their number is a multiple of `parts`: each device gets as many of them.

    Args:
        packs: as `plan_packs` gives them, of a multiple of `parts` sequences.
        parts: devices that share them.
    """
    packs = list(packs)
    while len(packs) % parts:
        fullest = max(range(len(packs)), key=lambda pack: (sum(map(len, packs[pack])), -pack))
        rows = packs.pop(fullest)
        if len(rows) == 1:
            rows = [[index] for index in rows[0]]
        packs += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return packs


def build_pack(rows: list[list[int]], prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray]) -> Pack:
    """Lay out one pack.

    Args:
        rows: which sequences stand in which row, as `plan_packs` gives them.
        prompts: token ids of every prompt, at least one each.
        responses: token ids of every response.
    """
    lengths = [[len(prompts[index]) + len(responses[index]) for index in row] for row in rows]
    width = max(sum(row) for row in lengths)
    input_ids = np.zeros((len(rows), width), np.int64)
    position_ids = np.zeros((len(rows), width), np.int64)
    predicts, order = [], []
    for number, row in enumerate(rows):
        start = 0
        for index in row:
            prompt, response = prompts[index], responses[index]
            end = start + len(prompt) + len(response)
            input_ids[number, start:end] = np.concatenate([prompt, response])
            position_ids[number, start:end] = np.arange(end - start)
            predicts.append(number * width + start + len(prompt) - 1 + np.arange(len(response)))
            order.append(index)
            start = end
        # Padding goes on counting: it follows everything, so nothing sees it, and rows of one sequence stay plain.
        position_ids[number, start:] = position_ids[number, start - 1] + 1 + np.arange(width - start)
    sampled = np.concatenate([responses[index] for index in order]).astype(np.int64)
    return Pack(
        torch.from_numpy(input_ids),
        torch.from_numpy(position_ids),
        torch.from_numpy(np.concatenate(predicts)),
        torch.from_numpy(sampled),
        np.array(order, np.int64),
    )
