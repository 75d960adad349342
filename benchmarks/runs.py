"""Trainings beside the DAG: one student, one set of shards, many objectives and seeds, on a few processes.

Every run is the stages `train` and `evaluate` called as functions, so its results are in the store, and what is done
is not done again. Neither stage is given a teacher.
"""

import csv
import json
import math
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ruamel.yaml import YAML

from pipeline import command
from pipeline.command import StageSummary
from pipeline.errors import PotstillError
from pipeline.project import find_machine, find_store
from pipeline.settings import params
from pipeline.settings.machine import Machine, load_machine
from pipeline.settings.models import Training
from pipeline.settings.reading import parse
from pipeline.storage.store import Store
from pipeline.storage.whole import read_json
from stages.train import TrainFolders

T_975 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""Student's t for a two-sided interval of 95 %, at 1, 2, … degrees of freedom."""

Facts = dict[str, Any]


class Named(Protocol):
    """What a process can be given to do."""

    @property
    def name(self) -> str:
        """Of the row that it belongs to."""
        ...

    @property
    def seed(self) -> int:
        """Which of the row's runs it is."""
        ...

    def measured(self) -> Facts:
        """Do it, in the working directory."""
        ...


ROUND_1 = TrainFolders(
    student=Path("data/models/r0"),
    prompts=Path("data/prompts/opd"),
    rollouts=Path("data/rollouts/r1"),
    grades=Path("data/grades/r1"),
    teacher_scores=Path("data/scores/r1/teacher"),
    view_scores=Path("data/scores/r1/views"),
    teacher_rollouts=Path("data/teacher_rollouts/rollouts"),
    teacher_grades=Path("data/teacher_rollouts/grades"),
    teacher_rollout_scores=Path("data/scores/r1/of_teacher"),
)
"""What the DAG has for round 1."""


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Attributes:
        name: of the row that it belongs to.
        objective: a recipe's name, or a recipe written out; `sft` goes on with supervised fine-tuning.
        seed: of the order of the rows and of the evaluation's samples.
        changes: settings of `train` that differ from the project's.
        folders: what it trains from.
    """

    name: str
    objective: str | Mapping[str, Any]
    seed: int
    changes: Mapping[str, Any]
    folders: TrainFolders = ROUND_1

    @property
    def out(self) -> Path:
        """Where its checkpoint and its metrics go."""
        return Path("beside") / self.name / f"{self.seed}"

    def measured(self) -> Facts:
        """Train and evaluate, or find both; the metrics, `train_seconds`, and the KL that training began with."""
        from stages import evaluate

        settings, machine = params.load_params(command.PARAMS), load_machine(find_machine())
        store, model, metrics = Store(find_store()), self.out / "model", self.out / "metrics.json"
        trained = _train(self, settings, machine, store, model)
        sampled = settings.evaluate.model_copy(update={"seed": self.seed})
        folders = evaluate.EvaluateFolders(model, Path("data/prompts/evaluation"), self.out / "responses", metrics)
        evaluate.run(sampled, settings.grade, machine, store, self.name, folders)
        return read_json(metrics) | {"train_seconds": trained.seconds, "start_kl": _start_kl(model)}


def prepare(project: Path, settings: Path, targets: Sequence[str]) -> None:
    """Run the DAG as the settings say, up to some stages, in a clone of this repository."""
    clone(project)
    (project / "params.yaml").write_bytes(settings.read_bytes())
    repro(project, *targets)


def clone(project: Path) -> None:
    """Bring a clone of this repository to the commit checked out here; what was made in it stays."""
    if not project.exists():
        subprocess.run(["git", "clone", "--quiet", ".", str(project)], check=True)
    subprocess.run(["git", "fetch", "--quiet", "origin", "HEAD"], cwd=project, check=True)
    subprocess.run(["git", "checkout", "--quiet", "--force", "FETCH_HEAD"], cwd=project, check=True)


def repro(project: Path, *targets: str) -> None:
    """Run a project's DAG, or as much of it, with this Python, whether its environment was activated or not."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command_line = [sys.executable, "-m", "dvc", "repro", "--quiet", *targets]
    subprocess.run(command_line, cwd=project, env={**os.environ, "PATH": path}, check=True)


