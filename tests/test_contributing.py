"""CONTRIBUTING, followed: a recipe, a token weight, a column and an engine are added to copies of the project.

Which files are touched, and which tests then hold, is read from its table; an addition that needs another file fails.
"""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.planting import ROOT, run_pytest

TEXT = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
TABLE = TEXT.partition("## To add")[2].partition("\n\n**")[0]

NOT_THE_PROJECT = (".git", ".venv", ".*_cache", ".hypothesis", ".potstill", "__pycache__", "cache", "data", "tmp")
"""What lies in the folder and is not in git."""

RECIPE = """\
paper: "arXiv:0000.00000"
equation: "0.3 KL(p ‖ q) + 0.7 KL(q ‖ p)"
description: >
  Both directions at once, by a fixed share, over the ids that the teacher found likeliest and a tail outcome.
fidelity:
  level: full
  note: It is there for a test.
terms:
  - estimator: analytic
    divergence: mixture
    beta: 0.3
    support: view
"""

FORMULA = """
def planted(tokens: list[Token]) -> float:
    return token_mean(tokens, lambda k: 0.3 * reverse(k) + 0.7 * forward(k))


"""

WEIGHT_CLASS = '''
class EveryNth(TokenWeight):
    """1 for every so many tokens of a response, from the first on, else 0."""

    kind: Literal["every_nth"]
    step: Positive


'''

WEIGHT_FORMULA = '''

def every_nth(position: Float[Tensor, " token"], step: int) -> Float[Tensor, " token"]:
    """1 for the tokens 0, step, 2 · step, … of each response, else 0."""
    return (position % step == 0).float()
'''

WEIGHT_MEETS = """

@compute_weight.register
def _every_nth(weight: EveryNth, seen: Seen) -> Float[Tensor, " token"]:
    return weight_formulas.every_nth(seen.inputs.position, weight.step)
"""

WEIGHT_TEST = """\
    "every second token": ({"kind": "every_nth", "step": 2}, lambda k: float(k.place % 2 == 0)),
"""


class Project:
    """A copy of the project, and the files in it that were touched."""

    def __init__(self, folder: Path):
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_THE_PROJECT), dirs_exist_ok=True)
        self.folder = folder
        self.touched: set[str] = set()

    def create(self, name: str, text: str) -> None:
        assert not (self.folder / name).exists(), name
        (self.folder / name).write_text(text)
        self.touched.add(name)

    def replace(self, name: str, was: str, now: str) -> None:
        text = (self.folder / name).read_text()
        assert text.count(was) == 1, f"{name} has {was!r} {text.count(was)} times"
        (self.folder / name).write_text(text.replace(was, now))
        self.touched.add(name)

    def insert_before(self, name: str, anchor: str, text: str) -> None:
        self.replace(name, anchor, text.lstrip("\n") + anchor)

    def append(self, name: str, text: str) -> None:
        (self.folder / name).write_text((self.folder / name).read_text() + text)
        self.touched.add(name)


def add_recipe(project: Project) -> None:
    project.create("pipeline/recipes/planted.yaml", RECIPE)
    project.insert_before("tests/formulas.py", "BY_NAME: dict", FORMULA)


def add_weight(project: Project) -> None:
    settings, meeting = "pipeline/settings/weights.py", "pipeline/objectives/weights.py"
    project.insert_before(settings, "AnyWeight = Annotated[", WEIGHT_CLASS)
    project.replace(settings, "| Freshness,", "| Freshness | EveryNth,")
    project.append("pipeline/objectives/weight_formulas.py", WEIGHT_FORMULA)
    project.replace(meeting, "    EntropyGate,\n", "    EntropyGate,\n    EveryNth,\n")
    project.append(meeting, WEIGHT_MEETS)
    project.insert_before("tests/test_axes.py", '}\n"""Token weights as a user', WEIGHT_TEST)


def add_column(project: Project) -> None:
    format_, writer = "pipeline/storage/rollouts.py", "pipeline/rollouts/write.py"
    project.replace(format_, "VERSION = 1", "VERSION = 2")
    project.insert_before(format_, '        pa.field("finish_reason"', '        pa.field("characters", pa.int32()),\n')
    project.replace(format_, "    finish_reason: str\n", "    finish_reason: str\n    characters: int\n")
    project.replace(writer, "            text=text,\n", "            text=text,\n            characters=len(text),\n")
    project.replace("tests/test_shards.py", '"text": "t",\n', '"text": "t", "characters": 1,\n')
    pin_again(project, "tests/test_golden.py")


