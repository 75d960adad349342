"""Read, check and split the prompts, and spread them over buckets.

    python -m stages.prompts --out data/prompts

Writes OUT/sft, OUT/opd and OUT/evaluation with one shard for each bucket that has prompts. One bucket of opd
(prompts.held_out) is scored like the others but never trained on. Every row that cannot be used is named.
"""

import functools
import logging
from pathlib import Path
from typing import Annotated

import typer

from pipeline import command, made_with, params, prompts, shards
from pipeline.command import Made
from pipeline.prompts import Prompt
from pipeline.store import Folder, Store

VERSION = 1  # raise it when the same sources would give other prompts

log = logging.getLogger("prompts")


def run(settings: params.Prompts, store: Store, out: Path) -> Made:
    """Write the three splits' folders; nothing is written where any row cannot be used.

    Raises:
        PromptError: as `pipeline.prompts.collect`.
    """
    folders = []
    for split, found in prompts.collect(settings).items():
        folder = Folder(store, out / split)
        for bucket, inside in prompts.by_bucket(found).items():
            facts = identity(inside)
            make = functools.partial(
                prompts.write, identity=facts, made_with=made_with.versions("pyarrow"), prompts=inside
            )
            folder.obtain(f"{bucket:05d}.parquet", facts, make)
        folder.close()
        folders.append(folder)
    return Made.of(*folders)


def identity(inside: list[Prompt]) -> dict[str, str | int]:
    """What decides a shard of prompts: the rows alone, wherever they came from."""
    return {"stage": "prompts", "version": VERSION, "format": shards.VERSION, "rows": prompts.content(inside)}


def main(
    out: Annotated[Path, typer.Option(help="Where the folders of the splits go.")] = Path("data/prompts"),
    params_file: command.ParamsFile = command.PARAMS,
    store: command.StoreFolder = command.STORE,
    timing: command.TimingFile = None,
) -> None:
    """Settings in, shards out."""
    made = run(params.load(params_file).prompts, Store(store), out)
    made.note(timing, "prompts")
    log.info("%s: %d shards written, %d found in the store, %d bytes", out, made.made, made.found, made.bytes)


if __name__ == "__main__":
    command.run(main)
