"""Commands that only look: what they load before they answer, and what a shell and a misspelling get from them.

What is loaded is compared with a list: seconds differ from machine to machine, and libraries are what takes them.
(pydantic, 0.1 s, is loaded by typer itself wherever a command has options.)
"""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests import example_data
from tests.planting import ROOT

LIBRARIES = ("torch", "transformers", "lightning", "datasets", "duckdb", "pyarrow", "numpy", "ruamel.yaml")
PROGRAM = Path(sys.executable).with_name("potstill")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    example_data.make(root)
    return root


def _complete(project: Path, words: str) -> list[str]:
    """What Bash is told when Tab is pressed after these words."""
    asked = {"_POTSTILL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run([PROGRAM], cwd=project, env=os.environ | asked, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("arguments", "loaded"),
    [
        (["--help"], []),
        (["--version"], []),
        *[([command, "--help"], []) for command in ("sql", "show", "verify", "gc", "recipes", "schema")],
        (["verify"], []),
        (["gc"], []),
        (["recipes"], ["ruamel.yaml"]),
        (["recipes", "eopd"], ["ruamel.yaml"]),
    ],
    ids=" ".join,
)
def test_a_command_loads_what_it_needs_and_no_more(project: Path, arguments: list[str], loaded: list[str]):
    script = (
        f"import sys\nsys.argv = ['potstill', *{arguments}]\nfrom pipeline import cli\ntry:\n    cli.main()\n"
        f"finally:\n    print('LOADED', *[name for name in {LIBRARIES} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=project, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1].split()[1:] == loaded


def test_the_version_is_that_of_pyproject():
    done = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"potstill {tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['version']}\n"


def test_tab_completes_commands_recipes_rounds_and_views(project: Path):
    assert _complete(project, "potstill s") == ["sql", "show", "schema"]
    assert _complete(project, "potstill recipes topk_r") == ["topk_reverse_kl"]
    assert _complete(project, "potstill show --round ") == ["r0", "r1", "r2"]
    assert _complete(project, "potstill show --view h") == ["hinted"]


def test_a_misspelt_command_is_told_with_what_was_meant():
    done = subprocess.run([PROGRAM, "recipe"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Did you mean" in done.stderr
    assert "recipes" in done.stderr
