"""The DAG of dvc.yaml on bigram models, run in this process, with a count of what each stage makes.

DVC's own resolver gives each stage's command, dependencies and outputs. As DVC does, a stage's outputs are deleted
before it runs; unlike DVC, everything runs again, so what is not made anew is not made because the store has it.
"""

import contextlib
import importlib
import json
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from dvc.repo import Repo
from ruamel.yaml import YAML

from pipeline import command
from pipeline.storage import hashing
from pipeline.storage.manifest import MANIFEST, read_manifest
from pipeline.storage.shards import open_parquet
from pipeline.storage.store import Store
from tests import tiny_models

ROOT = Path(__file__).parent.parent
BUCKETS = 4
OTHERS_ALSO = ("grade", "evaluate", "drift", "floor", "prompts")
"""What several stages make; counted as one, where `refresh` is counted by round and `score` by round and view."""

# The last token before a response is the prompt's (or the hint's) own: to a bigram model nothing else matters.
TEMPLATE = "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] }}{% endfor %}"


@dataclass(frozen=True)
class Stage:
    """One stage as DVC resolves it: paths are relative to the project."""

    name: str
    argv: tuple[str, ...]
    deps: tuple[str, ...]
    outs: tuple[str, ...]

    @property
    def module(self) -> str:
        return self.argv[2]

    def reads(self, other: "Stage") -> bool:
        return any(_within(dep, set(other.outs)) for dep in self.deps)

    def delete_outs(self, project: Path) -> None:
        for out in self.outs:
            path = project / out
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def run(self, **others: str) -> None:
        """Run it in the working directory; a user's mistake is raised. `others` replaces options: `rollouts=path`."""
        argv = list(self.argv[3:])
        for option, value in others.items():
            argv[argv.index(f"--{option.replace('_', '-')}") + 1] = value
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command()(importlib.import_module(self.module).main)
        command.silence_libraries()
        app(args=argv, standalone_mode=False)


def stages(project: Path) -> list[Stage]:
    """Those of a project's dvc.yaml, in the order in which DVC runs them."""
    with Repo(str(project)) as repo:
        resolved = [_stage(stage, project) for stage in repo.index.stages]
    ordered: list[Stage] = []
    while resolved:
        missing = {out for stage in resolved for out in stage.outs}
        ready = next(stage for stage in resolved if not any(_within(dep, missing) for dep in stage.deps))
        ordered.append(ready)
        resolved.remove(ready)
    return ordered


def run(
    project: Path, only: Collection[str] | None = None, order: Sequence[Stage] | None = None
) -> dict[str, Counter[str]]:
    """Run a project's stages, or some by name, in the working directory; what each of them made, counted."""
    made = {}
    for stage in order or stages(project):
        if stage.name == "report" if only is None else stage.name not in only:
            continue
        stage.delete_outs(project)
        with counting(stage.name) as made[stage.name]:
            stage.run()
    return made


def total(made: Mapping[str, Counter[str]]) -> Counter[str]:
    """Over all stages."""
    return sum(made.values(), Counter())


@contextlib.contextmanager
def counting(stage: str) -> Iterator[Counter[str]]:
    """Count what the store makes, not what it finds."""
    made: Counter[str] = Counter()
    original = Store.obtain

    def obtain(
        self: Store,
        identity: dict[str, Any],
        make: Any,
        suffix: str = ".parquet",
        target: Any = None,
        fingerprint: str | None = None,
    ):
        obtained = original(self, identity, make, suffix, target, fingerprint)
        if obtained.made:
            what = identity["stage"]
            view = f" {target.parent.name if target else 'first pass'}" if what == "score" else ""
            made[what if what in OTHERS_ALSO else f"{stage}{view}"] += 1
        return obtained

    Store.obtain = obtain
    try:
        yield made
    finally:
        Store.obtain = original


