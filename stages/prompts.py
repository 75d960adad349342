"""Read, check and split the prompts, and spread them over buckets.

    python -m stages.prompts --out data/prompts --teacher data/models/teacher.json --student data/models/student.json

Writes OUT/sft, OUT/opd and OUT/evaluation with one shard for each bucket that has prompts. One bucket of opd
(prompts.held_out) is scored like the others but never trained on. Every row that cannot be used is named.
"""

import functools
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from pipeline import command
from pipeline.command import ParamsFile, StageSummary, StoreFolder, TimingFile
from pipeline.models.record import Model, read_model
from pipeline.prompts.collect import collect_prompts, group_by_bucket, hash_prompts
from pipeline.settings import params
from pipeline.settings.prompts import Prompts
from pipeline.storage import prompts as prompts_format
from pipeline.storage.made_with import find_versions
from pipeline.storage.prompts import Prompt, write_prompts
from pipeline.storage.store import Folder, Store

VERSION = 2  # raise it when the same sources would give other prompts

log = logging.getLogger("prompts")


def run(settings: Prompts, store: Store, *, out: Path, models: Iterable[Model] = ()) -> StageSummary:
    """Write the three splits' folders; nothing is written where any row cannot be used.

    Args:
        settings: the sources, and what becomes of their rows.
        store: of finished shards.
        out: the folder of the splits' folders.
        models: whose tokenizers the prompts have to suit.

    Raises:
        PromptError: a source cannot be read, or rows cannot be used; all are named at once.
    """
    folders = []
    for split, found in collect_prompts(settings, models).items():
        folder = Folder(store, out / split)
        for bucket, inside in group_by_bucket(found).items():
            identity = identify_prompts(inside)
            make = functools.partial(
                write_prompts, identity=identity, made_with=find_versions("pyarrow"), prompts=inside
            )
            folder.obtain(f"{bucket:05d}.parquet", identity, make)
        folder.close()
        folders.append(folder)
    return StageSummary.from_folders(*folders)


def identify_prompts(inside: list[Prompt]) -> dict[str, str | int]:
    """List what decides a shard of prompts: the rows alone, wherever they came from."""
    return {"stage": "prompts", "version": VERSION, "format": prompts_format.VERSION, "rows": hash_prompts(inside)}


def main(
    teacher: Annotated[Path, typer.Option(help="The teacher's record.")],
    student: Annotated[Path, typer.Option(help="The student's record.")],
    store: StoreFolder,
    out: Annotated[Path, typer.Option(help="Where the folders of the splits go.")] = Path("data/prompts"),
    params_file: ParamsFile = command.PARAMS,
    timing: TimingFile = None,
) -> None:
    """Read the settings and run the stage."""
    settings = params.load_params(params_file).prompts
    made = run(settings, Store(store), out=out, models=[read_model(teacher), read_model(student)])
    made.note(timing, "prompts")
    log.info("%s: %d shards written, %d found in the store, %d bytes", out, made.made, made.found, made.bytes)


if __name__ == "__main__":
    command.run_stage(main)
