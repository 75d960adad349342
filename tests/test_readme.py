"""What README, benchmarks/README and CONTRIBUTING tell people to type and where to look, against what there is.

Commands are parsed by the programs' own parsers and not run, but for SQL, which is run over a small project.
"""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import typer
from ruamel.yaml import YAML

from pipeline.cli import app
from pipeline.prompts.collect import collect_prompts
from pipeline.report.questions import read_question
from pipeline.report.sql import Database
from pipeline.settings import params
from pipeline.settings.machine import load_machine
from tests import example_data

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BENCHMARKS = (ROOT / "benchmarks" / "README.md").read_text()
CONTRIBUTING = (ROOT / ".github" / "CONTRIBUTING.md").read_text()


def _blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language; the fences alternate, so a closing one opens none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for found, block in fenced if found == language]


COMMANDS = [
    words
    for block in _blocks(README + BENCHMARKS, "bash")
    for line in block.splitlines()
    for command in re.split(r"\s&&\s", line)
    if (words := shlex.split(command, comments=True))
]


def _of(program: str) -> list[list[str]]:
    found = [words[1:] for words in COMMANDS if words[0] == program]
    assert found, f"the README has no `{program}` command, so this test would test nothing"
    return found


def _targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_no_command_is_of_a_program_that_nobody_checks():
    checked = {"make", "potstill", "dvc", "python"}
    others = {"source", "xdg-open", "cp", "git", "ruff", "pyright", "pytest"}
    assert {words[0] for words in COMMANDS} <= checked | others


def test_the_prompt_that_is_shown_is_one_that_the_demos_student_answers():
    (words,) = [words for words in _of("potstill") if "--prompt" in words]
    prompts = collect_prompts(params.load_params(ROOT / "params.yaml").prompts)
    beginning = words[words.index("--prompt") + 1]
    assert [split for split, rows in prompts.items() for row in rows if row.prompt_id.startswith(beginning)] == ["opd"]


def test_every_make_target_exists():
    spoken_of = re.findall(r"`make ([a-z-]+)`", README + BENCHMARKS + CONTRIBUTING)
    assert {*(words[0] for words in _of("make")), *spoken_of} <= _targets()


def test_every_potstill_command_parses():
    program = typer.main.get_command(app)
    for words in _of("potstill"):
        command = program.get_command(None, words[0])  # pyright: ignore[reportAttributeAccessIssue]
        assert command is not None, words
        command.make_context(words[0], words[1:])


def test_every_statement_of_sql_runs(tmp_path: Path):
    example_data.make(tmp_path)
    asked = [words for words in _of("potstill") if words[0] == "sql" and "--list" not in words]
    statements = [words[words.index("-c") + 1] if "-c" in words else read_question(words[1]) for words in asked]
    assert statements
    with Database(tmp_path / "data") as database:
        for statement in statements:
            assert any(database.draw_boxes(statement)), statement


def test_every_dvc_command_parses_and_names_a_stage():
    # Slow to import (half a second), and needed here alone.
    from dvc.cli.parser import get_main_parser

    defined = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]
    stages = {f"{name}@{round_}" for name in defined for round_ in params.load_params(ROOT / "params.yaml").rounds}
    for words in _of("dvc"):
        arguments = get_main_parser().parse_args(words)
        if words[0] == "repro":
            assert set(arguments.targets) <= {*defined, *stages}


def test_every_module_that_is_run_by_hand_is_there():
    called = re.findall(r"python -m ([a-z]\w+\.\w+)", README + BENCHMARKS + CONTRIBUTING)
    assert {module.partition(".")[0] for module in called} == {"stages", "benchmarks", "tests"}
    for module in called:
        assert (ROOT / Path(*module.split(".")).with_suffix(".py")).is_file(), module
        if module.startswith("stages."):
            assert callable(importlib.import_module(module).main)


def test_every_copied_file_is_there():
    for words in _of("cp"):
        assert (ROOT / words[0]).is_file(), words


def test_every_machine_setting_is_one(tmp_path: Path):
    (block,) = (block for block in _blocks(README, "yaml") if block.startswith("device:"))
    (tmp_path / "machine.yaml").write_text(block)
    load_machine(tmp_path / "machine.yaml")


def test_the_views_are_settings_that_load():
    (block,) = (block for block in _blocks(README, "yaml") if block.startswith("score:"))
    written = YAML(typ="safe", pure=True).load(block)["score"]
    contexts = {view.context.kind for view in params.Score.model_validate_json(json.dumps(written)).views.values()}
    assert contexts == {"plain", "hint", "sibling", "prefix", "instruction"}


def test_every_setting_that_is_named_exists():
    sections = params.Params.model_fields
    named = re.findall(r"`([a-z_]+)\.([a-z_]+)", README + CONTRIBUTING)
    wrong = [
        f"{section}.{key}"
        for section, key in named
        if section in sections and key not in getattr(sections[section].annotation, "model_fields", {})
    ]
    assert any(section in sections for section, _ in named)
    assert wrong == []


def test_every_file_of_the_tree_exists():
    (block,) = _blocks(README, "")
    paths, folder = [], Path()
    for line in block.splitlines():
        name = line.split()[0]
        folder = folder if line.startswith(" ") else Path(name if name.endswith("/") else ".")
        paths.append(folder / name if line.startswith(" ") else Path(name))
    made_by_running = {Path("dvc.lock")}
    assert len(paths) > 10
    assert [path for path in paths if path not in made_by_running and not (ROOT / path).exists()] == []


TEXTS = {"README.md": README, "benchmarks/README.md": BENCHMARKS, ".github/CONTRIBUTING.md": CONTRIBUTING}


@pytest.mark.parametrize("path", TEXTS)
def test_every_file_that_is_named_exists(path: str):
    links = re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", TEXTS[path])
    quoted = re.findall(r"`((?:pipeline|stages|tests|presets|engines)/[\w/.]+)`", TEXTS[path])
    missing = [
        name
        for name in [*links, *quoted]
        if "NAME" not in name  # of a file that a contributor adds
        and not any((root / name).exists() for root in (ROOT, (ROOT / path).parent, ROOT / "pipeline"))
    ]
    assert missing == []


@pytest.mark.parametrize("path", TEXTS)
def test_every_heading_that_is_linked_exists(path: str):
    for file, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", TEXTS[path]):
        headings = re.findall(
            r"^#+ (.*)$", ((ROOT / path).parent / file).read_text() if file else TEXTS[path], re.MULTILINE
        )
        # As GitHub does: letters, digits, spaces and hyphens stay, and a space is a hyphen.
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in anchors, (file, anchor)


def test_the_six_parts_are_there_in_their_order():
    parts = re.findall(r"^## (\d)\. ", README, re.MULTILINE)
    assert parts == ["1", "2", "3", "4", "5", "6"]
    assert "```mermaid" in README.partition("## 1.")[0]
