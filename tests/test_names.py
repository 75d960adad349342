"""One vocabulary: the names and first sentences in pipeline/ and stages/, against each other and the README's terms."""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.planting import ROOT

FILES = [*sorted((ROOT / "pipeline").rglob("*.py")), *sorted((ROOT / "stages").glob("*.py"))]
TREES = {path.relative_to(ROOT): ast.parse(path.read_text()) for path in FILES}

TOO_BARE = {"check", "identity", "load", "make", "obtain", "of", "open", "process", "read", "run", "told", "write"}
"""Verbs without an object, and words that are no verbs: as the name of a function they say no effect."""

NAMES_OF_A_SCRIPT = {"run", "main"}
"""What every stage has, so that there they say it."""

FRAGMENT = re.compile(
    r"(of|as|by|with|in|at|than|that|the same|the ones?|its?|they|their|these|those|such|and|or|but|also|so|then)\b"
    r"|(?-i:[a-z]+)[ ,;:]|\[",
    re.IGNORECASE,
)
"""How a docstring begins that leans on another, or is no sentence: "Of each…", "The same…", "As…", "[T], …"."""

WITHOUT_TERMS = {"errors", "progress", "settings"}
"""Rooms whose classes the README need not explain: a setting is explained where params.yaml is read."""


def room_of(path: Path) -> str:
    return path.parts[1].removesuffix(".py") if path.parts[0] == "pipeline" else "stages"


def definitions(tree: ast.AST, lead: str = "") -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef]]:
    """Every public class and function, those of public classes included, by its dotted name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            yield lead + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node, f"{lead}{node.name}.")


PUBLIC = [(path, name, node) for path, tree in TREES.items() for name, node in definitions(tree)]


def test_no_class_name_means_two_things():
    homes = defaultdict(list)
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(str(path))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_a_functions_name_says_its_effect():
    bare = [
        f"{path}: {name}"
        for path, name, node in PUBLIC
        if isinstance(node, ast.FunctionDef)
        and name in TOO_BARE
        and not (path.parts[0] == "stages" and name in NAMES_OF_A_SCRIPT)
    ]
    assert bare == []


def test_no_private_function_is_called_told():
    """It says neither what is done nor with what; five had that name."""
    told = [f"{path}" for path, tree in TREES.items() for n in ast.walk(tree) if getattr(n, "name", "") == "_told"]
    assert told == []


def is_a_sentence(docstring: str) -> bool:
    """Whether a docstring begins with a sentence that stands alone; it may be a formula, or name a file."""
    first = " ".join(docstring.partition("\n\n")[0].split())
    return not FRAGMENT.match(first) and first[-1] in ".:"


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Return the mean over the rollout, in nats.", True),
        ("Facts of one row's tokens: name → float32 [T].", True),
        ("What one view says of the tokens of a pack.", True),
        ("1 for rows with this fact, else 0.", True),
        ("`reverse_kl` of each token.", True),
        ("params.yaml says something that cannot be.", True),
        ("−log student of the sampled token.", True),
        ("[T], the row of each token.", False),
        ("Of each number its sum.", False),
        ("The same distribution over fewer ids.", False),
        ("As drawn, not as written.", False),
        ("the mean over the rollout.", False),
        ("Return the mean", False),
        ("In the other process.", False),
    ],
)
def test_what_a_sentence_is(docstring, expected):
    assert is_a_sentence(docstring) is expected


def test_every_docstring_begins_with_a_sentence():
    fragments = []
    for path, tree in TREES.items():
        documented = [("", tree), *((name, node) for name, node in definitions(tree))]
        for name, node in documented:
            text = ast.get_docstring(node)  # pyright: ignore[reportArgumentType]
            if text and not is_a_sentence(text):
                fragments.append(f"{path}: {name}: {text.splitlines()[0]}")
    assert fragments == []


def terms() -> dict[str, list[str]]:
    """The rows of the README's table of terms: what the code calls each."""
    table = (ROOT / "README.md").read_text().partition("## 3. Terms")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    return {row[0]: re.findall(r"`(\w+)`", row[-1]) for row in rows}


def test_every_term_is_once_in_the_readme_and_alive_in_the_code():
    alive = {
        node.name
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
    }
    alive |= {path.stem for path in TREES}
    alive |= {str(node.value) for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    named = terms()
    assert len(named) > 20
    assert {term for term, names in named.items() if not names} == set()
    assert {name for names in named.values() for name in names} - alive == set()
    assert [name for name, count in Counter(n for names in named.values() for n in names).items() if count > 1] == []


def test_a_class_that_two_other_rooms_use_is_a_term():
    """What is named all over the code is a word of the project, so the README explains it."""
    homes = {name: room_of(path) for path, name, node in PUBLIC if isinstance(node, ast.ClassDef)}
    users = defaultdict(set)
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for name in (alias.name for alias in node.names):
                    if homes.get(name, room_of(path)) != room_of(path):
                        users[name].add(room_of(path))
    shared = {name for name, rooms in users.items() if len(rooms) >= 2 and homes[name] not in WITHOUT_TERMS}
    assert len(shared) > 10
    assert shared - {name for names in terms().values() for name in names} == set()
