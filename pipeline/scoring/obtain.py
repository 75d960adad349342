"""Carrying a plan out: each view's shards of scores are found in the store or made, and linked into its folder."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from pipeline.engines.open import OnDemand
from pipeline.models.record import Model
from pipeline.progress import Bar
from pipeline.scoring.context_effect import check_contexts_differ, list_views_to_compare
from pipeline.scoring.plan import ScoreJob, ScorePlan, choose_use, complete_job
from pipeline.scoring.write import SCORE_KEY, write_scores
from pipeline.settings import params
from pipeline.settings.machine import Machine
from pipeline.storage.families import Families
from pipeline.storage.scores import SCORES
from pipeline.storage.shards import ShardReader
from pipeline.storage.store import Folder, Store

log = logging.getLogger("score")

Jobs = Mapping[str, Sequence[ScoreJob]]
"""The jobs of each view, those of a view in the order of the buckets."""


def obtain_scores(
    plan: ScorePlan, settings: params.Score, machine: Machine, store: Store, folders: Mapping[str, Path]
) -> dict[str, Folder]:
    """Obtain every view, model by model, and compare those of one model in two contexts as soon as both are there.

    Views that ask for other views' ids come last, after the passes that find those ids.

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
    scorer = _Scorer(settings, machine, store)
    obtained: dict[str, Folder] = {}

    def obtain(views: Jobs) -> None:
        """Obtain these views, each model's together; each is closed and compared before another model is opened."""
        for of_model in _group_by_model(views):
            out = {name: Folder(store, folders[name]) for name in of_model}
            scorer.obtain("view", of_model, out)
            for name, folder in out.items():
                folder.close()
                _compare(plan, name, obtained, folder)
                obtained[name] = folder

    asking = [name for name, jobs in plan.views.items() if jobs[0].view.support.same_as]
    obtain({name: jobs for name, jobs in plan.views.items() if name not in asking})
    if asking:
        ids: dict[str, list[Path]] = {}
        for of_model in _group_by_model(plan.first_passes):
            ids |= scorer.obtain("ids of view", of_model)
        obtain({name: _complete(plan, name, ids) for name in asking})
    return obtained


class _Scorer:
    """Obtains the jobs of views of one model, which is opened once for all of them."""

    def __init__(self, settings: params.Score, machine: Machine, store: Store):
        self._settings, self._machine, self._store = settings, machine, store

    def obtain(self, what: str, views: Jobs, folders: Mapping[str, Folder] | None = None) -> dict[str, list[Path]]:
        """Obtain every job, bucket by bucket: the rollouts of a bucket are opened once for all views.

        Args:
            what: `view`, or what of it, for the log.
            views: the jobs, all of one model.
            folders: where each view goes; None leaves the shards in the store.

        Returns:
            The shards of each view in the store, in the order of its jobs.
        """
        model = next(iter(views.values()))[0].model
        missing = {name: self._count_missing(jobs) for name, jobs in views.items()}
        for name, (shards, _) in missing.items():
            log.info("%s %s: %d of %d shards to score with %s", what, name, shards, len(views[name]), model.name)
        paths: dict[str, list[Path]] = {name: [] for name in views}
        families = Families(
            self._store, SCORES, SCORE_KEY, {job.fingerprint for jobs in views.values() for job in jobs}
        )
        engine = OnDemand(model, self._settings, self._machine, choose_use(self._settings))
        rows = sum(rows for _, rows in missing.values())
        with engine, engine.make_bar(rows, f"score {', '.join(views)}") as bar:
            for of_bucket in zip(*views.values(), strict=True):
                with ShardReader(of_bucket[0].bucket.rollouts) as rollouts:
                    for name, job in zip(views, of_bucket, strict=True):
                        make = partial(_write, job, rollouts, engine, bar, families)
                        paths[name].append(self._obtain_one(job, make, None if folders is None else folders[name]))
        return paths

    def _obtain_one(self, job: ScoreJob, make: partial[None], folder: Folder | None) -> Path:
        if folder is None:
            entry = self._store.obtain(job.identity, make, fingerprint=job.fingerprint).entry
        else:
            entry = folder.obtain(job.bucket.rollouts.name, job.identity, make, job.fingerprint)
        return self._store.path(entry.fingerprint, ".parquet")

    def _count_missing(self, jobs: Sequence[ScoreJob]) -> tuple[int, int]:
        """Count the shards that the store lacks, and their rows."""
        missing = [job for job in jobs if not self._store.has(job.identity, fingerprint=job.fingerprint)]
        return len(missing), sum(len(job.response_lengths) for job in missing)


def _group_by_model(views: Jobs) -> list[dict[str, Sequence[ScoreJob]]]:
    """Group views by their models' whole records: each record is compared with the files that it is opened from."""
    groups: dict[Model, dict[str, Sequence[ScoreJob]]] = defaultdict(dict)
    for name, jobs in views.items():
        groups[jobs[0].model][name] = jobs
    return list(groups.values())


def _complete(plan: ScorePlan, name: str, ids: Mapping[str, Sequence[Path]]) -> list[ScoreJob]:
    """Complete the jobs of a view with the shards that hold the ids it asks for."""
    jobs = plan.views[name]
    asked = [ids[other] for other in jobs[0].view.support.same_as]
    return [complete_job(job, of_bucket) for job, *of_bucket in zip(jobs, *asked, strict=True)]


def _compare(plan: ScorePlan, name: str, obtained: Mapping[str, Folder], folder: Folder) -> None:
    """Refuse a view whose context makes no difference to a view of the same model that is there."""
    examples = {each: plan.views[each][0] for each in (*obtained, name)}
    for other in list_views_to_compare(name, examples):
        check_contexts_differ({other: obtained[other].path, name: folder.path})


def _write(job: ScoreJob, rollouts: ShardReader, engine: OnDemand, bar: Bar, families: Families, path: Path) -> None:
    write_scores(path, job, engine.open, rollouts, bar, families.of(job.identity))
