"""Hash the files and folders that params.yaml names, so that a stage runs again where what it reads has changed.

    python -m stages.inputs --out data/inputs --models data/models

Writes OUT/STAGE.json for each stage that reads such files. DVC runs this every time; it reads a file whose size, time
and inode are as they were no second time.
"""

import functools
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import command
from pipeline.command import ParamsFile
from pipeline.errors import ShardError
from pipeline.inputs import list_inputs, read_hashes, record_decisions, record_inputs, write_hashes
from pipeline.project import find_home
from pipeline.settings import params
from pipeline.settings.params import Params
from pipeline.storage.whole import read_json, write_json

VERSION = 1  # raise it when the same files would have other hashes


def run(settings: Params, *, out: Path, models: Path, cache: Path) -> None:
    """Write the record of each stage; one that would say the same is left alone.

    Args:
        settings: which files there are.
        out: the folder of the records.
        models: the folder of the models that stages make.
        cache: the file of what was hashed before.
    """
    made = [models / name for name in ("demo", "r0", *settings.rounds)]
    hashed = read_hashes(cache)
    before = dict(hashed)
    for stage, named in list_inputs(settings).items():
        path = out / f"{stage}.json"
        recall = functools.cache(functools.partial(_recall, path))
        record = record_inputs(named, hashed, made, recall) | record_decisions(stage, settings)
        record = {"version": VERSION, **record}
        if _read(path) != record:
            write_json(path, record)
    if hashed != before:
        write_hashes(cache, hashed)


def _recall(path: Path) -> dict[str, Any]:
    """Read what was recorded: here, or by the machine that has the file, as DVC's cache or remote has it."""
    if (found := _read(path)) is not None:
        return found
    import dvc.api  # slow, and needed on a machine that has neither the file nor the record
    from dvc.exceptions import DvcException

    try:
        return json.loads(dvc.api.read(str(path)))
    except (DvcException, OSError, ValueError):
        return {}


def _read(path: Path) -> dict[str, Any] | None:
    """Read a record; None where there is none that can be read."""
    try:
        return read_json(path)
    except ShardError:
        return None


def main(
    out: Annotated[Path, typer.Option(help="Where the records go.")] = Path("data/inputs"),
    models: Annotated[Path, typer.Option(help="Where the stages' models go.")] = Path("data/models"),
    params_file: ParamsFile = command.PARAMS,
) -> None:
    """Read the settings and run the stage."""
    run(params.load_params(params_file), out=out, models=models, cache=find_home() / "hashes.json")


if __name__ == "__main__":
    command.run_stage(main)
