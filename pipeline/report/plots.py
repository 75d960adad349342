"""The report's figures: each from plain numbers, with its units on the axes and no colour of text or ground.

Those two are set by the page, which knows whether the reader's screen is dark. No figure has nothing in it: where
there is nothing to draw, the function gives None and the page says so.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

COLOURS = ("#3f7fd9", "#e07b39", "#2f9e6e", "#a05fd0", "#d0485a", "#2499a8", "#b08a1e", "#7a7f8c")
"""Told apart on white and on black; from the ninth round on they repeat."""

POINTS = 120
"""A line has at most so many points; each is the mean of as many steps as that takes."""

History = Mapping[str, Sequence[float | None]]
"""The columns of a history.csv or validation.csv."""


@dataclass(frozen=True)
class Timing:
    """The output of a stage and the time that it took; seconds are None where another machine made some of it."""

    stage: str
    round: str
    files: int
    tokens: int
    bytes: int
    seconds: float | None

    @property
    def name(self) -> str:
        """The stage, and the round where it has one."""
        return f"{self.stage} {self.round}".strip()


def plot_accuracy(metrics: Mapping[str, Mapping[str, Any]]) -> go.Figure | None:
    """Draw greedy, avg@k and pass@k by checkpoint, in percent, with one standard error; the teacher as lines across."""
    students = {name: measured for name, measured in metrics.items() if name != "teacher"}
    if not students:
        return None
    names = ["r0 (SFT)" if name == "r0" else name for name in students]
    k = next(iter(students.values()))["k"]
    figure = _make_figure("checkpoint of the student", "accuracy, %")
    for colour, key, label in zip(
        COLOURS, ("greedy", "avg_at_k", "pass_at_k"), ("greedy", f"avg@{k}", f"pass@{k}"), strict=False
    ):
        errors = [_percent(measured.get(f"{key}_se")) for measured in students.values()]
        figure.add_scatter(
            x=names,
            y=[_percent(measured[key]) for measured in students.values()],
            error_y={"type": "data", "array": errors, "thickness": 1.5, "width": 5} if any(errors) else None,
            mode="lines+markers",
            name=label,
            line={"color": colour, "width": 2, "dash": "dot" if key == "pass_at_k" else "solid"},
            marker={"size": 8},
            hovertemplate="%{y:.1f} %",
        )
        if "teacher" in metrics and key != "pass_at_k":
            figure.add_scatter(
                x=names,
                y=[_percent(metrics["teacher"][key])] * len(names),
                mode="lines",
                name=f"teacher, {label}",
                line={"color": colour, "width": 1.5, "dash": "dash"},
                hovertemplate="%{y:.1f} %",
            )
    return figure


def plot_by_step(histories: Mapping[str, History], column: str, axis: str, markers: bool = False) -> go.Figure | None:
    """Draw one column of each round's history against the optimiser step; lines of many steps are thinned to means."""
    figure = _make_figure("optimiser step", axis)
    for number, (name, history) in enumerate(histories.items()):
        if column not in history:
            continue
        pairs = zip(history["step"], history[column], strict=True)
        known = [(step, value) for step, value in pairs if step is not None and value is not None]
        if known:
            steps, values = thin_to_means(*zip(*known, strict=True))
            figure.add_scatter(
                x=steps,
                y=values,
                mode="lines+markers" if markers else "lines",
                name=name,
                line={"color": COLOURS[number % len(COLOURS)], "width": 2},
                hovertemplate="step %{x:.0f}: %{y:.4g}",
            )
    return figure if figure.to_dict()["data"] else None


