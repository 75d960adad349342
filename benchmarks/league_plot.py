"""The league as a picture: a dot for each recipe and its interval, best on top; as a page with the whole table, too.

python -m benchmarks.league_plot league.json league.svg
python -m benchmarks.league_plot league.json league.html
"""

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import typer

from benchmarks import league, runs
from benchmarks.runs import Facts

LINE, LEFT, WIDTH, TOP = 18, 190, 560, 34
"""Pixels: height of a row, width of its name, width of the scale, and what stands above the rows."""


def main(results: Path, picture: Path) -> None:
    """Draw what `benchmarks.league --json` wrote."""
    found = json.loads(results.read_text())
    draw = page if picture.suffix == ".html" else svg
    picture.write_text(draw(found["start"], found["runs"]))


def page(start: Sequence[Facts], facts: Sequence[Facts]) -> str:
    """The picture, and under it what the league prints."""
    told = league.report(list(start), list(facts)).splitlines()
    head, _, *rows = [[cell.strip(" *`") for cell in line.strip("|").split("|")] for line in told if line[:1] == "|"]
    lines = [_row("th", head), *(_row("td", row) for row in rows)]
    below = [f"<p>{escape(line)}</p>" for line in told if line and line[0] != "|"]
    style = "body{font:14px sans-serif;max-width:60em;margin:2em auto}td,th{padding:2px 10px;text-align:right}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>League</title><style>{style}</style>\n'
        f"<h1>League of recipes</h1>\n{svg(start, facts)}<table>\n" + "\n".join([*lines, "</table>", *below]) + "\n"
    )


def _row(kind: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in cells) + "</tr>"


def svg(start: Sequence[Facts], facts: Sequence[Facts]) -> str:
    """Accuracy in per cent, avg@k filled and greedy open; a dashed line where all began."""
    groups = {name: group for name, group in runs.by_name(facts).items() if all("avg_at_k" in run for run in group)}
    rows = [(name, _of(group, "avg_at_k"), _of(group, "greedy")) for name, group in groups.items()]
    rows.sort(key=lambda row: -row[1][0])
    height = TOP + LINE * len(rows) + 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 30} {height}" font-family="sans-serif" '
        'font-size="12" fill="#1d2126"><rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{LEFT}" y="14">accuracy, %: avg@k (●) and greedy (○), 95 % intervals over seeds</text>',
    ]
    bottom = TOP + LINE * len(rows)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_line(_x(share), TOP - 6, _x(share), bottom, "#e3e5e8"))
        parts.append(f'<text x="{_x(share):.1f}" y="{bottom + 16}" text-anchor="middle">{100 * share:.0f}</text>')
    for row in start:
        if row["name"] == "r0":
            at = _x(row["avg_at_k"])
            parts.append(f'{_line(at, TOP - 6, at, bottom, "#7a7f8c", "4 3")}<text x="{at + 3:.1f}" y="28">r0</text>')
    for place, (name, many, one) in enumerate(rows):
        y = TOP + LINE * place + LINE / 2
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        parts += [_dot(one, y, "#e07b39", filled=False), _dot(many, y, "#3f7fd9", filled=True)]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _of(group: Sequence[Facts], key: str) -> tuple[float, float]:
    found = runs.mean(run[key] for run in group)
    assert found is not None, "runs without metrics are left out"
    return found


def _dot(found: tuple[float, float], y: float, colour: str, filled: bool) -> str:
    middle, half = found
    fill = colour if filled else "#fff"
    dot = f'<circle cx="{_x(middle):.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}" stroke-width="1.5"/>'
    if math.isnan(half):
        return dot
    return _line(_x(max(0.0, middle - half)), y, _x(min(1.0, middle + half)), y, colour) + dot


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashed}/>'


def _x(share: float) -> float:
    return LEFT + WIDTH * share


if __name__ == "__main__":
    typer.run(main)
