"""One response token by token: how likely the student found each, and how likely the teacher did."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

from pipeline.report.decoding import Decoder, split_pieces
from pipeline.report.sql import Database

ALTERNATIVES = 3
"""The teacher's likeliest tokens that are shown beside each token."""

LEVELS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Nats of disagreement from which on a token is coloured more strongly."""


@dataclass(frozen=True)
class Token:
    """A token of a response. The teacher's side is None or empty where the view that is shown did not score it.

    Attributes:
        text: what the token adds to the text before it; empty where it is a part of a character.
        student: log-probability under the student that wrote it, nats.
        teacher: log-probability under the teacher, nats.
        alternatives: the teacher's likeliest tokens and their probabilities.
    """

    id: int
    text: str
    student: float
    teacher: float | None
    alternatives: tuple[tuple[str, float], ...]

    @property
    def disagreement(self) -> float:
        """Student less teacher, nats: above 0 the teacher finds the token less likely. 0 without a teacher."""
        return 0.0 if self.teacher is None else self.student - self.teacher

    @property
    def level(self) -> int:
        """How many of `LEVELS` the disagreement reaches, negative where the teacher finds the token likelier."""
        reached = sum(abs(self.disagreement) >= level for level in LEVELS)
        return int(math.copysign(reached, self.disagreement))


@dataclass(frozen=True)
class Transcript:
    """A response with all that is known of it.

    Attributes:
        round: whose folder it was read from; `written_in` is the one that wrote it.
        prompt: as the student saw it, chat template included.
        tokens: the first `limit` of `length`.
        view: whose log-probabilities stand on the teacher's side.
    """

    rollout_id: str
    round: str
    written_in: str
    prompt_id: str
    answer: str | None
    prompt: str
    tokens: tuple[Token, ...]
    length: int
    finish_reason: str
    correct: bool | None
    skipped: str | None
    scored: bool
    view: str = "teacher"


def choose_telling(database: Database, round_: str, count: int) -> list[str]:
    """Choose rollouts of a round that are worth a look, the same ones each time, and give their ids.

    Three of five are wrong answers: those on which teacher and student disagree most, by the mean of the absolute
    disagreement per token. The others are right answers drawn by their id, which is a hash. Where there are too few of
    a kind, the other kind fills up; ungraded rollouts count as wrong. One per prompt.
    """
    rows = database.ask(
        """
        select rollout_id, prompt_id, correct, disagreement from (
            select rollout_id, prompt_id, avg(abs(behaviour_logprob - sampled_logprob)) as disagreement
            from all_tokens where round = ? group by all having disagreement is not null
        ) left join (select rollout_id, correct from all_grades where round = ?) using (rollout_id)
        order by disagreement desc, rollout_id
        """,
        [round_, round_],
    )
    wrong = [row for row in rows if not row["correct"]]
    right = sorted((row for row in rows if row["correct"]), key=lambda row: row["rollout_id"])
    some_wrong = _one_per_prompt(wrong, math.ceil(count * 3 / 5), [])
    chosen = _one_per_prompt(right, count, some_wrong)
    return [row["rollout_id"] for row in _one_per_prompt(wrong, count, chosen)]


def _one_per_prompt(rows: list[Any], count: int, chosen: list[Any]) -> list[Any]:
    """Add rows of prompts that have none yet to the chosen ones, until there are `count`."""
    chosen = list(chosen)
    for row in rows:
        if len(chosen) < count and all(row["prompt_id"] != other["prompt_id"] for other in chosen):
            chosen.append(row)
    return chosen


def read_transcript(
    database: Database, rollout_id: str, round_: str, decode: Decoder, limit: int | None = None, view: str = "teacher"
) -> Transcript:
    """Read a rollout of a round with its latest score under a view, and its latest grade."""
    row = database.ask(
        """
        select
            rollout.* exclude (text), score.* exclude (rollout_id, round, view, bucket, kept), grade.correct,
            (select any_value(answer) from prompts where prompts.prompt_id = rollout.prompt_id) as answer
        from all_rollouts as rollout
        left join scores as score on score.rollout_id = rollout.rollout_id and score.view = ?
        left join grades as grade on grade.rollout_id = rollout.rollout_id
        where rollout.rollout_id = ? and rollout.round = ?
        """,
        [view, rollout_id, round_],
    )[0]
    return Transcript(
        rollout_id=rollout_id,
        round=round_,
        written_in=row["written_in"],
        prompt_id=row["prompt_id"],
        answer=row["answer"],
        prompt=decode(row["prompt_ids"]),
        tokens=_read_tokens(row, decode, limit),
        length=len(row["response_ids"]),
        finish_reason=row["finish_reason"],
        correct=row["correct"],
        skipped=row["skipped"],
        scored=row["sampled_logprobs"] is not None,
        view=view,
    )


def _read_tokens(row: dict[str, Any], decode: Decoder, limit: int | None) -> tuple[Token, ...]:
    ids = row["response_ids"][:limit]
    alone = cache(lambda token: decode([token]))
    tokens = []
    for position, (token, text) in enumerate(zip(ids, split_pieces(ids, decode), strict=True)):
        teacher, alternatives = None, ()
        if row["sampled_logprobs"] is not None:
            teacher = row["sampled_logprobs"][position]
            shown = slice(min(ALTERNATIVES, row["own"][position]))
            entries = zip(row["support_ids"][position][shown], row["support_logprobs"][position][shown], strict=True)
            alternatives = tuple((alone(entry), math.exp(logprob)) for entry, logprob in entries)
        tokens.append(Token(token, text, row["behaviour_logprobs"][position], teacher, alternatives))
    return tuple(tokens)
