"""Prompts: what they are called, which split and bucket each belongs to, and how a shard of them is read and written.

A prompt's id is the hash of its messages and its bucket follows from the id, so adding a prompt changes one bucket.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa

from pipeline import hashing, params, shards, sources
from pipeline.errors import PromptError
from pipeline.prompt_settings import Split
from pipeline.sources import Row

VALIDATION = "validation"
"""The split that the opd prompts of the held-out bucket say they belong to."""

_LISTED = 20

log = logging.getLogger("prompts")


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        prompt_id: hash of the messages, 32 hex digits.
        domain: for recipes that tell domains apart.
        messages: {role, content}, the last one the user's; as chat templates take them.
        answer: the gold answer, None where unknown.
        hint: privileged information, None where there is none.
        bucket: number of the shard that its rollouts and scores are in.
        split: `sft`, `opd`, `validation` (the held-out bucket of opd) or `evaluation`.
    """

    prompt_id: str
    domain: str
    messages: tuple[dict[str, str], ...]
    answer: str | None
    hint: str | None
    bucket: int
    split: str


def collect(settings: params.Prompts) -> dict[Split, list[Prompt]]:
    """Read every source; each split's prompts, without duplicates, ordered by `prompt_id`.

    A prompt may be both in sft and in opd. One that is in evaluation is in no other split, nor is one that differs from
    it in letter case, white space or system message alone.

    Raises:
        PromptError: a source cannot be read; rows cannot be used, or contradict each other (all are named at once); a
            split, the held-out bucket, or all buckets of opd but that one are empty.
    """
    found: dict[Split, dict[str, Row]] = {split: {} for split in get_args(Split)}
    read: Counter[Split] = Counter()
    mistakes: list[str] = []
    for number, source in enumerate(settings.sources):
        rows, unusable = sources.read(source, f"prompts.sources.{number}")
        read[source.split] += len(rows)
        mistakes += unusable + _add(found[source.split], rows)
    if mistakes:
        raise _all_of(mistakes)
    forbidden = {_text(row.messages) for row in found["evaluation"].values()}
    prompts: dict[Split, list[Prompt]] = {}
    for split, rows in found.items():
        kept = {key: row for key, row in rows.items() if split == "evaluation" or _text(row.messages) not in forbidden}
        duplicates, leaked = read[split] - len(rows), len(rows) - len(kept)
        counted = f"{read[split]} rows, {duplicates} duplicates and {leaked} evaluation prompts left out"
        if not kept:
            raise PromptError(f"prompts.sources: no prompts for `split: {split}` ({counted}). Add a source for it.")
        prompts[split] = [_prompt(settings, split, key, kept[key]) for key in sorted(kept)]
        log.info("%s: %d prompts (%s)", split, len(kept), counted)
    _check_held_out(settings, prompts["opd"])
    return prompts


def by_bucket(prompts: Iterable[Prompt]) -> dict[int, list[Prompt]]:
    """The prompts of each bucket that has any, in the order given; buckets by number."""
    buckets: dict[int, list[Prompt]] = {}
    for prompt in prompts:
        buckets.setdefault(prompt.bucket, []).append(prompt)
    return dict(sorted(buckets.items()))


def bucket_of(prompt_id: str, buckets: int) -> int:
    """A prompt's bucket, 0 to `buckets` − 1; it depends on nothing else."""
    return int(prompt_id, 16) % buckets


def content(prompts: Iterable[Prompt]) -> str:
    """A hash of the prompts in their order; where they were read from does not enter."""
    return hashing.digest(*[hashing.canonical(_columns(prompt)) for prompt in prompts])


def write(path: Path, identity: dict[str, Any], made_with: dict[str, Any], prompts: Iterable[Prompt]) -> None:
    """Write one shard of prompts."""
    with shards.Writer(path, shards.PROMPTS, identity, made_with) as writer:
        writer.write(pa.Table.from_pylist([_columns(prompt) for prompt in prompts], shards.PROMPTS))


def load(path: Path) -> list[Prompt]:
    """The prompts of one shard, ordered by `prompt_id`.

    Raises:
        ShardError: the file is missing, damaged or of another format.
    """
    rows = shards.read(path, shards.PROMPTS).to_pylist()
    return [Prompt(**row | {"messages": tuple(row["messages"])}) for row in rows]


def _columns(prompt: Prompt) -> dict[str, Any]:
    return vars(prompt) | {"messages": list(prompt.messages)}


def _add(known: dict[str, Row], rows: Sequence[Row]) -> list[str]:
    """Add rows of one split by their prompt's id; those that contradict an earlier one are told."""
    mistakes = []
    for row in rows:
        first = known.setdefault(hashing.digest(hashing.canonical(row.messages)), row)
        # Taking either would be a guess.
        differing = [name for name in ("answer", "hint", "domain") if getattr(first, name) != getattr(row, name)]
        if differing:
            facts = ", ".join(f"{name} {getattr(row, name)!r} not {getattr(first, name)!r}" for name in differing)
            mistakes.append(f"{row.place}: the prompt of {first.place}, but with {facts}")
    return mistakes


def _all_of(mistakes: Sequence[str]) -> PromptError:
    count = "1 row that cannot be used" if len(mistakes) == 1 else f"{len(mistakes)} rows that cannot be used"
    lines = [f"  {mistake}" for mistake in mistakes[:_LISTED]]
    if len(mistakes) > _LISTED:
        lines.append(f"  and {len(mistakes) - _LISTED} more")
    listing = "\n".join(lines)
    return PromptError(
        f"prompts.sources has {count}:\n{listing}\nCorrect or remove these rows, or name other "
        "fields in prompts.sources, then run `dvc repro prompts`."
    )


def _text(messages: Sequence[dict[str, str]]) -> tuple[str, ...]:
    """What two prompts share that differ in letter case, white space or system message alone."""
    said = [message for message in messages if message["role"] != "system"]
    return tuple(f"{message['role']}: {' '.join(message['content'].split()).casefold()}" for message in said)


def _prompt(settings: params.Prompts, split: Split, prompt_id: str, row: Row) -> Prompt:
    bucket = bucket_of(prompt_id, settings.buckets)
    prompt = Prompt(prompt_id, row.domain, row.messages, row.answer, row.hint, bucket, split)
    return replace(prompt, split=VALIDATION) if split == "opd" and bucket == settings.held_out else prompt


def _check_held_out(settings: params.Prompts, prompts: Sequence[Prompt]) -> None:
    held_out = sum(prompt.split == VALIDATION for prompt in prompts)
    if held_out in (0, len(prompts)):
        filled = ", ".join(str(bucket) for bucket in by_bucket(prompts))
        raise PromptError(
            f"prompts.held_out is bucket {settings.held_out} of {settings.buckets}, and {held_out} of {len(prompts)} "
            "opd prompts fall there: some are needed for validation and some for training. Buckets with prompts: "
            f"{filled}. Choose another prompts.held_out or other prompts.buckets, or add prompts."
        )
