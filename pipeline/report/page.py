"""The report: one page that shows what a run did, and asks nothing of the network.

It reads what the stages measured and draws it; what is not there yet is said to be missing. Texts that models wrote
are escaped by the template, and the page forbids itself every request.
"""

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from pipeline.errors import ModelError, damaged
from pipeline.grading.metrics import find_change, find_degeneration
from pipeline.models.seal import CHECKPOINT, check_checkpoint
from pipeline.report import plots
from pipeline.report.decoding import Decoder, make_decoder
from pipeline.report.plots import History, Timing
from pipeline.report.sql import Database
from pipeline.report.transcript import (
    LEVELS,
    Token,
    Transcript,
    choose_telling,
    read_transcript,
)
from pipeline.storage.manifest import check_folders
from pipeline.storage.whole import read_json
from pipeline.visible import make_visible

TOKENS_SHOWN = 1500
"""Tokens shown of one rollout; a page with 16,000 of them would be slow to open."""

_STAGES = ("models", "prompts", "teacher_rollouts", "sft", "refresh", "score", "train", "evaluate")

_TEMPLATE = "page.html.jinja"


@dataclass(frozen=True)
class PageData:
    """The measurements and texts that the page is made from; each mapping lacks what was not measured.

    Attributes:
        rounds: in their order, r0 excluded.
        metrics: by checkpoint: `teacher`, `r0` and the rounds.
        histories: by checkpoint, the columns of history.csv.
        validations: by checkpoint, the columns of validation.csv.
        training_alarms: by checkpoint, the signs of a collapse in its history, in sentences.
        drifts: by round.
        timings: in the order of the pipeline.
        rollouts: the ones shown, all of one round.
        are_texts: whether the tokens are text; without the student's tokenizer they are ids.
    """

    rounds: tuple[str, ...]
    metrics: dict[str, dict[str, Any]]
    histories: dict[str, History]
    validations: dict[str, History]
    training_alarms: dict[str, list[str]]
    drifts: dict[str, dict[str, Any]]
    timings: tuple[Timing, ...]
    rollouts: tuple[Transcript, ...]
    are_texts: bool


def gather_page(data: Path, rounds: Sequence[str], rollouts: int) -> PageData:
    """Read what the stages of these rounds left; the leftovers of a removed round are not looked at.

    Raises:
        PotstillError: a file is damaged.
    """
    checkpoints = ["r0", *rounds]
    # DuckDB reads them, and looks at no checksum.
    of_rounds = [data / kind / round_ for kind in ("rollouts", "grades", "scores") for round_ in rounds]
    check_folders(data / "prompts", *of_rounds)
    for name in checkpoints:
        check_checkpoint(data / "models" / name, ("history.csv", "validation.csv"))
    decode, are_texts = _find_decoder(data)
    with Database(data) as database:
        shown: list[Transcript] = []
        for round_ in reversed(rounds):
            chosen = choose_telling(database, round_, rollouts)
            shown = [read_transcript(database, name, round_, decode, TOKENS_SHOWN) for name in chosen]
            if shown:
                break
    return PageData(
        rounds=tuple(rounds),
        metrics=_read_known(["teacher", *checkpoints], lambda name: data / "metrics" / f"{name}.json", read_json),
        histories=_read_known(checkpoints, lambda name: data / "models" / name / "history.csv", _read_columns),
        validations=_read_known(checkpoints, lambda name: data / "models" / name / "validation.csv", _read_columns),
        training_alarms=_read_known(checkpoints, lambda name: data / "models" / name / CHECKPOINT, _read_alarms),
        drifts=_read_known(rounds, lambda name: data / "drift" / f"{name}.json", read_json),
        timings=_read_timings(data / "timings", rounds),
        rollouts=tuple(shown),
        are_texts=are_texts,
    )


