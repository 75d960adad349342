"""How a bug is planted: by the function that it is in and the expression that it changes, not by lines of source.

The expression is compared as Python's parser sees it, so spaces, line breaks, comments and brackets do not matter, nor
where the function stands in its module. After a renamed function or variable the bug has no place, and a message says
so.
"""

import ast
import difflib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
FOLDERS = ("pipeline", "stages", "tests")
FILES = ("pyproject.toml", "dvc.yaml", "params.yaml")


class UnplantableError(Exception):
    """The code has no such function, or not exactly one such expression in it."""


@dataclass(frozen=True)
class Plant:
    """One bug: at the place `where`, the expression or statement `was`, which occurs there once, becomes `now`.

    `where` is `module:function` or `module:Class.method`; for a recipe, a file of YAML and the keys that lead to a
    value. The `tests` are arguments of pytest; one of them at least must notice.
    """

    name: str
    where: str
    was: str
    now: str
    tests: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The file that is changed, from the root of the project."""
        file = self.where.partition(":")[0]
        return Path(file) if file.endswith(".yaml") else Path(*file.split(".")).with_suffix(".py")


def change(one: Plant, root: Path = ROOT) -> str:
    """Return the text of the plant's file with the bug in it.

    Raises:
        UnplantableError: the code under `root` has no such place, so that the plant must be written anew.
    """
    path = root / one.path
    if not path.is_file():
        raise UnplantableError(f"{one.name}: there is no {one.path}")
    changed = _change_value if path.suffix == ".yaml" else _change_source
    try:
        return changed(path.read_text(), one)
    except UnplantableError as why:
        raise UnplantableError(f"{one.name}: {one.where}: {why}") from None


def survives(one: Plant, folder: Path) -> bool:
    """Say whether the tests pass with the bug, in a copy of the code that is made in `folder`."""
    copy_project(folder)
    (folder / one.path).write_text(change(one, folder))
    # Of a whole file the quick tests have to find it; a test that is named may be slow.
    chosen = () if all("::" in test for test in one.tests) else ("-m", "not slow")
    done = run_pytest(folder, "-x", *chosen, *one.tests)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{one.name}: pytest did not run:\n{done.stdout[-2000:]}{done.stderr}")
    return done.returncode == 0


def copy_project(folder: Path) -> None:
    """Copy what the tests read into an empty folder."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tests of a copy of the project, on the copy's code, with one thread."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def _change_source(source: str, one: Plant) -> str:
    function = _find_function(ast.parse(source), one.where.partition(":")[2])
    was, now = _parse(one.was), _parse(one.now)
    places = [node for node in ast.walk(function) if isinstance(node, (ast.expr, ast.stmt)) and _is_same(node, was)]
    if len(places) != 1:
        raise UnplantableError(f"`{one.was}` occurs {len(places)} times there{_nearest(function, was)}")
    if _is_same(was, now):
        raise UnplantableError("the bug is what the code says already")
    return _replace(source, places[0], f"({one.now})" if isinstance(now, ast.expr) else one.now)


def _find_function(tree: ast.Module, dotted: str) -> ast.FunctionDef:
    found: ast.Module | ast.ClassDef | ast.FunctionDef = tree
    for name in dotted.split("."):
        inside = [node for node in found.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
        same = [node for node in inside if node.name == name]
        if len(same) != 1:
            raise UnplantableError(f"`{name}` is defined {len(same)} times{_like(name, [n.name for n in inside])}")
        found = same[0]
    if not isinstance(found, ast.FunctionDef):
        raise UnplantableError(f"`{dotted}` is no function")
    return found


def _parse(source: str) -> ast.expr | ast.stmt:
    """One expression or, where it is none, one statement."""
    (statement,) = ast.parse(source if not source.startswith("return") else f"def f():\n {source}").body
    if isinstance(statement, ast.FunctionDef):
        (statement,) = statement.body
    return statement.value if isinstance(statement, ast.Expr) else statement


def _is_same(one: ast.AST, other: ast.AST) -> bool:
    return type(one) is type(other) and ast.dump(one) == ast.dump(other)


def _replace(source: str, node: ast.expr | ast.stmt, text: str) -> str:
    """Python counts the columns of a line in bytes of UTF-8."""
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    lines = source.encode().splitlines(keepends=True)
    start = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
    end = sum(map(len, lines[: node.end_lineno - 1])) + node.end_col_offset
    whole = b"".join(lines)
    return (whole[:start] + text.encode() + whole[end:]).decode()


def _nearest(function: ast.FunctionDef, was: ast.expr | ast.stmt) -> str:
    kind = ast.expr if isinstance(was, ast.expr) else ast.stmt
    return _like(ast.unparse(was), [ast.unparse(node) for node in ast.walk(function) if isinstance(node, kind)])


def _like(wanted: str, there_are: list[str]) -> str:
    near = difflib.get_close_matches(wanted, there_are, n=1, cutoff=0.5)
    return f"; there is `{near[0]}`" if near else ""


def _change_value(text: str, one: Plant) -> str:
    """Change one value of a recipe; the rest of the file stays as it is."""
    yaml = YAML(typ="rt", pure=True)
    node, *lead = yaml.load(text), *one.where.partition(":")[2].split(".")
    for key in lead[:-1]:
        node = node[int(key) if key.isdigit() else key]
    line, column = node.lc.value(lead[-1])
    if str(node[lead[-1]]) != one.was:
        raise UnplantableError(f"{one.was} is expected; there is {node[lead[-1]]}")
    lines = text.splitlines(keepends=True)
    lines[line] = lines[line][:column] + lines[line][column:].replace(one.was, one.now, 1)
    return "".join(lines)
