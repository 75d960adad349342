"""Contexts: what a view's model sees before a response, or why a row has none.

All but the plain one are the prompt's messages with the last, the user's, put into a template together with something
that the student did not see; their ids are those of the scoring model's own chat template.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.models.record import Model
from pipeline.models.templates import render_prompt
from pipeline.scoring.reading import BucketRows
from pipeline.settings.views import Context, Feedback, Hint, Instruction, Plain, Prefix, Sibling, View
from pipeline.storage import hashing
from pipeline.storage.grades import Grade
from pipeline.storage.prompts import Prompt
from pipeline.storage.ragged import Ragged


@dataclass(frozen=True)
class RowContext:
    """The text that a view shows its model with one row's messages, or why there is none.

    Attributes:
        prompt: that it responds to.
        text: goes into the template under the context's name.
        skipped: why the row has no context, or None where it has one.
    """

    prompt: Prompt
    text: str
    skipped: str | None


@dataclass(frozen=True, eq=False)
class ShardContexts:
    """The token ids that a view's model sees before each response of a shard.

    Attributes:
        lengths: int32 [rows], tokens; 0 where a row has no context.
        skipped: of each row why it has none, or None where it has one; empty where every row has one.
        distinct: int32 ragged, every context once; None where rows see the prompt as the student saw it.
        places: int32 [rows], which of `distinct` a row sees; None as there.
    """

    lengths: np.ndarray
    skipped: tuple[str | None, ...] = ()
    distinct: Ragged | None = None
    places: np.ndarray | None = None

    def of_rows(self, start: int, prompt_ids: Ragged) -> list[np.ndarray | str]:
        """Look up the rows from `start` on: the ids before each response, int32, or why there are none.

        Args:
            start: of the rows in their shard.
            prompt_ids: the prompt of each row, as the student saw it.
        """
        return [self._of_row(start + row, ids) for row, ids in enumerate(prompt_ids)]

    def _of_row(self, row: int, prompt_ids: np.ndarray) -> np.ndarray | str:
        if self.skipped and (reason := self.skipped[row]) is not None:
            return reason
        if self.distinct is None or self.places is None:
            return prompt_ids
        return self.distinct[self.places[row]]


def identify_context(rows: BucketRows, view: View, model: Model) -> dict[str, Any]:
    """Say everything that decides a shard's contexts: settings, tokenizer, and exactly the columns that are read."""
    identity: dict[str, Any] = {"kind": view.context.kind}
    if not isinstance(view.context, Plain):
        of_prompts, of_rollouts, of_grades = _columns(view.context)
        identity |= view.context.model_dump()
        identity["tokenizer"] = model.identity["tokenizer"]
        identity["chat_template"] = model.identity["chat_template"]
        identity["prompts"] = rows.hashes["prompts"].join(("prompt_id", "messages", *of_prompts))
        if of_rollouts:
            identity["rollouts"] = rows.hashes["rollouts"].join(of_rollouts)
        if of_grades:
            identity["grades"] = rows.hashes["grades"].join(of_grades)
    if view.domains:
        found = rows.hashes["prompts"].join(("prompt_id", "domain"))
        identity["domains"] = {"names": sorted(set(view.domains)), "prompts": found}
    return identity


def describe_rows(rows: BucketRows, view: View) -> list[RowContext]:
    """Describe the context of each row, in their order; none for a plain view of all domains, which needs none."""
    if isinstance(view.context, Plain) and not view.domains:
        return []
    prompts = [rows.prompts[key] for key in rows.prompt_keys]
    described = []
    for prompt, text in zip(prompts, _texts(view.context, rows, prompts), strict=True):
        is_outside = bool(view.domains) and prompt.domain not in view.domains
        skipped = "other domain" if is_outside else _missing(view.context) if text is None else None
        described.append(RowContext(prompt, text or "", skipped))
    return described


def count_skipped(row_contexts: Sequence[RowContext]) -> Counter[str]:
    """Count the rows that have no context, by reason."""
    return Counter(row.skipped for row in row_contexts if row.skipped is not None)