def render_page(page_data: PageData, title: str) -> str:
    """Write the page as HTML; equal data gives equal pages."""
    distilled = {name: history for name, history in page_data.histories.items() if name != "r0"}
    figures = {
        "accuracy": plots.plot_accuracy(page_data.metrics),
        "loss": plots.plot_by_step(distilled, "loss", "loss"),
        "kl": plots.plot_by_step(distilled, "kl", "KL to the view, nats per token"),
        "mass": plots.plot_by_step(distilled, "support_mass", "probability on the support"),
        "validation": plots.plot_by_step(
            page_data.validations, "validation_kl", "validation KL, nats per token", markers=True
        ),
        "sft": plots.plot_by_step({"r0": page_data.histories.get("r0", {})}, "loss", "loss, nats per token"),
        "drift": plots.plot_drift(page_data.drifts),
        "costs": plots.plot_costs(page_data.timings),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": make_visible, "percent": _format_percent, "amount": _format_amount}
    environment.globals |= {"absent": _list_absent, "tip": write_tip, "levels": LEVELS}
    return environment.get_template(_TEMPLATE).render(
        title=title,
        page_data=page_data,
        verdict=write_verdict(page_data),
        alarms=list_alarms(page_data),
        figures={name: figure.to_json(engine="json") for name, figure in figures.items() if figure is not None},
        choice=_describe_choice(page_data.rollouts),
        plotly=get_plotlyjs(),
    )


def write_verdict(page_data: PageData) -> str:
    """Say what became of the student, in sentences; a change whose 95 % interval holds zero is called none."""
    last = next((name for name in reversed(page_data.rounds) if name in page_data.metrics), None)
    if "r0" not in page_data.metrics or last is None:
        return "There is no verdict yet: it needs the metrics of r0 and of a later round."
    before, after = page_data.metrics["r0"], page_data.metrics[last]
    named = {"avg_at_k": f"avg@{after['k']}", "greedy": "greedy"}
    parts = [f"{name} accuracy {_describe_change(before, after, key)}" for key, name in named.items()]
    count = page_data.rounds.index(last) + 1
    sentence = f"From r0 to {last}, the student's {' and its '.join(parts)}"
    sentence += f" in {count} round{'s' if count > 1 else ''} of distillation, on {after['prompts']:,} prompts."
    if "teacher" in page_data.metrics:
        teacher = page_data.metrics["teacher"]
        average = f"{_format_percent(teacher['avg_at_k'])} avg@{teacher['k']}"
        sentence += f" The teacher has {average} and {_format_percent(teacher['greedy'])} greedy."
    return sentence


def _describe_change(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> str:
    """Say how an accuracy changed, with the interval of the change in points."""
    least, most = find_change(before, after, key)
    verb = "rose" if least > 0 else "fell" if most < 0 else "did not change measurably,"
    shares = f"from {_format_percent(before[key])} to {_format_percent(after[key])}"
    return f"{verb} {shares} ({100 * least:+.1f} to {100 * most:+.1f} points)"


def list_alarms(page_data: PageData) -> list[tuple[str, str]]:
    """List every sign of a collapse, by checkpoint: in its training, its validation, and its responses."""
    names = ["r0", *page_data.rounds]
    found = [(name, text) for name in names for text in page_data.training_alarms.get(name, [])]
    for name, history in page_data.validations.items():
        measured = [value for value in history.get("validation_kl", ()) if value is not None]
        if len(measured) > 1 and measured[-1] > 1.1 * measured[0]:
            rise = f"from {measured[0]:.4f} to {measured[-1]:.4f} nats per token"
            found.append((name, f"validation KL rose {rise} (alarm above a tenth)."))
    evaluated = [page_data.metrics[name] for name in names if name in page_data.metrics]
    for before, after in itertools.pairwise(evaluated):
        found += [(after["checkpoint"], text) for text in find_degeneration(before, after)]
    return found


def write_tip(token: Token) -> str:
    """Write what the page tells of a token that is pointed at."""
    lines = [f"“{make_visible(token.text)}”  (id {token.id})", f"student  {_format_chance(token.student)}"]
    if token.teacher is not None:
        lines.append(f"teacher  {_format_chance(token.teacher)}   {token.disagreement:+.2f} nats")
        lines += ["teacher's likeliest"] if token.alternatives else []
        lines += [f"  {probability:7.2%}  “{make_visible(text)}”" for text, probability in token.alternatives]
    return "\n".join(lines)


def _describe_choice(rollouts: Sequence[Transcript]) -> str:
    """Say how the rollouts were chosen, with how many there are of each kind."""
    right = sum(rollout.correct is True for rollout in rollouts)
    wrong = sum(rollout.correct is False for rollout in rollouts)
    other = len(rollouts) - right - wrong
    kinds = [
        f"{count} {kind}"
        for count, kind in (
            (wrong, "wrong, where teacher and student disagree most"),
            (right, "right, drawn by hash"),
            (other, "not graded, where they disagree most"),
        )
        if count
    ]
    return "; ".join(kinds)


def _list_absent(names: Sequence[str], known: Mapping[str, Any]) -> str:
    missing = [name for name in names if name not in known]
    return f"Not there yet: {', '.join(missing)}." if missing else ""


def _format_percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _format_chance(logprob: float) -> str:
    """A log-probability as a probability; small ones as the power of ten."""
    return f"{math.exp(logprob):7.2%}" if logprob > -9 else f"  10^{logprob / math.log(10):.0f}"


def _format_amount(value: float | None, unit: str = "") -> str:
    """A number with at most one decimal and a thousands' prefix."""
    if value is None:
        return "–"
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.1f} {prefix}{unit}"
    return f"{value:.0f} {unit}".strip()


def _find_decoder(data: Path) -> tuple[Decoder, bool]:
    try:
        return make_decoder(data / "models" / "student.json"), True
    except ModelError:
        return lambda ids: "".join(f"{token} " for token in ids), False


def _read_known(names: Sequence[str], path: Any, read: Any) -> dict[str, Any]:
    return {name: read(path(name)) for name in names if path(name).exists()}


def _read_timings(folder: Path, rounds: Sequence[str]) -> tuple[Timing, ...]:
    known = ("", "teacher", "r0", *rounds)
    found = [_read_timing(path) for path in sorted(folder.glob("*.json"))]
    shown = [timing for timing in found if timing.round in known and timing.stage in _STAGES]
    return tuple(sorted(shown, key=lambda timing: (known.index(timing.round), _STAGES.index(timing.stage))))


def _read_timing(path: Path) -> Timing:
    try:
        return Timing(**read_json(path))
    except TypeError as error:
        raise damaged(path, f"is damaged ({str(error).partition('() ')[2]})") from None


def _read_alarms(path: Path) -> list[str]:
    """Read the alarms of a checkpoint, which need not name any, as sentences."""
    return [f"step {alarm['step']}: {alarm['text']}" for alarm in read_json(path).get("alarms", ())]


def _read_columns(path: Path) -> dict[str, list[float | None]]:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    try:
        values = [[float(cell) if cell else None for cell in row] for row in rows[1:]]
        return dict(zip(rows[0], [list(column) for column in zip(*values, strict=True)], strict=True)) if values else {}
    except (IndexError, ValueError) as error:
        raise damaged(path, f"is damaged (no table of numbers: {error})") from None
