"""Finding what a person asks to be shown: a rollout or a prompt by how its id begins, a round or a view by name."""

from collections.abc import Sequence
from typing import Any

from pipeline.errors import PotstillError, suggest
from pipeline.report.sql import Database


def check_round(database: Database, round_: str) -> None:
    """Refuse a round that has no rollouts.

    Raises:
        PotstillError: names the rounds that have some.
    """
    _check_name(database, "rollouts", "round", round_)


def check_view(database: Database, view: str) -> None:
    """Refuse a view that has scored nothing.

    Raises:
        PotstillError: names the views that have.
    """
    _check_name(database, "scores", "view", view)


def _check_name(database: Database, kind: str, column: str, name: str) -> None:
    known = [row[column] for row in database.ask(f"select distinct {column} from all_{kind} order by {column}")]
    if name not in known:
        raise PotstillError(f"there are no {kind} of the {column} `{name}`; {suggest(name, known)}")


def find_rollout(database: Database, prefix: str, round_: str | None = None) -> tuple[str, str]:
    """Find the rollout whose id begins so, and the latest round that it occurs in, or else the round that is given.

    Raises:
        PotstillError: none does, or several do, or the round has no rollouts.
    """
    if round_ is not None:
        check_round(database, round_)
    found = database.ask(
        f"select rollout_id, round from {'rollouts' if round_ is None else 'all_rollouts'} "
        "where starts_with(rollout_id, ?) and round = coalesce(?, round) order by rollout_id limit 4",
        [prefix, round_],
    )
    if not found:
        of_prompts = database.ask("select 1 from prompts where starts_with(prompt_id, ?) limit 1", [prefix])
        within = "" if round_ is None else f" in {round_}"
        raise PotstillError(
            f"no rollout's id begins with `{prefix}`{within}. "
            + (
                f"A prompt's does: `potstill show --prompt {prefix}` lists its responses."
                if of_prompts
                else "`potstill sql -c 'select rollout_id, round, text from all_rollouts'` lists them."
            )
        )
    _check_single([row["rollout_id"] for row in found], prefix, "rollouts")
    return found[0]["rollout_id"], found[0]["round"]


def find_prompt(database: Database, prefix: str) -> dict[str, Any]:
    """Find the prompt whose id begins so, as its row of `prompts`.

    Raises:
        PotstillError: none does, or several do.
    """
    found = database.ask("select * from prompts where starts_with(prompt_id, ?) order by prompt_id limit 4", [prefix])
    if not found:
        raise PotstillError(
            f"no prompt's id begins with `{prefix}`. `potstill sql -c 'select prompt_id, split, messages from "
            "prompts'` lists them."
        )
    _check_single([row["prompt_id"] for row in found], prefix, "prompts")
    return found[0]


def list_responses(database: Database, prompt_id: str, round_: str | None = None) -> list[dict[str, Any]]:
    """List the student's responses to a prompt with their grades, each in the latest round that it occurs in.

    Args:
        database: of the shards.
        prompt_id: whole.
        round_: list what lies in this round's folder instead, kept responses included.

    Raises:
        PotstillError: the round has no rollouts.
    """
    if round_ is not None:
        check_round(database, round_)
    lead = "" if round_ is None else "all_"
    return database.ask(
        f"""
        select
            rollout.round, rollout.sample, rollout.rollout_id, grade.correct, rollout.finish_reason, rollout.text,
            len(rollout.response_ids) as tokens
        from {lead}rollouts as rollout
        left join {lead}grades as grade on grade.rollout_id = rollout.rollout_id and grade.round = rollout.round
        where rollout.prompt_id = ? and rollout.round = coalesce(?, rollout.round)
        order by round_number(rollout.round), rollout.sample
        """,
        [prompt_id, round_],
    )


def _check_single(ids: Sequence[str], prefix: str, what: str) -> None:
    """Refuse the beginning of several ids, of which up to four are given."""
    if len(ids) > 1:
        told = ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")
        raise PotstillError(f"`{prefix}` is the beginning of several {what}' ids: {told}. Give more of it.")
