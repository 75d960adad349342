"""Prompts from all sources: what they are called, and which split and bucket each belongs to.

A prompt's id is the hash of its messages and its bucket follows from the id, so adding a prompt changes one bucket.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import get_args

from pipeline.errors import PromptError
from pipeline.prompts.sources import Row, read_source
from pipeline.settings.prompts import Prompts, Split
from pipeline.storage import hashing
from pipeline.storage.prompts import Prompt, make_prompt_row

VALIDATION = "validation"
"""The split that the opd prompts of the held-out bucket say they belong to."""

_LISTED = 20

log = logging.getLogger("prompts")


def collect_prompts(settings: Prompts) -> dict[Split, list[Prompt]]:
    """Read every source, and give each split's prompts, without duplicates, ordered by `prompt_id`.

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
        rows, unusable = read_source(source, f"prompts.sources.{number}")
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


def group_by_bucket(prompts: Iterable[Prompt]) -> dict[int, list[Prompt]]:
    """Group prompts by bucket, in the order given; buckets by number, those without any left out."""
    buckets: dict[int, list[Prompt]] = {}
    for prompt in prompts:
        buckets.setdefault(prompt.bucket, []).append(prompt)
    return dict(sorted(buckets.items()))


def choose_bucket(prompt_id: str, buckets: int) -> int:
    """Choose a prompt's bucket, 0 to `buckets` − 1, from its id and from nothing else."""
    return int(prompt_id, 16) % buckets


def hash_prompts(prompts: Iterable[Prompt]) -> str:
    """Hash the prompts in their order; where they were read from does not enter."""
    return hashing.digest(*[hashing.canonical(make_prompt_row(prompt)) for prompt in prompts])


def _add(known: dict[str, Row], rows: Sequence[Row]) -> list[str]:
    """Add rows of one split by their prompt's id, and tell of those that contradict an earlier one."""
    mistakes = []
    for row in rows:
        first = known.setdefault(hashing.digest(hashing.canonical(row.messages)), row)
        # Taking either would be a guess.
        differing = [name for name in ("answer", "hint", "domain") if getattr(first, name) != getattr(row, name)]
        if differing:
            differences = ", ".join(f"{name} {getattr(row, name)!r} not {getattr(first, name)!r}" for name in differing)
            mistakes.append(f"{row.place}: the prompt of {first.place}, but with {differences}")
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
    """Reduce messages to what two prompts share that differ in letter case, white space or system message alone."""
    said = [message for message in messages if message["role"] != "system"]
    return tuple(f"{message['role']}: {' '.join(message['content'].split()).casefold()}" for message in said)


def _prompt(settings: Prompts, split: Split, prompt_id: str, row: Row) -> Prompt:
    bucket = choose_bucket(prompt_id, settings.buckets)
    prompt = Prompt(prompt_id, row.domain, row.messages, row.answer, row.hint, bucket, split)
    return replace(prompt, split=VALIDATION) if split == "opd" and bucket == settings.held_out else prompt


def _check_held_out(settings: Prompts, prompts: Sequence[Prompt]) -> None:
    held_out = sum(prompt.split == VALIDATION for prompt in prompts)
    if held_out in (0, len(prompts)):
        filled = ", ".join(str(bucket) for bucket in group_by_bucket(prompts))
        raise PromptError(
            f"prompts.held_out is bucket {settings.held_out} of {settings.buckets}, and {held_out} of {len(prompts)} "
            "opd prompts fall there: some are needed for validation and some for training. Buckets with prompts: "
            f"{filled}. Choose another prompts.held_out or other prompts.buckets, or add prompts."
        )
