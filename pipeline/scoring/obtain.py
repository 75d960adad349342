"""Carrying a plan out: each view's shards of scores are found in the store or made, and linked into its folder."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from pipeline.engines.open import OnDemand
from pipeline.models.record import Model
from pipeline.progress import Bar
from pipeline.scoring.context_effect import check_contexts_differ, views_to_compare
from pipeline.scoring.plan import ScoreJob, ScorePlan, choose_use, complete_job
from pipeline.scoring.write import write_scores
from pipeline.settings import params
from pipeline.settings.machine import Machine
from pipeline.storage.store import Folder, Store

log = logging.getLogger("score")


def obtain_scores(
    plan: ScorePlan, settings: params.Score, machine: Machine, store: Store, folders: Mapping[str, Path]
) -> dict[str, Folder]:
    """Obtain every view, and compare those of one model in two contexts as soon as both are there.

    Args:
        plan: what to score, checked.
        settings: of the engine.
        machine: where and how fast.
        store: of finished shards.
        folders: where each view goes.

    Raises:
        ShardError: two contexts of one model make no difference.
        EngineError: this machine cannot run the engine, or the engine fails.
    """

    def open_later(model: Model) -> OnDemand:
        return OnDemand(model, settings, machine, choose_use(settings))

    examples = {name: jobs[0] for name, jobs in plan.views.items()}
    first_passes: dict[str, list[Path]] = {}
    obtained: dict[str, Folder] = {}
    for name, planned in plan.views.items():
        others = planned[0].view.support.same_as
        for other in others:
            if other not in first_passes:
                first = plan.first_passes[other]
                first_passes[other] = _obtain_first_pass(first, open_later(first[0].model), store)
        jobs = [complete_job(job, [first_passes[other][n] for other in others]) for n, job in enumerate(planned)]
        obtained[name] = _obtain_view(name, jobs, open_later(jobs[0].model), Folder(store, folders[name]))
        for other in views_to_compare(name, examples):
            if other in obtained:
                check_contexts_differ({other: folders[other], name: folders[name]})
    return obtained


def _obtain_view(name: str, jobs: Sequence[ScoreJob], engine: OnDemand, folder: Folder) -> Folder:
    is_found = [folder.store.has(job.identity, fingerprint=job.fingerprint) for job in jobs]
    missing = [len(job.response_lengths) for job, found in zip(jobs, is_found, strict=True) if not found]
    log.info("view %s: %d of %d shards to score with %s", name, len(missing), len(jobs), engine.model.name)
    with engine, Bar(sum(missing), f"score {name}") as bar:
        for job in jobs:
            folder.obtain(job.bucket.rollouts.name, job.identity, partial(_write, job, engine, bar), job.fingerprint)
    folder.close()
    return folder


def _obtain_first_pass(jobs: Sequence[ScoreJob], engine: OnDemand, store: Store) -> list[Path]:
    """The shards with a view's own ids; they are in no output folder."""
    paths = []
    with engine:
        for job in jobs:
            make = partial(_write, job, engine, None)
            entry = store.obtain(job.identity, make, fingerprint=job.fingerprint).entry
            paths.append(store.path(entry.fingerprint, ".parquet"))
    return paths


def _write(job: ScoreJob, engine: OnDemand, bar: Bar | None, path: Path) -> None:
    write_scores(path, job, engine.open(), bar)
