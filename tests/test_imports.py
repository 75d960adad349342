"""The contract of imports in pyproject.toml, against the code as it is and against copies with one import too many.

`make check` runs the same program, so that what ends in an error here fails there.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.planting import ROOT

DIRECTION = "A room imports from lower floors alone, never from its neighbours"
CIRCLE = "No circle within a room"
FOR_A_TYPE = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pipeline.storage.store"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run([program, "--no-logo", "--no-cache"], cwd=folder, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("pipeline", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_code_keeps_the_contract():
    found = lint(ROOT)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("files", "broken"),
    [
        pytest.param({"storage/planted.py": "import pipeline.training.rows"}, DIRECTION, id="upwards"),
        pytest.param({"scoring/planted.py": "from pipeline.rollouts import drift"}, DIRECTION, id="sideways"),
        pytest.param(
            {"settings/planted.py": "def hidden():\n    from pipeline.storage import store"},
            DIRECTION,
            id="upwards within a function",
        ),
        pytest.param({"head/planted.py": FOR_A_TYPE}, DIRECTION, id="upwards for a type alone"),
        pytest.param({"attic/__init__.py": '"""Here."""'}, DIRECTION, id="a room on no floor"),
        pytest.param(
            {"storage/planted.py": "from pipeline.storage import other", "storage/other.py": "from . import planted"},
            CIRCLE,
            id="a circle in a room",
        ),
        pytest.param({"cli_planted.py": "import stages.train"}, "The library knows no stage", id="a stage"),
        pytest.param({"training/planted.py": "import vllm"}, "vLLM stays at home", id="a library away from home"),
        pytest.param(
            {"grading/planted.py": "from transformers import AutoTokenizer"},
            "What reads settings, files and grades loads nothing heavy, not even by a detour",
            id="a heavy library",
        ),
        pytest.param(
            {"objectives/ratios.py": "import pipeline.settings.params"},
            "Formulas read no settings",
            id="settings in a formula",
        ),
    ],
)
def test_an_import_too_many_breaks_it(copy, files, broken):
    for name, text in files.items():
        (copy / "pipeline" / name).parent.mkdir(exist_ok=True)
        (copy / "pipeline" / name).write_text(text + "\n")
    found = lint(copy)
    assert found.returncode == 1, found.stdout + found.stderr
    assert f"{broken} BROKEN" in found.stdout
    assert Path(next(iter(files)).removesuffix("/__init__.py")).stem in found.stdout.partition("Broken contracts")[2]
