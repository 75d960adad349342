"""Prompts from all sources: which are the same, what they are called, and which split and bucket each belongs to.

A prompt's id is the hash of its messages and its bucket follows from the id, so adding a prompt changes one bucket.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from pipeline.errors import PromptError
from pipeline.models.record import Model
from pipeline.prompts.fit import Fit
from pipeline.prompts.sameness import Asked, ask_messages, spell_messages
from pipeline.prompts.sources import Row, read_source
from pipeline.settings.prompts import Prompts, Split
from pipeline.storage import hashing
from pipeline.storage.prompts import Prompt, make_prompt_row

VALIDATION = "validation"
"""The split that the opd prompts of the held-out bucket say they belong to."""

_LISTED = 20

log = logging.getLogger("prompts")


def collect_prompts(settings: Prompts, models: Iterable[Model] = ()) -> dict[Split, list[Prompt]]:
    """Read every source, and give each split's prompts, without duplicates, ordered by `prompt_id`.

    Prompts of one split that are spelled alike (`sameness.py`) are one, the first of them; where their answers, hints
    or domains differ they contradict each other. A prompt may be both in sft and in opd. One that asks what an
    evaluation prompt asks, alone or among other text, is in no other split.

    Args:
        settings: the sources, and what becomes of rows that cannot be used.
        models: that read the prompts, whose tokenizers they have to suit; none: no prompt is looked at so.

    Raises:
        PromptError: a source cannot be read; rows cannot be used, or contradict each other (all are named at once); a
            split, the held-out bucket, or all buckets of opd but that one are empty.
    """
    read, mistakes = _read_all(settings)
    fit = Fit(models, settings.max_tokens)
    sorted_: dict[Split, _SortedRows] = {split: _sort_rows(rows, fit) for split, rows in read.items()}
    contradictions = [told for each in sorted_.values() for told in each.contradictions]
    unfit = [told for each in sorted_.values() for told in each.unfit]
    mistakes += contradictions if settings.contradictions == "refuse" else []
    mistakes += unfit if settings.unfit == "refuse" else []
    if mistakes:
        ways = {"contradictions": contradictions, "unfit": unfit}
        raise _all_of(mistakes, [f"`prompts.{way}: drop`" for way, told in ways.items() if told])
    asked = Asked(row.messages for row in read["evaluation"])  # those that are left out, too
    prompts: dict[Split, list[Prompt]] = {}
    for split, each in sorted_.items():
        kept = [row for row in each.usable if split == "evaluation" or not asked.is_in(row.messages)]
        counted = each.count(len(read[split]), len(kept))
        # What a teacher answers for SFT need not be there: params.yaml as a whole says whether it is read.
        if not kept and (read[split] or split != "sft"):
            raise PromptError(f"prompts.sources: no prompts for `split: {split}` ({counted}). Add a source for it.")
        prompts[split] = _make_prompts(settings, split, kept)
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


def _read_all(settings: Prompts) -> tuple[dict[Split, list[Row]], list[str]]:
    """Read every source: the usable rows of each split, and what is wrong with the others."""
    read: dict[Split, list[Row]] = {split: [] for split in get_args(Split)}
    mistakes: list[str] = []
    for number, source in enumerate(settings.sources):
        rows, unusable = read_source(source, f"prompts.sources.{number}")
        read[source.split] += rows
        mistakes += unusable
    return read, mistakes


@dataclass(frozen=True)
class _SortedRows:
    """The rows of a split, sorted by what becomes of them.

    Attributes:
        groups: of rows whose prompts are spelled alike.
        usable: the first row of each group that neither contradicts itself nor is unfit.
        contradictions: what is said of rows that contradict the first of their group.
        unfit: what is said of prompts that a model cannot be asked.
    """

    groups: int
    usable: list[Row]
    contradictions: list[str]
    unfit: list[str]

    def count(self, read: int, kept: int) -> str:
        """Count what was read and what is left out."""
        contradictory = self.groups - len(self.usable) - len(self.unfit)
        left_out = {
            "duplicates": read - self.groups,
            "that contradict themselves": contradictory,
            "unfit": len(self.unfit),
        }
        always = ("duplicates",)
        counts = [f"{number} {what}" for what, number in left_out.items() if number or what in always]
        return f"{read} rows, {', '.join(counts)} and {len(self.usable) - kept} evaluation prompts left out"


def _sort_rows(rows: Iterable[Row], fit: Fit) -> _SortedRows:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[hashing.digest(spell_messages(row.messages))].append(row)
    found = _SortedRows(len(groups), [], [], [])
    for group in groups.values():
        first = group[0]
        if told := _differing(group):
            found.contradictions.extend(told)
        elif fault := fit.find_fault(first.messages, first.hint):
            found.unfit.append(f"{first.place}: {fault}")
        else:
            found.usable.append(first)
    return found


def _differing(group: Sequence[Row]) -> list[str]:
    """Tell of the rows of one prompt that contradict the first of them: taking either would be a guess."""
    first, *others = group
    mistakes = []
    for row in others:
        differing = [name for name in ("answer", "hint", "domain") if getattr(first, name) != getattr(row, name)]
        if differing:
            differences = ", ".join(f"{name} {getattr(row, name)!r} not {getattr(first, name)!r}" for name in differing)
            spelling = "" if row.messages == first.messages else " in another spelling"
            mistakes.append(f"{row.place}: the prompt of {first.place}{spelling}, but with {differences}")
    return mistakes


def _all_of(mistakes: Sequence[str], to_drop: Sequence[str]) -> PromptError:
    count = "1 row that cannot be used" if len(mistakes) == 1 else f"{len(mistakes)} rows that cannot be used"
    lines = [f"  {mistake}" for mistake in mistakes[:_LISTED]]
    if len(mistakes) > _LISTED:
        lines.append(f"  and {len(mistakes) - _LISTED} more")
    listing = "\n".join(lines)
    drop = f" With {' and '.join(to_drop)} such rows are left out." if to_drop else ""
    return PromptError(
        f"prompts.sources has {count}:\n{listing}\nCorrect or remove these rows, or name other "
        f"fields in prompts.sources, then run `dvc repro prompts`.{drop}"
    )


def _make_prompts(settings: Prompts, split: Split, rows: Iterable[Row]) -> list[Prompt]:
    """Give prompts their ids and buckets, ordered by id; those that ask alike share the bucket of the first of them."""
    named = {hashing.digest(hashing.canonical(row.messages)): row for row in rows}
    buckets: dict[str, int] = {}
    prompts = []
    for prompt_id, row in sorted(named.items()):
        bucket = buckets.setdefault(ask_messages(row.messages), choose_bucket(prompt_id, settings.buckets))
        told = VALIDATION if split == "opd" and bucket == settings.held_out else split
        prompts.append(Prompt(prompt_id, row.domain, row.messages, row.answer, row.hint, bucket, told))
    return prompts


def _check_held_out(settings: Prompts, prompts: Sequence[Prompt]) -> None:
    held_out = sum(prompt.split == VALIDATION for prompt in prompts)
    if held_out in (0, len(prompts)):
        filled = ", ".join(str(bucket) for bucket in group_by_bucket(prompts))
        raise PromptError(
            f"prompts.held_out is bucket {settings.held_out} of {settings.buckets}, and {held_out} of {len(prompts)} "
            "opd prompts fall there: some are needed for validation and some for training. Buckets with prompts: "
            f"{filled}. Choose another prompts.held_out or other prompts.buckets, or add prompts."
        )
