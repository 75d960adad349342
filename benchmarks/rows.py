"""What a benchmark says: ours against a named baseline of the same run, as a table, as JSON and as an exit code."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the rows there.")]
Check = Annotated[bool, typer.Option("--check", help="Exit 1, and say which, where a figure misses its bar.")]


@dataclass(frozen=True)
class Bar:
    """What a figure has to reach."""

    side: Literal["≤", "≥"]
    value: float

    def holds(self, figure: float) -> bool:
        """Whether the figure reaches it."""
        return figure <= self.value if self.side == "≤" else figure >= self.value

    def __str__(self) -> str:
        return f"{self.side} {self.value:g}"


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: what is claimed, with the baseline's name in it.
        unit: of `ours` and `baseline`.
        ours: what this code does.
        baseline: what it is held against, measured in the same run; None for a figure that stands alone.
        bar: what `ratio` has to reach, or `ours` where there is no baseline; None where the figure is only reported.
    """

    name: str
    unit: str
    ours: float
    baseline: float | None = None
    bar: Bar | None = None

    @property
    def ratio(self) -> float | None:
        """Ours over the baseline."""
        return None if self.baseline is None else self.ours / self.baseline

    @property
    def ok(self) -> bool:
        """Whether the bar is reached; true where there is none."""
        return self.bar is None or self.bar.holds(self.ours if self.ratio is None else self.ratio)


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, ratios first."""
    lines = ["| ratio | bar | | ours | baseline | unit |", "|---:|---:|---|---:|---:|---|"]
    for row in rows:
        bar = "" if row.bar is None else f"{row.bar}" if row.ok else f"**{row.bar}: missed**"
        figures = [_short(row.ratio), bar, row.name, _short(row.ours), _short(row.baseline), row.unit]
        lines.append(f"| {' | '.join(figures)} |")
    return "\n".join(lines)


def conclude(rows: Sequence[Row], results: Path | None, check: bool) -> None:
    """Print the table; write the JSON and judge the bars where that is asked for."""
    print(table(rows), flush=True)
    if results is not None:
        told = [asdict(row) | {"bar": row.bar and str(row.bar), "ratio": row.ratio, "ok": row.ok} for row in rows]
        results.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    missed = [
        f"{row.name}: {_short(row.ours if row.ratio is None else row.ratio)}, bar {row.bar}"
        for row in rows
        if not row.ok
    ]
    if check and missed:
        sys.exit("\n".join(f"missed: {claim}" for claim in missed))


def _short(figure: float | None) -> str:
    """Three digits, without an exponent where it can be read without."""
    if figure is None:
        return ""
    if figure == 0 or 1e-3 <= abs(figure) < 1000:
        return f"{figure:.3g}"
    return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.1e}"
