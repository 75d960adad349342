"""A project with DVC as a person has it: code, settings, models and prompts, run by `dvc repro` in processes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import dag

ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


def new_project(folder: Path, rows: Mapping[str, int] | None = None, **sections: Any) -> Path:
    """As `dag.new_project`, with the code: DVC reads VERSIONs from it."""
    dag.new_project(folder, rows, **sections)
    for package in ("pipeline", "stages"):
        shutil.copytree(dag.ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(project: Path, *command: str, fails: bool = False) -> str:
    """Run a command in a project; what it printed. `fails`: it must end with another code than 0."""
    ended = subprocess.run(
        command, cwd=project, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert (ended.returncode != 0) == fails, ended.stdout
    return ended.stdout


def ran(printed: str) -> list[str]:
    """The stages that a `dvc repro` ran, in their order, but for `inputs`, which it runs every time."""
    lines = [line for line in printed.splitlines() if line.startswith("Running stage ")]
    return [name for line in lines if (name := line.split("'")[1]) != "inputs"]