def pin_again(project: Project, name: str) -> None:
    """Put the new fingerprints in the places of the old ones, as one does after a VERSION was raised."""
    project.touched.add(name)
    for _ in range(9):
        said = run_pytest(project.folder, "-x", name).stdout
        if (found := re.search(r"^E\s+- (\w{32})\nE\s+\+ (\w{32})$", said, re.MULTILINE)) is None:
            return
        project.replace(name, found[1], found[2])


def add_engine(project: Project) -> None:
    source = (ROOT / "pipeline" / "engines" / "hf.py").read_text()
    project.create("pipeline/engines/twin.py", source.replace("HfEngine", "TwinEngine").replace("_Draw", "_TwinDraw"))
    case = '        case "twin":\n            from pipeline.engines.twin import TwinEngine\n\n'
    case += "            return TwinEngine(model, settings, machine)\n"
    project.insert_before("pipeline/engines/open.py", '        case "fake":\n', case)
    project.replace("pipeline/settings/models.py", '"fake"]', '"fake", "twin"]')
    stages = (ROOT / "dvc.yaml").read_text()
    hf = re.compile(r"^( +- pipeline/engines/)hf(\.py: \[VERSION\]\n)", re.MULTILINE)
    project.replace("dvc.yaml", stages, hf.sub(r"\g<0>\1twin\2", stages))
    project.replace("tests/test_engines.py", '"hf": 2e-6, ', '"hf": 2e-6, "twin": 2e-6, ')
    command = [sys.executable, "-m", "pipeline.cli", "schema", "params"]
    schema = subprocess.run(command, cwd=project.folder, capture_output=True, text=True, check=True).stdout
    committed = "pipeline/settings/schemas/params.json"
    project.replace(committed, (ROOT / committed).read_text(), schema)


def row_of(what: str) -> tuple[set[str], list[str]]:
    """The files that the table names for an addition, and the tests."""
    (row,) = (line for line in TABLE.splitlines() if line.startswith(f"| {what} |"))
    _, _, files, tests, _ = row.split("|")
    return set(re.findall(r"`([^`]+)`", files)), re.findall(r"`([^`]+)`", tests)


def test_every_place_that_is_named_exists():
    """Files, and functions in them: a walk that leads nowhere is worse than none."""
    walks = TEXT.partition("## Walks")[2].partition("## Tests")[0]
    places = re.findall(r"`([\w/]+)\.py:([\w.]+)`", walks)
    assert len(places) > 20
    for file, name in places:
        (path,) = (folder / f"{file}.py" for folder in (ROOT, ROOT / "pipeline") if (folder / f"{file}.py").exists())
        inside = ast.parse(path.read_text())
        for part in name.split("."):
            (inside,) = (node for node in ast.iter_child_nodes(inside) if getattr(node, "name", None) == part)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "add", "name"),
    [
        ("a recipe", add_recipe, "planted"),
        ("a token weight", add_weight, ""),
        ("a column of rollouts", add_column, ""),
        ("an engine", add_engine, "twin"),
    ],
)
def test_an_addition_touches_the_files_that_are_named_and_the_tests_hold(tmp_path, what, add, name):
    files, tests = row_of(what)
    project = Project(tmp_path)
    add(project)
    assert project.touched == {file.replace("NAME", name) for file in files}
    linted = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "pipeline", "tests"], cwd=tmp_path, capture_output=True, text=True
    )
    assert linted.returncode == 0, linted.stdout
    done = run_pytest(
        tmp_path, "-x", "-n", "2", "-m", "not slow and not gpu", *tests, "tests/test_names.py", "tests/test_sizes.py"
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr


@pytest.mark.slow
def test_what_is_added_is_tested(tmp_path):
    """Each of the tests that hold would fail, were the addition wrong: here a recipe whose formula is another."""
    project = Project(tmp_path)
    add_recipe(project)
    project.replace("tests/formulas.py", "0.3 * reverse(k) + 0.7 * forward(k)", "0.7 * reverse(k) + 0.3 * forward(k)")
    done = run_pytest(tmp_path, "tests/test_formulas.py", "-k", "planted")
    assert done.returncode == 1
    assert "planted" in done.stdout
