"""Carrying a plan out: each view's shards of scores are found in the store or made, and linked into its folder."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from pipeline.engines.open import OnDemand
from pipeline.progress import Bar
from pipeline.scoring.context_effect import check_contexts_differ, list_views_to_compare
from pipeline.scoring.plan import ScoreJob, ScorePlan, choose_use, complete_job
from pipeline.scoring.write import write_scores
from pipeline.settings import params
from pipeline.settings.machine import Machine
from pipeline.storage.shards import ShardReader
from pipeline.storage.store import Folder, Store

log = logging.getLogger("score")

Views = Mapping[str, Sequence[ScoreJob]]
"""The jobs of each view, those of a view in the order of the buckets."""


def obtain_scores(
    plan: ScorePlan, settings: params.Score, machine: Machine, store: Store, folders: Mapping[str, Path]
) -> dict[str, Folder]:
    """Obtain every view, and compare those of one model in two contexts as soon as both are there.

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
    out = {name: Folder(store, path) for name, path in folders.items()}
    others = {name: jobs[0].view.support.same_as for name, jobs in plan.views.items()}
    alone = [name for name in plan.views if not others[name]]
    scorer.obtain("view", {name: plan.views[name] for name in alone}, out)
    _compare(plan, folders, [], alone)
    asking = [name for name in plan.views if others[name]]
    if asking:
        ids = scorer.obtain("ids of view", plan.first_passes)
        scorer.obtain("view", {name: _complete(plan, name, ids) for name in asking}, out)
        _compare(plan, folders, alone, asking)
    for folder in out.values():
        folder.close()
    return out


class _Scorer:
    """Obtains the jobs of several views; those of one model together, which is then opened once."""

    def __init__(self, settings: params.Score, machine: Machine, store: Store):
        self._settings, self._machine, self._store = settings, machine, store

    def obtain(self, what: str, views: Views, folders: Mapping[str, Folder] | None = None) -> dict[str, list[Path]]:
        """Obtain every job.

        Args:
            what: `view`, or what of it, for the log.
            views: the jobs.
            folders: where each view goes; None leaves the shards in the store.

        Returns:
            The shards of each view in the store, in the order of its jobs.
        """
        by_model: dict[tuple[str, str | None], dict[str, Sequence[ScoreJob]]] = defaultdict(dict)
        for name, jobs in views.items():
            by_model[jobs[0].model.location, jobs[0].model.commit][name] = jobs
        paths: dict[str, list[Path]] = {}
        for of_model in by_model.values():
            paths |= self._obtain_together(what, of_model, folders)
        return paths

    def _obtain_together(self, what: str, views: Views, folders: Mapping[str, Folder] | None) -> dict[str, list[Path]]:
        """Obtain views of one model bucket by bucket: the rollouts of a bucket are opened once for all of them."""
        model = next(iter(views.values()))[0].model
        missing = {name: self._count_missing(jobs) for name, jobs in views.items()}
        for name, (shards, _) in missing.items():
            log.info("%s %s: %d of %d shards to score with %s", what, name, shards, len(views[name]), model.name)
        paths: dict[str, list[Path]] = {name: [] for name in views}
        engine = OnDemand(model, self._settings, self._machine, choose_use(self._settings))
        with engine, Bar(sum(rows for _, rows in missing.values()), f"score {', '.join(views)}") as bar:
            for of_bucket in zip(*views.values(), strict=True):
                with ShardReader(of_bucket[0].bucket.rollouts) as rollouts:
                    for name, job in zip(views, of_bucket, strict=True):
                        make = partial(_write, job, rollouts, engine, bar)
                        target = None if folders is None else folders[name]
                        paths[name].append(self._obtain_one(job, make, target))
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


def _complete(plan: ScorePlan, name: str, ids: Mapping[str, Sequence[Path]]) -> list[ScoreJob]:
    """Complete the jobs of a view with the shards that hold the ids it asks for."""
    jobs = plan.views[name]
    asked = [ids[other] for other in jobs[0].view.support.same_as]
    return [complete_job(job, of_bucket) for job, *of_bucket in zip(jobs, *asked, strict=True)]


def _compare(plan: ScorePlan, folders: Mapping[str, Path], known: Sequence[str], new: Sequence[str]) -> None:
    """Refuse new views whose contexts make no difference to a view of the same model, known or new too."""
    examples = {name: plan.views[name][0] for name in (*known, *new)}
    for number, name in enumerate(new):
        for other in list_views_to_compare(name, examples):
            if other in known or other in new[:number]:
                check_contexts_differ({other: folders[other], name: folders[name]})


def _write(job: ScoreJob, rollouts: ShardReader, engine: OnDemand, bar: Bar, path: Path) -> None:
    write_scores(path, job, engine.open(), bar, rollouts)