def each(runs: Sequence[Named], project: Path, workers: int) -> list[Facts]:
    """Do the runs, on so many processes of one thread each; one line for each that is finished.

    Returns:
        For each run, in order: `name`, `seed`, and its metrics or why there are none (`refused`, `failed`).
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=enter, initargs=(project,)) as pool:
        futures = {pool.submit(outcome, run): place for place, run in enumerate(runs)}
        found: dict[int, Facts] = {}
        for future in as_completed(futures):
            facts = found[futures[future]] = future.result()
            told = facts.get("refused") or facts.get("failed") or f"avg@k {100 * facts['avg_at_k']:.1f} %"
            line = f"{len(found)} of {len(runs)}: {facts['name']}, seed {facts['seed']}: {told}"
            print(" ".join(line.split()), file=sys.stderr, flush=True)
    return [found[place] for place in range(len(runs))]


def enter(project: Path) -> None:
    """Make this process a worker: in the project, with one thread, its progress bars in a file."""
    import torch

    os.chdir(project)
    torch.set_num_threads(1)
    command.silence_libraries()
    log = os.open(f".potstill/worker-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())


def outcome(run: Named) -> Facts:
    """Do one run in the working directory; one that cannot be done says why, and stops no other."""
    facts: Facts = {"name": run.name, "seed": run.seed}
    try:
        return facts | run.measured()
    except PotstillError as error:
        return facts | {"refused": str(error)}
    except Exception as error:  # a mistake in one recipe must not cost the others' hours
        return facts | {"failed": f"{type(error).__name__}: {error}"}


def _train(run: Run, settings: params.Params, machine: Machine, store: Store, out: Path) -> StageSummary:
    from stages import sft, train

    folders = run.folders
    changed = settings.train.model_dump() | dict(run.changes) | {"objective": run.objective, "seed": run.seed}
    if run.objective == "sft":
        how = parse(params.Sft, run.name, {name: changed[name] for name in Training.model_fields})
        taught_by = Path("data/models/teacher.json")
        sources = sft.SftFolders(folders.student, taught_by, folders.teacher_rollouts, folders.teacher_grades)
        return sft.run(how, machine, store, sources, out)
    return train.run(parse(params.Train, run.name, changed), machine, store, folders, out)


def _start_kl(model: Path) -> float | None:
    """Validation KL before the first step, nats per token; SFT measures none."""
    path = model / "validation.csv"
    if not path.exists():
        return None
    with path.open(newline="") as file:
        return float(next(csv.DictReader(file))["validation_kl"])


def mean(values: Iterable[float | None]) -> tuple[float, float] | None:
    """Mean and half the width of its 95 % interval by Student's t (NaN of a single value); None without values."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    count, middle = len(known), math.fsum(known) / len(known)
    if count == 1:
        return middle, math.nan
    spread = math.sqrt(math.fsum((value - middle) ** 2 for value in known) / (count - 1))
    return middle, T_975[count - 2] * spread / math.sqrt(count)


def cell(found: tuple[float, float] | None, digits: int, scale: float = 1.0) -> str:
    """`80.1 ± 0.9`, or a dash where nothing was measured."""
    if found is None:
        return "–"
    middle, half = (f"{scale * value:.{digits}f}" for value in found)
    return middle if math.isnan(found[1]) else f"{middle} ± {half}"


def by_name(facts: Iterable[Facts]) -> dict[str, list[Facts]]:
    """The runs of each row, rows in the order of their first run."""
    rows: dict[str, list[Facts]] = {}
    for each_run in facts:
        rows.setdefault(each_run["name"], []).append(each_run)
    return rows


def missing(facts: Iterable[Facts]) -> list[str]:
    """A line for each row that was refused or failed, with its reason."""
    told = {(run["name"], word): run[word] for run in facts for word in ("refused", "failed") if word in run}
    return [f"- `{name}` {word}: {' '.join(reason.split())}" for (name, word), reason in told.items()]


Columns = Sequence[tuple[str, Callable[[Facts], float | None], int, float]]
"""Of a table: heading, what of a run, digits, scale."""


def table(heading: str, rows: Mapping[str, Sequence[Facts]], columns: Columns) -> str:
    """Markdown: a line for each row, means over its runs with their intervals."""
    lines = [f"| {heading} | {' | '.join(name for name, *_ in columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name, runs in rows.items():
        cells = [cell(mean(of(run) for run in runs), digits, scale) for _, of, digits, scale in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(path: Path | None, facts: object) -> None:
    """The figures as JSON, where that is asked for."""
    if path is not None:
        path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def read_settings(path: Path) -> Any:
    """A YAML file as DVC reads it."""
    return YAML(typ="safe", pure=True).load(path)
