"""How much one file, function or call may hold, of pipeline/ and stages/: what a reader can take in at a time."""

import ast
from pathlib import Path

from tests.test_names import FILES, PUBLIC, TREES

LINES_OF_A_FILE, LINES_OF_A_FUNCTION, ARGUMENTS = 300, 40, 6


def length(node: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    assert node.end_lineno is not None
    lines = node.end_lineno - node.lineno + 1
    if ast.get_docstring(node) is not None:
        text = node.body[0]
        assert text.end_lineno is not None
        lines -= text.end_lineno - text.lineno + 1
    return lines


def arguments(node: ast.FunctionDef) -> int:
    """How many a caller can give; none where torch is the caller, which gives a `ctx` first."""
    names = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return 0 if names[:1] == ["ctx"] else len([name for name in names if name not in ("self", "cls")])


def is_command(path: Path, name: str) -> bool:
    """Whether typer makes options of the arguments, which are then no call that anybody writes."""
    return name == "main" or path == Path("pipeline/cli.py")


def test_files_are_short():
    assert {str(path): n for path in FILES if (n := len(path.read_text().splitlines())) > LINES_OF_A_FILE} == {}


def test_functions_are_short():
    functions = [
        (path, node) for path, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
    ]
    assert {f"{path}: {node.name}": n for path, node in functions if (n := length(node)) > LINES_OF_A_FUNCTION} == {}


def test_public_functions_take_few_arguments():
    many = {
        f"{path}: {name}": count
        for path, name, node in PUBLIC
        if isinstance(node, ast.FunctionDef) and not is_command(path, name) and (count := arguments(node)) > ARGUMENTS
    }
    assert many == {}


def test_what_is_counted():
    (function,) = ast.parse('def f(self, a, *, b=1):\n    """A text\n    of two lines."""\n    return a\n').body
    assert isinstance(function, ast.FunctionDef)
    assert (length(function), arguments(function)) == (2, 2)
