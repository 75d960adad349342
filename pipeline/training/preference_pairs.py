"""Pairs for a preference: each of the student's responses with one of the teacher's to the same prompt."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from pipeline.errors import ShardError
from pipeline.storage.bucket import Bucket
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.shards import read_shard


def find_partners(sources: Sequence[Bucket], objective: str) -> np.ndarray:
    """Find for each row the number of the teacher's response that it is paired with; −1 where it has none.

    Rows are numbered through the shards in their order. The n-th of the student's responses to a prompt gets the n-th
    of the teacher's, which start again where they are fewer.

    Args:
        sources: the shards, of both.
        objective: name of the recipe, for the error.

    Returns:
        int64 [rows].

    Raises:
        ShardError: no prompt has responses of both.
    """
    chosen: dict[str, list[int]] = defaultdict(list)
    rejected: dict[str, list[int]] = defaultdict(list)
    count = 0
    for source in sources:
        prompts = read_shard(source.rollouts, ROLLOUTS, ["prompt_id"]).column("prompt_id").to_pylist()
        for row, prompt in enumerate(prompts, count):
            (chosen if source.source == "teacher" else rejected)[prompt].append(row)
        count += len(prompts)
    found = np.full(count, -1, np.int64)
    for prompt, rows in rejected.items():
        if prompt in chosen:
            found[rows] = np.resize(chosen[prompt], len(rows))
    if (found < 0).all():
        raise ShardError(
            f"{sources[0].rollouts.parent}: no prompt of it has a response of the teacher's, too, and train.objective "
            f"`{objective}` learns from pairs of them. Name some prompts under prompts.sources both with `split: sft` "
            "and with `split: opd`, then run `dvc repro`."
        )
    return found