def render_contexts(rows: BucketRows, view: View, model: Model, row_contexts: Sequence[RowContext]) -> ShardContexts:
    """Render each row's context with the model's own chat template; rows with the same context share it.

    Args:
        rows: of the shard.
        view: whose contexts they are.
        model: that scores.
        row_contexts: as `describe_rows` gives them.
    """
    skipped = tuple(row.skipped for row in row_contexts)
    context = view.context
    if isinstance(context, Plain):
        has_context = np.array([reason is None for reason in skipped], bool) if skipped else True
        return ShardContexts(rows.prompt_lengths * has_context, skipped)
    tokenizer = model.load_tokenizer()
    rendered: list[np.ndarray] = []
    known: dict[tuple[str, str], int] = {}
    places = np.full(len(row_contexts), -1, np.int32)
    for place, row in enumerate(row_contexts):
        if row.skipped is not None:
            continue
        key = row.prompt.prompt_id, row.text
        if key not in known:
            known[key] = len(rendered)
            *before, last = row.prompt.messages
            content = context.template.format(prompt=last["content"], **{context.kind: row.text})
            rendered.append(np.array(render_prompt(tokenizer, [*before, {**last, "content": content}]), np.int32))
        places[place] = known[key]
    distinct = Ragged.from_rows(rendered, np.int32)
    lengths = np.append(distinct.lengths, 0)[places].astype(np.int32)
    return ShardContexts(lengths, skipped, distinct, places)


def take_beginning(reference: str, share: float) -> str:
    """Take the first characters of a text, rounded up to whole ones."""
    return reference[: math.ceil(share * len(reference))]


def choose_siblings(ids: Sequence[str], prompt_ids: Sequence[str], correct: Sequence[bool | None]) -> list[int | None]:
    """Choose for each row another one of the same prompt that was graded correct; None where there is none.

    Of several, a hash of both ids chooses: the choice depends neither on the order of the rows nor on a seed, and the
    rows of a prompt do not all get the same one.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for place, (prompt_id, is_correct) in enumerate(zip(prompt_ids, correct, strict=True)):
        if is_correct:
            groups[prompt_id].append(place)
    return [
        min(
            (other for other in groups[prompt_id] if other != place),
            key=lambda other, own=own: hashing.digest(own, ids[other]),
            default=None,
        )
        for place, (own, prompt_id) in enumerate(zip(ids, prompt_ids, strict=True))
    ]


def _texts(context: Context, rows: BucketRows, prompts: Sequence[Prompt]) -> Sequence[str | None]:
    """Each row's text for the template, besides the prompt; None where the row has none."""
    match context:
        case Plain() | Instruction():
            return [""] * len(prompts)
        case Hint():
            return [prompt.hint for prompt in prompts]
        case Prefix(of=of, share=share):
            references = [prompt.hint if of == "hint" else prompt.answer for prompt in prompts]
            return [None if reference is None else take_beginning(reference, share) for reference in references]
        case Sibling():
            correct = [grade.correct for grade in rows.grades]
            places = choose_siblings(rows.rollout_ids, rows.prompt_keys, correct)
            return [None if place is None else rows.texts[place] for place in places]
        case Feedback():
            return [_feedback(grade) for grade in rows.grades]


def _columns(context: Context) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Columns of prompts, of rollouts and of grades that `_texts` reads, besides ids and messages."""
    match context:
        case Hint():
            return ("hint",), (), ()
        case Prefix(of=of):
            return (of,), (), ()
        case Sibling():
            return (), ("rollout_id", "prompt_id", "text"), ("rollout_id", "correct")
        case Feedback():
            return (), (), ("rollout_id", "correct", "reward", "feedback")
        case _:
            return (), (), ()


def _missing(context: Context) -> str:
    match context:
        case Prefix(of=of):
            return f"no {of}"
        case Sibling():
            return "no correct sibling"
        case _:
            return f"no {context.kind}"


def _feedback(grade: Grade) -> str | None:
    # Without a verdict the words are a failed grader's own error, which says nothing of the response.
    return None if grade.correct is None and grade.reward is None else grade.feedback
