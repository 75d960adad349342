"""Draw what a run did as one page that needs no network.

    python -m stages.report --data data --out data/report/index.html

Shown are accuracy by checkpoint, loss and KL by step, drift by round, tokens, bytes and seconds by stage, and a few
rollouts token by token, of the rounds that params.yaml lists. What is not there yet is said to be missing.
"""

import logging
import time
from pathlib import Path
from typing import Annotated

import typer

from pipeline import command
from pipeline.command import ParamsFile, StageSummary
from pipeline.settings import params
from pipeline.storage.whole import write_whole

VERSION = 1  # raise it when the page changes; dvc repro then draws it anew
log = logging.getLogger("report")


def run(settings: params.Params, *, data: Path, out: Path) -> StageSummary:
    """Draw the page.

    Raises:
        PotstillError: a file that it reads is damaged.
    """
    from pipeline.report.page import gather_page, render_page

    started = time.monotonic()
    page_data = gather_page(data, list(settings.rounds), settings.report.rollouts)
    page = render_page(page_data, settings.report.title).encode()
    write_whole(out, page)
    tokens = sum(len(rollout.tokens) for rollout in page_data.rollouts)
    return StageSummary(1, 0, tokens, len(page), time.monotonic() - started)


def main(
    params_file: ParamsFile = command.PARAMS,
    data: Annotated[Path, typer.Option(help="The data folder.")] = Path("data"),
    out: Annotated[Path, typer.Option(help="The page.")] = Path("data/report/index.html"),
) -> None:
    """Draw the page."""
    made = run(params.load_params(params_file), data=data, out=out)
    log.info("%s: %.1f MB, open it in a browser", out, made.bytes / 1e6)


if __name__ == "__main__":
    command.run_stage(main)