def thin_to_means(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Take means over windows of equal length (the last may be shorter), so that at most `POINTS` are left."""
    window = -(-len(steps) // POINTS)
    starts = np.arange(0, len(steps), window)
    counts = np.diff(np.append(starts, len(steps)))
    return tuple((np.add.reduceat(np.asarray(column, float), starts) / counts).tolist() for column in (steps, values))


def plot_drift(drifts: Mapping[str, Mapping[str, Any]]) -> go.Figure | None:
    """Draw a point for each shard whose drift was measured, and the bound and floor of the round as lines."""
    figure = _make_figure("round", "drift, nats per token")
    for kept, colour, label in ((False, COLOURS[1], "shard written anew"), (True, COLOURS[2], "shard kept")):
        points = _list_drift_points(drifts, kept)
        if points:
            x, y, margins, texts = zip(*points, strict=True)
            figure.add_scatter(
                x=x,
                y=y,
                error_y={"array": margins, "thickness": 1, "width": 2},
                text=texts,
                mode="markers",
                name=label,
                marker={"color": colour, "size": 9},
                hovertemplate="%{y:.4f} ± %{error_y.array:.4f} nats per token<br>%{text}",
            )
    if not figure.to_dict()["data"]:
        return None
    for key, dash in (("bound", "dash"), ("floor", "dot")):
        levels = [(place, measured[key]) for place, measured in enumerate(drifts.values()) if measured[key] is not None]
        if levels:
            x = [across for place, _ in levels for across in (place - 0.4, place + 0.4, None)]
            y = [height for _, level in levels for height in (level, level, None)]
            figure.add_scatter(x=x, y=y, mode="lines", name=key, line={"color": COLOURS[7], "dash": dash, "width": 2})
    figure.update_xaxes(
        tickvals=list(range(len(drifts))), ticktext=list(drifts), range=[-0.6, len(drifts) - 0.4], showgrid=False
    )
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(hovermode="closest")
    return figure


def _list_drift_points(drifts: Mapping[str, Mapping[str, Any]], kept: bool) -> list[tuple[float, float, float, str]]:
    """List place, drift, margin and description of each measured shard; those of a round stand side by side."""
    points = []
    for place, measured in enumerate(drifts.values()):
        shards = sorted(measured["shards"].items())
        for number, (name, shard) in enumerate(shards):
            if shard["drift"] is not None and shard["kept"] == kept:
                across = place + 0.5 * ((number + 0.5) / len(shards) - 0.5)
                share = _share(shard["effective_sample_size"])
                fate = f"kept from {shard['written_in']}" if kept else "written anew after this"
                text = f"{name}, {fate}, by {shard['responses']} responses, effective sample size {share}"
                points.append((across, shard["drift"], shard["margin"], text))
    return points


def plot_costs(timings: Sequence[Timing]) -> go.Figure | None:
    """Draw bars of tokens, megabytes and seconds by stage, in the order in which they run."""
    if not timings:
        return None
    figure = make_subplots(1, 3, shared_yaxes=True, horizontal_spacing=0.04)
    names = [timing.name for timing in timings]
    columns: Iterable[tuple[str, list[float | None]]] = (
        ("response tokens", [timing.tokens for timing in timings]),
        ("megabytes", [timing.bytes / 1e6 for timing in timings]),
        ("seconds", [timing.seconds for timing in timings]),
    )
    for place, (label, values) in enumerate(columns, start=1):
        figure.add_bar(
            x=values,
            y=names,
            orientation="h",
            name=label,
            marker={"color": COLOURS[place - 1]},
            hovertemplate="%{x:,.4~g} " + label,
            row=1,
            col=place,
        )
        figure.update_xaxes(title_text=label, row=1, col=place, rangemode="tozero", nticks=5)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    _dress(figure)
    figure.update_layout(showlegend=False, hovermode="closest", height=110 + 24 * len(names), bargap=0.3)
    return figure


def _make_figure(x: str, y: str) -> go.Figure:
    figure = go.Figure()
    _dress(figure)
    figure.update_layout(xaxis_title_text=x, yaxis_title_text=y)
    return figure


def _dress(figure: go.Figure) -> None:
    figure.update_layout(
        template=go.layout.Template(),
        margin={"l": 60, "r": 12, "t": 8, "b": 48},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hovermode="x unified",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=True,
    )
    figure.update_xaxes(zeroline=False, automargin=True, title_font_size=13)
    figure.update_yaxes(zeroline=False, automargin=True, title_font_size=13)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _share(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.0%}"