def new_project(folder: Path, rows: Mapping[str, int] | None = None, **sections: Any) -> Path:
    """A project that has run nothing: two bigram models, a file of prompts, settings for the `fake` engine.

    Args:
        folder: must not exist.
        rows: how many prompts of each split; 24 opd, 8 sft and 6 evaluation by default.
        sections: replace whole sections of `settings()`.
    """
    folder.mkdir(parents=True)
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text(
        (ROOT / ".dvc/config").read_text().replace("[core]", "[core]\n    no_scm = true")
    )
    shutil.copy(ROOT / "dvc.yaml", folder)
    for seed, name in enumerate(("teacher", "student")):
        tiny_models.bigram(folder / "models" / name, seed)
        (folder / "models" / name / "chat_template.jinja").write_text(TEMPLATE)
    for split, count in (rows or {"opd": 24, "sft": 8, "evaluation": 6}).items():
        prompts = [
            {"prompt": f"{split[0]}:{number // 10}+{number % 10}", "answer": str(number), "hint": f"add {number}?"}
            for number in range(count)
        ]
        write_prompts(folder, split, prompts)
    write_settings(folder, settings() | sections)
    return folder


def settings() -> dict[str, Any]:
    """Settings of a run of seconds: two rounds, of which the second renews half; two views, one of them with hints."""
    training = {"batch": 8, "learning_rate": 0.05, "save_every": 1}
    sampling = {"temperature": 1.0, "max_tokens": 8}
    fields = {"prompt": "prompt", "answer": "answer", "hint": "hint"}
    splits = ("sft", "opd", "evaluation")
    return {
        "models": {"teacher": "models/teacher", "student": "models/student"},
        "prompts": {
            "sources": [{"split": split, "path": f"{split}.jsonl", "fields": fields} for split in splits],
            "buckets": BUCKETS,
        },
        "teacher_rollouts": {"engine": "fake", "sampling": sampling},
        "sft": {"steps": 2, **training},
        "refresh": {"engine": "fake", "sampling": sampling, "policy": "fraction", "fraction": 0.5},
        "grade": {"grader": "exact"},
        "score": {
            "engine": "fake",
            "views": {
                "teacher": {"support": {"top_k": 4}},
                "hinted": {"context": "hint", "support": {"top_k": 4}},
            },
        },
        "train": {"objective": "topk_reverse_kl", "steps": 2, **training, "batch": 16},
        "evaluate": {"engine": "fake", "samples": 2, "sampling": sampling},
        "report": {},
        "rounds": {"r1": {"prev": "r0"}, "r2": {"prev": "r1"}},
    }


def copy(project: Path, folder: Path) -> Path:
    """The same project elsewhere: what stages made is hard linked, what a person edits is copied."""

    def link_or_copy(source: str, target: str) -> None:
        made = Path(source).relative_to(project).parts[0] in ("data", ".potstill", "models")
        (os.link if made else shutil.copy)(source, target)

    shutil.copytree(project, folder, copy_function=link_or_copy)
    return folder


def read_settings(project: Path) -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load(project / "params.yaml")


def write_settings(project: Path, sections: Mapping[str, Any]) -> None:
    # JSON is YAML.
    (project / "params.yaml").write_text(json.dumps(sections, indent=1))


def change(project: Path, **changes: Any) -> None:
    """Change settings: `train__steps=3`; None removes one."""
    sections = read_settings(project)
    for place, value in changes.items():
        *path, last = place.split("__")
        inside = sections
        for part in path:
            inside = inside[part]
        if value is None:
            inside.pop(last, None)
        else:
            inside[last] = value
    write_settings(project, sections)


def read_prompts(project: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (project / f"{split}.jsonl").read_text().splitlines()]


def write_prompts(project: Path, split: str, rows: Sequence[Mapping[str, Any]]) -> None:
    (project / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of what it holds; how a shard was encoded does not enter."""
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): _hash_content(path) for path in files}


def _hash_content(path: Path) -> str:
    if path.name == MANIFEST:
        listed = read_manifest(path.parent)
        return str({name: (entry.fingerprint, entry.rows, entry.tokens) for name, entry in listed.items()})
    if path.suffix == ".parquet":
        with open_parquet(path) as file:
            schema = file.schema_arrow
        return hashing.hash_columns(path, schema, schema.names)
    return hashing.hash_path(path)


def _stage(stage: Any, project: Path) -> Stage:
    def paths(items: Any) -> tuple[str, ...]:
        return tuple(Path(item.fs_path).relative_to(project).as_posix() for item in items)

    return Stage(stage.name, tuple(shlex.split(stage.cmd)), paths(stage.deps), paths(stage.outs))


def _within(dep: str, outs: set[str]) -> bool:
    """Whether a path is one of these, inside one, or around one."""
    return any(dep == out or dep.startswith(f"{out}/") or out.startswith(f"{dep}/") for out in outs)
