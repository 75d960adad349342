"""Contexts: what a view's model sees before a response, or why a row has none.

All but the plain one are the prompt's messages with the last, the user's, put into a template together with something
that the student did not see; their ids are those of the scoring model's own chat template.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.models.record import Model, render_prompt
from pipeline.settings.views import Context, Feedback, Hint, Instruction, Plain, Prefix, Sibling, View
from pipeline.storage import hashing
from pipeline.storage.bucket import Bucket, require_path
from pipeline.storage.grades import GRADES, Grade, read_grades
from pipeline.storage.prompts import PROMPTS, Prompt, read_prompts
from pipeline.storage.ragged import from_lists
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.shards import read_shard


@dataclass(frozen=True)
class RowContext:
    """What a row's model is told besides the messages.

    Attributes:
        rollout_id: of the row.
        prompt: that it responds to.
        text: goes into the template under the context's name.
        skipped: why the row has no context, or None where it has one.
    """

    rollout_id: str
    prompt: Prompt
    text: str
    skipped: str | None


def identify_context(bucket: Bucket, view: View, model: Model) -> dict[str, Any]:
    """Everything that decides a shard's contexts: settings, tokenizer, and exactly the columns that are read."""
    facts: dict[str, Any] = {"kind": view.context.kind}
    if not isinstance(view.context, Plain):
        of_prompts, of_rollouts, of_grades = _columns(view.context)
        facts |= view.context.model_dump()
        facts["tokenizer"] = model.identity["tokenizer"]
        facts["chat_template"] = model.identity["chat_template"]
        facts["prompts"] = hashing.hash_columns(
            require_path(bucket.prompts), PROMPTS, ("prompt_id", "messages", *of_prompts)
        )
        if of_rollouts:
            facts["rollouts"] = hashing.hash_columns(bucket.rollouts, ROLLOUTS, of_rollouts)
        if of_grades:
            facts["grades"] = hashing.hash_columns(require_path(bucket.grades), GRADES, of_grades)
    if view.domains:
        found = hashing.hash_columns(require_path(bucket.prompts), PROMPTS, ("prompt_id", "domain"))
        facts["domains"] = {"names": sorted(set(view.domains)), "prompts": found}
    return facts


class Contexts:
    """The contexts of a shard's rows.

    Args:
        bucket: the shard, and what its contexts are made from.
        view: whose contexts they are.
        model: that scores.
    """

    def __init__(self, bucket: Bucket, view: View, model: Model):
        self._context = view.context
        self._told = {row.rollout_id: row for row in describe_rows(bucket, view)}
        self._tokenizer = None if isinstance(view.context, Plain) else model.load_tokenizer()

    def of(self, group: pa.Table) -> list[np.ndarray | str]:
        """Of each row of a row group the ids before its response, int32, or why there are none.

        Args:
            group: some rows of the shard; `rollout_id` and `prompt_ids` are read.
        """
        rows = zip(group.column("rollout_id").to_pylist(), from_lists(group.column("prompt_ids")), strict=True)
        return [self._of_row(self._told.get(rollout_id), prompt_ids) for rollout_id, prompt_ids in rows]

    def _of_row(self, row: RowContext | None, prompt_ids: np.ndarray) -> np.ndarray | str:
        if row is not None and row.skipped is not None:
            return row.skipped
        if row is None or isinstance(self._context, Plain):
            return prompt_ids
        *before, last = row.prompt.messages
        content = self._context.template.format(prompt=last["content"], **{self._context.kind: row.text})
        return np.array(render_prompt(self._tokenizer, [*before, {**last, "content": content}]), np.int32)


def describe_rows(bucket: Bucket, view: View) -> list[RowContext]:
    """What each row of a shard is told, in its order; of a plain view of all domains nothing is read, nor returned."""
    if isinstance(view.context, Plain) and not view.domains:
        return []
    known = {prompt.prompt_id: prompt for prompt in read_prompts(require_path(bucket.prompts))}
    ids, prompt_ids = _strings(bucket.rollouts, "rollout_id", "prompt_id")
    asked = [known[prompt_id] for prompt_id in prompt_ids]
    rows = []
    for rollout_id, prompt, text in zip(ids, asked, _texts(view.context, bucket, ids, asked), strict=True):
        is_outside = bool(view.domains) and prompt.domain not in view.domains
        skipped = "other domain" if is_outside else _missing(view.context) if text is None else None
        rows.append(RowContext(rollout_id, prompt, text or "", skipped))
    return rows


def take_beginning(reference: str, share: float) -> str:
    """The first characters of a text, rounded up to whole ones."""
    return reference[: math.ceil(share * len(reference))]


def choose_siblings(ids: Sequence[str], prompt_ids: Sequence[str], correct: Sequence[bool | None]) -> list[int | None]:
    """For each row the place of another one of the same prompt that was graded correct; None where there is none.

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


def _texts(context: Context, bucket: Bucket, ids: Sequence[str], asked: Sequence[Prompt]) -> Sequence[str | None]:
    """What the template shows each row besides the prompt; None where there is no such thing."""
    match context:
        case Plain() | Instruction():
            return [""] * len(ids)
        case Hint():
            return [prompt.hint for prompt in asked]
        case Prefix(of=of, share=share):
            references = [prompt.hint if of == "hint" else prompt.answer for prompt in asked]
            return [None if reference is None else take_beginning(reference, share) for reference in references]
        case Sibling():
            (texts,) = _strings(bucket.rollouts, "text")
            correct = [grade.correct for grade in read_grades(require_path(bucket.grades), bucket.rollouts)]
            places = choose_siblings(ids, [prompt.prompt_id for prompt in asked], correct)
            return [None if place is None else texts[place] for place in places]
        case Feedback():
            return [_feedback(grade) for grade in read_grades(require_path(bucket.grades), bucket.rollouts)]


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


def _strings(path: Path, *names: str) -> list[list[str]]:
    """Whole columns of a shard of rollouts."""
    table = read_shard(path, ROLLOUTS, names)
    return [table.column(name).to_pylist() for name in names]
