"""Renew a round's rollouts: keep the shards that are fresh, write the others with the student of now, grade all.

A kept shard is linked, not written again, so its scores are found later. What was measured of each shard of the
round before is in the drift file, on which the report alone depends.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import command
from pipeline.command import MachineFile, ParamsFile, StageSummary, StoreFolder, TimingFile
from pipeline.engines.engine import EngineUse
from pipeline.engines.open import OnDemand
from pipeline.grading.write import grade_shards
from pipeline.models.lineage import read_checkpoint_teacher
from pipeline.models.record import Model, read_model
from pipeline.rollouts.drift import Drift, check_bound
from pipeline.rollouts.measuring import ShardDrift, measure_until_decided
from pipeline.rollouts.stale import choose_stale
from pipeline.rollouts.write import Author, Writing, identify_rollouts, obtain_rollouts, write_rollouts
from pipeline.settings import params
from pipeline.settings.machine import Machine
from pipeline.storage.manifest import check_folders
from pipeline.storage.prompts import read_prompts
from pipeline.storage.shards import list_shards, read_about
from pipeline.storage.store import Folder, Store
from pipeline.storage.whole import write_json

VERSION = 1  # raise it when the responses would change; older shards are then written anew
log = logging.getLogger("refresh")

_BY_WHOM = ("model", "round", "sft_teacher")
"""What may differ between a kept shard and one that would be written now."""


@dataclass(frozen=True)
class RefreshFolders:
    """What a round's rollouts are written from, and where they and what is known of them go.

    Attributes:
        prompts: of the opd split.
        student: the checkpoint that writes: that of the round before.
        previous: rollouts of the round before.
        rollouts: the new ones.
        grades: of these.
        drift: a file, how far the student is from those that wrote the shards before.
    """

    prompts: Path
    student: Path
    previous: Path
    rollouts: Path
    grades: Path
    drift: Path


def run(
    settings: params.Refresh,
    grade: params.GradeSettings,
    machine: Machine,
    store: Store,
    round_: str,
    folders: RefreshFolders,
) -> StageSummary:
    """Decide which shards stay, write the others, grade all, and say what was measured."""
    check_folders(folders.prompts, folders.previous)
    model = read_model(folders.student)
    sources = list_shards(folders.prompts, "prompts")
    wanted = {source.name: _identify(settings, source, model, folders.student, round_) for source in sources}
    kept = {name: path for name in wanted if (path := _keep_if_same(folders.previous / name, wanted[name])) is not None}
    for path in folders.previous.glob("*.parquet"):
        store.adopt(path)  # pulled or kept: the store gives them to this round
    with OnDemand(model, settings, machine, EngineUse(top_k=settings.behaviour_top_k)) as engine:
        measured = measure_until_decided(store, engine, kept, settings)
        floor = _find_floor(store, engine, sources[0], settings, round_) if settings.policy == "drift" else None
        if settings.bound is not None and floor is not None:
            check_bound(settings.bound, floor.nats)
        stale = choose_stale(settings, measured)
        kept = {name: path for name, path in kept.items() if name not in stale}
        # A kept shard is asked for by its own identity: the store gives it as it is, and its scores are found.
        wanted |= {name: read_about(path)["identity"] for name, path in kept.items()}
        folder = Folder(store, folders.rollouts)
        pairs = [(source, wanted[source.name]) for source in sources]
        made_with = {"sft_teacher": read_checkpoint_teacher(folders.student)["name"]}
        author = Author(engine, "student", settings.behaviour_top_k, made_with)
        obtain_rollouts(folder, pairs, author, "refresh")
    graded = Folder(store, folders.grades)
    grade_shards(graded, grade, sources, folders.rollouts)
    folder.close()
    graded.close()
    _write_drift(folders.drift, settings, round_, floor, measured, wanted, set(kept))
    made = StageSummary.from_folders(folder, graded)
    log.info(
        "%s: %d shards kept, %d of %d by %s; %d responses of %d tokens",
        folders.rollouts, len(kept), len(sources) - len(kept), len(sources), model.name, folder.rows, made.tokens,
    )  # fmt: skip
    return made


def _identify(settings: params.Refresh, source: Path, model: Model, student: Path, round_: str) -> dict[str, Any]:
    return identify_rollouts(
        "refresh",
        VERSION,
        source,
        Writing(model, settings, settings.sampling, settings.samples, settings.seed),
        round=round_,
        sft_teacher=read_checkpoint_teacher(student)["weights"],
        behaviour_top_k=settings.behaviour_top_k or None,
    )


def _keep_if_same(path: Path, wanted: Mapping[str, Any]) -> Path | None:
    """Keep a shard of the round before if it is what would be asked for now, but for who wrote it and when."""
    if not path.exists():
        return None
    found = read_about(path)["identity"]
    same = all(found.get(name) == wanted.get(name) for name in {*found, *wanted} - {*_BY_WHOM})
    # Another tokenizer or template would have made another prompt of the same messages.
    same_text = all(found["model"][part] == wanted["model"][part] for part in ("tokenizer", "chat_template"))
    return path if same and same_text else None


def _find_floor(store: Store, engine: OnDemand, source: Path, settings: params.Refresh, round_: str) -> Drift:
    """Measure the drift of rollouts that this student itself just wrote: rounding between writing and scoring alone."""
    writing = Writing(engine.model, settings, settings.sampling, samples=1, seed=settings.seed)
    identity = identify_rollouts("floor", VERSION, source, writing, round=round_)
    make = partial(_write_few, source, identity, engine, settings)
    obtained = store.obtain(identity, make)
    return ShardDrift(store, engine, store.path(obtained.entry.fingerprint, ".parquet"), settings).drift


def _write_few(source: Path, identity: dict[str, Any], engine: OnDemand, settings: params.Refresh, path: Path) -> None:
    few = read_prompts(source)[: settings.drift_rows]
    with engine.make_bar(len(few), "refresh: floor") as bar:
        write_rollouts(path, identity, few, Author(engine, "student"), bar)


def _write_drift(
    path: Path,
    settings: params.Refresh,
    round_: str,
    floor: Drift | None,
    measured: Mapping[str, Drift],
    wanted: Mapping[str, Mapping[str, Any]],
    kept: set[str],
) -> None:
    record = {
        "round": round_,
        "policy": settings.policy,
        "bound": settings.bound,
        "floor": None if floor is None else floor.nats,
        "shards": {
            name: {
                "drift": measured[name].nats if name in measured else None,
                "margin": measured[name].margin if name in measured else None,
                "responses": measured[name].responses if name in measured else None,
                "effective_sample_size": measured[name].effective_sample_size if name in measured else None,
                "written_in": identity["round"],
                "kept": name in kept,
            }
            for name, identity in wanted.items()
        },
    }
    write_json(path, record)


def main(
    round_: Annotated[str, typer.Option("--round", help="The round's name.")],
    prompts: Annotated[Path, typer.Option(help="Prompts of the opd split.")],
    student: Annotated[Path, typer.Option(help="The checkpoint that writes: that of the round before.")],
    previous: Annotated[Path, typer.Option(help="Rollouts of the round before.")],
    rollouts_out: Annotated[Path, typer.Option("--rollouts", help="Where the rollouts go.")],
    grades_out: Annotated[Path, typer.Option("--grades", help="Where the grades go.")],
    drift_out: Annotated[Path, typer.Option("--drift", help="Where the measured drift goes.")],
    machine_file: MachineFile,
    store: StoreFolder,
    timing: TimingFile = None,
    params_file: ParamsFile = command.PARAMS,
) -> None:
    """Read the settings and run the stage."""
    settings, machine = command.read_settings(params_file, machine_file)
    folders = RefreshFolders(
        prompts=prompts, student=student, previous=previous,
        rollouts=rollouts_out, grades=grades_out, drift=drift_out,
    )  # fmt: skip
    made = run(settings.refresh, settings.grade, machine, Store(store), round_, folders)
    made.note(timing, "refresh", round_)


if __name__ == "__main__":
    command.run_stage(main)
