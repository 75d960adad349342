"""One response on the terminal: each token is coloured by how teacher and student disagree on it."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.report.transcript import LEVELS, Token, Transcript
from pipeline.visible import make_visible

_STUDENT_SURER = ("", "on #fde0d2", "on #fcbba1", "on #fc9272", "on #fb6a4a", "on #de2d26")

_TEACHER_SURER = ("", "on #deebf7", "on #c6dbef", "on #9ecae1", "on #6baed6", "on #3182bd")


def _choose_style(token: Token) -> str:
    background = (_STUDENT_SURER if token.level > 0 else _TEACHER_SURER)[abs(token.level)]
    return f"black {background}" if background else ""


def print_transcript(rollout: Transcript) -> None:
    """Print a rollout: its prompt, its response with each token in its colour, its answer, and the disagreements."""
    console = Console(highlight=False)
    grade = {True: "right", False: "wrong", None: "not graded"}[rollout.correct]
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
        console.print(Text(f"\nThe teacher has not scored it{f': {rollout.skipped}' if rollout.skipped else ''}."))
        return
    console.print(Text.assemble("\n", (" red ", _STUDENT_SURER[3]), " the teacher finds the token less likely, "))
    console.print(Text.assemble((" blue ", _TEACHER_SURER[3]), f" likelier; by {LEVELS[0]} to {LEVELS[-1]} nats.\n"))
    console.print(_tabulate_disagreements(rollout))


def _tabulate_disagreements(rollout: Transcript, count: int = 8) -> Table:
    """Tabulate the tokens that teacher and student disagree on most, for terminals without colour, too."""
    table = Table("position", "token", "student, nats", "teacher, nats", "the teacher's likeliest", box=None)
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
