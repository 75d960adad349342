"""Packs and their inputs from the rows of one optimiser step."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from pipeline.models.packing import Layout, Pack, build_pack, plan_batches, share_packs
from pipeline.objectives.inputs import Inputs, Target
from pipeline.training.row_groups import Place, RowGroup, RowGroups
from pipeline.training.targets import build_target, make_unscored_view


def build_batch(
    groups: RowGroups, places: Sequence[Place], unit: int, tokens: int, devices: int, layout: Layout
) -> list[tuple[Pack, Inputs]]:
    """Build the packs of one optimiser step, as many for each device; the shares of a step sum to 1 over all of them.

    Args:
        groups: which the rows are read from.
        places: the rows.
        unit: so many rows, one behind the other, share a pack.
        tokens: of prompts and responses in one pack, at most; a longer unit has a pack of its own.
        devices: that share the packs.
        layout: what the model bears; the rows of a unit then share a pack, and not a row of it.
    """
    decoded = {number: groups[number] for number in sorted({number for number, _ in places})}
    of_rows = [(decoded[number], row) for number, row in places]
    prompts = [group.prompts[row].astype(np.int64) for group, row in of_rows]
    responses = [group.responses[row].astype(np.int64) for group, row in of_rows]
    lengths = np.array([len(response) for response in responses])
    sizes = np.array([len(p) + len(r) for p, r in zip(prompts, responses, strict=True)])
    is_packed = layout is Layout.PACKED
    of_units = sizes.reshape(-1, unit).sum(axis=1) if is_packed else sizes.reshape(-1, unit).max(axis=1) * unit
    plans = plan_batches(of_units, tokens, layout)
    packs = []
    for plan in share_packs(plans, devices):
        rows = [[number * unit + n for number in row for n in range(unit)] for row in plan]
        rows = rows if is_packed else [[index] for row in rows for index in row]
        pack = build_pack(rows, prompts, responses)
        taken = lengths[pack.sequences]
        shares = {
            "token_mean": np.full(taken.sum(), 1 / int(lengths.sum())),
            "sequence_mean": np.repeat(1 / (taken * len(places)), taken),
        }
        inputs = Inputs(
            {name: _build_target(name, [of_rows[index] for index in pack.sequences]) for name in groups.views},
            torch.from_numpy(taken),
            pack.sampled_ids,
            {name: torch.from_numpy(values.astype(np.float32)) for name, values in shares.items()},
            _join_facts(groups, decoded, [places[index] for index in pack.sequences]),
        )
        packs.append((pack, inputs))
    return packs


def _join_facts(groups: RowGroups, decoded: Mapping[int, RowGroup], places: Sequence[Place]) -> dict[str, torch.Tensor]:
    """Join what the recipe reads of the tokens of a pack besides views, [its tokens] by name."""
    of_rows = [groups.cut_facts(place, decoded[place[0]]) for place in places]
    return {name: torch.from_numpy(np.concatenate([each[name] for each in of_rows])) for name in of_rows[0]}


def _build_target(view: str, rows: Sequence[tuple[RowGroup, int]]) -> Target:
    """Build the target of some rows from a view, which was never asked about the rows of another source."""
    parts = [(group.views.get(view) or make_unscored_view(group.responses), group.tokens(row)) for group, row in rows]
    return build_target(parts)
