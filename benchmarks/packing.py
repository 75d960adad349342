"""Packing: how much of what is computed is padding, and what that is worth against padded batches.

    python -m benchmarks.packing --check

Lengths are spread tenfold, log-uniformly. The baseline is what a collator does: batches of the same number of tokens,
sequences in the order they come, padded to the longest of their batch. Both are then run forward and backward through
the same Qwen3 with a small vocabulary, so that the transformer is what is timed, and its real tokens are counted.
"""

from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks import measure, qwen3
from benchmarks.rows import Bar, Check, JsonFile, Row, conclude
from pipeline.models.packing import Pack, build_pack, plan_packs

LONGEST = 10
"""Times the shortest."""


def main(
    sequences: Annotated[int, typer.Option(help="Sequences whose packs are planned.")] = 2048,
    timed: Annotated[int, typer.Option(help="Of these, how many are run through the model.")] = 16,
    shortest: Annotated[int, typer.Option(help="Tokens of the shortest sequence.")] = 40,
    tokens: Annotated[int, typer.Option(help="Most tokens of a pack, and of a padded batch.")] = 4096,
    rounds: Annotated[int, typer.Option(help="Timed turns, behind one that is not timed.")] = 2,
    results: JsonFile = None,
    check: Check = False,
) -> None:
    """Count padding, then time both."""
    random = np.random.default_rng(0)
    lengths = np.rint(shortest * LONGEST ** random.random(sequences)).astype(np.int64)
    planned = {"packed": plan_packs(lengths, tokens), "padded": _in_order(lengths, tokens)}
    computed = {name: sum(_width(pack, lengths) * len(pack) for pack in packs) for name, packs in planned.items()}
    padding = {name: 1 - lengths.sum() / cells for name, cells in computed.items()}

    few = lengths[:timed]
    torch.manual_seed(0)
    model = qwen3.model(vocabulary=1024).base_model
    packs = {"packed": _build(plan_packs(few, tokens), few), "padded": _build(_in_order(few, tokens), few)}
    seconds = measure.seconds({name: lambda own=own: _train(model, own) for name, own in packs.items()}, rounds)
    speed = {name: few.sum() / taken for name, taken in seconds.items()}
    rows = [
        Row("padding of computed tokens, padded batches", "share", padding["packed"], padding["padded"]),
        Row("padding of computed tokens", "share", padding["packed"], bar=Bar("≤", 0.05)),
        Row("real tokens, padded batches", "tokens/s", speed["packed"], speed["padded"]),
    ]
    conclude(rows, results, check)


def _in_order(lengths: np.ndarray, tokens: int) -> list[list[list[int]]]:
    """Batches as a collator fills them, one sequence in each row."""
    batches: list[list[list[int]]] = [[]]
    for index in range(len(lengths)):
        if _width([*batches[-1], [index]], lengths) * (len(batches[-1]) + 1) > tokens and batches[-1]:
            batches.append([])
        batches[-1].append([index])
    return batches


def _width(pack: list[list[int]], lengths: np.ndarray) -> int:
    return max(int(lengths[row].sum()) for row in pack)


def _build(plans: list[list[list[int]]], lengths: np.ndarray) -> list[Pack]:
    prompts = [np.ones(1, np.int64)] * len(lengths)
    responses = [np.ones(length - 1, np.int64) for length in lengths]
    return [build_pack(plan, prompts, responses) for plan in plans]


def _train(model: Any, packs: list[Pack]) -> None:
    """Forward and backward; padding stands behind everything, so the padded rows need no mask either."""
    for pack in packs:
        states = model(input_ids=pack.input_ids, position_ids=pack.position_ids, use_cache=False).last_hidden_state
        states.square().mean().backward()
    model.zero_grad()


if __name__ == "__main__":
    typer.run(main)
