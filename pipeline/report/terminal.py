"""One response on the terminal, each token coloured by how teacher and student disagree on it; or one prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.report.transcript import LEVELS, Token, Transcript
from pipeline.visible import make_visible

_STUDENT_SURER = ("", "on #fde0d2", "on #fcbba1", "on #fc9272", "on #fb6a4a", "on #de2d26")

_GRADES = {True: "right", False: "wrong", None: "not graded"}

_TEACHER_SURER = ("", "on #deebf7", "on #c6dbef", "on #9ecae1", "on #6baed6", "on #3182bd")


_SHOWN_OF_ID = 12
"""Characters of an id: enough to tell the rollouts of most projects apart, and to be typed."""


def _choose_style(token: Token) -> str:
    background = (_STUDENT_SURER if token.level > 0 else _TEACHER_SURER)[abs(token.level)]
    return f"black {background}" if background else ""


def print_transcript(rollout: Transcript) -> None:
    """Print a rollout: its prompt, its response with each token in its colour, its answer, and the disagreements."""
    console = Console(highlight=False)
    grade, viewer = _GRADES[rollout.correct], _name_viewer(rollout)
    console.print(Text(f"rollout {rollout.rollout_id}, {rollout.length} tokens, ends by {rollout.finish_reason}"))
    console.print(Text(f"written in {rollout.written_in}, shown from {rollout.round}; {grade}"), style="dim")
    console.print(Text("\nprompt", style="bold"))
    console.print(Text(make_visible(rollout.prompt)))
    console.print(Text("\nresponse", style="bold"))
    console.print(Text.assemble(*[(make_visible(token.text), _choose_style(token)) for token in rollout.tokens]))
    if rollout.answer is not None:
        console.print(Text("\nanswer", style="bold"))
        console.print(Text(make_visible(rollout.answer)))
    if not rollout.scored:
        reason = f": {rollout.skipped}" if rollout.skipped else ""
        console.print(Text(f"\n{viewer[0].upper()}{viewer[1:]} has not scored it{reason}."))
        return
    console.print(Text.assemble("\n", (" red ", _STUDENT_SURER[3]), f" {viewer} finds the token less likely, "))
    console.print(Text.assemble((" blue ", _TEACHER_SURER[3]), f" likelier; by {LEVELS[0]} to {LEVELS[-1]} nats.\n"))
    console.print(_tabulate_disagreements(rollout))


def _tabulate_disagreements(rollout: Transcript, count: int = 8) -> Table:
    """Tabulate the tokens that teacher and student disagree on most, for terminals without colour, too."""
    likeliest_of = f"{_name_viewer(rollout)}'s likeliest"
    table = Table("position", "token", "student, nats", f"{rollout.view}, nats", likeliest_of, box=None)
    order = sorted(enumerate(rollout.tokens), key=lambda pair: (-abs(pair[1].disagreement), pair[0]))
    for position, token in order[:count]:
        likeliest = ", ".join(f"{make_visible(text)!r} {probability:.3f}" for text, probability in token.alternatives)
        table.add_row(
            str(position),
            Text(repr(make_visible(token.text)), _choose_style(token)),
            f"{token.student:.3f}",
            f"{token.teacher:.3f}",
            Text(likeliest),
        )
    return table


def _name_viewer(rollout: Transcript) -> str:
    """Name what the student is compared with."""
    return "the teacher" if rollout.view == "teacher" else f"the view {rollout.view}"


def print_prompt(prompt: Mapping[str, Any], responses: Sequence[Mapping[str, Any]]) -> None:
    """Print a prompt with its answer, and a line for each of the student's responses to it.

    Args:
        prompt: a row of the view `prompts`.
        responses: as `list_responses` gives them.
    """
    console = Console(highlight=False)
    console.print(Text(f"prompt {prompt['prompt_id']}, {prompt['split']}, domain {prompt['domain']}"))
    for message in prompt["messages"]:
        console.print(Text(f"\n{message['role']}", style="bold"))
        console.print(Text(make_visible(message["content"])))
    for name in ("answer", "hint"):
        if prompt[name] is not None:
            console.print(Text(f"\n{name}", style="bold"))
            console.print(Text(make_visible(prompt[name])))
    if not responses:
        console.print("\nThere are no rollouts of it.")
        return
    table = Table("round", "sample", "rollout", "grade", "tokens", "ends by", "text", box=None)
    for row in responses:
        line = " ".join(make_visible(row["text"]).split())
        cells = row["round"], row["sample"], row["rollout_id"][:_SHOWN_OF_ID], _GRADES[row["correct"]], row["tokens"]
        table.add_row(*map(str, cells), row["finish_reason"], Text(line, no_wrap=True, overflow="ellipsis"))
    console.print()
    console.print(table)
    console.print("\n`potstill show ROLLOUT` shows one token by token.")
