"""What the command line prints and how it ends, against the shards."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import command
from pipeline.errors import GradeError
from pipeline.report import conversation
from pipeline.report.decoding import split_pieces
from pipeline.report.sql import Database
from pipeline.report.transcript import Token
from pipeline.storage.manifest import read_manifest
from pipeline.visible import make_visible
from tests import example_data


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    example_data.tokenizer(example_data.make(root))
    return root


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A project that a test may spoil."""
    example_data.make(tmp_path)
    return tmp_path


def test_sql_prints_a_box(project: Path, capsys: pytest.CaptureFixture[str]):
    example_data.run_potstill(project, "sql", "-c", "select 40 + 2 as answer; select round from rollouts limit 0")
    assert "│     42 │" in capsys.readouterr().out


def test_sql_prints_csv(project: Path, capsys: pytest.CaptureFixture[str]):
    example_data.run_potstill(project, "sql", "--format", "csv", "-c", "select count(*) as n from tokens")
    tokens = sum(
        entry.tokens
        for folder, names in (("r2", None), ("r1", {"00001.parquet", "00002.parquet"}))
        for name, entry in read_manifest(project / "data/rollouts" / folder).items()
        if names is None or name in names
    )
    assert capsys.readouterr().out == f"n\n{tokens}\n"


def test_sql_reads_statements_from_a_pipe(project: Path):
    arguments = [sys.executable, "-m", "pipeline.cli", "sql", "--format", "csv", "--data", str(project / "data")]
    done = subprocess.run(arguments, input="select 1 as a;\nselect 2 as b;", capture_output=True, text=True, check=True)
    assert done.stdout == "a\n1\nb\n2\n"


def test_sql_writes_a_file_in_the_format_of_its_name(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, content in (
        ("a.csv", "a\n1\n"), ("a.json", '[{"a": 1}]\n'), ("a.md", "| a |\n| ---: |\n| 1 |\n\n"),
    ):  # fmt: skip
        example_data.run_potstill(project, "sql", "-c", "select 1 as a", "--out", str(tmp_path / name))
        assert (tmp_path / name).read_text() == content
    example_data.run_potstill(
        project, "sql", "-c", "select 1 as a", "--out", str(tmp_path / "a.csv"), "--format", "json"
    )
    assert (tmp_path / "a.csv").read_text() == '[{"a": 1}]\n'
    assert capsys.readouterr().out == ""


def test_sql_writes_over_nothing_that_a_stage_made(project: Path, capsys: pytest.CaptureFixture[str]):
    shard = project / "data/rollouts/r1/00001.parquet"
    before = shard.read_bytes()
    stored = next((project / ".potstill/store").rglob("*.parquet"))
    for target in (shard, project / "data/new.csv", stored, project / ".dvc/config"):
        with pytest.raises(SystemExit):
            example_data.run_potstill(project, "sql", "-c", "select 1 as a", "--out", str(target))
        assert "name a file elsewhere" in capsys.readouterr().err
    assert shard.read_bytes() == before
    assert not (project / "data/new.csv").exists()


def test_sql_lists_and_asks_ready_questions(project: Path, capsys: pytest.CaptureFixture[str]):
    example_data.run_potstill(project, "sql", "--list")
    assert "worst-tokens       The twenty tokens" in capsys.readouterr().out
    example_data.run_potstill(project, "sql", "drift-by-round", "--format", "csv")
    assert capsys.readouterr().out.startswith("round,policy,bound,floor,shards,kept,")
    for arguments, told in (
        (["worst-token"], "no question `worst-token`; did you mean `worst-tokens`?"),
        (["costs", "-c", "select 1"], "name one of them"),
    ):
        with pytest.raises(SystemExit) as end:
            example_data.run_potstill(project, "sql", *arguments)
        assert end.value.code == 1
        assert told in capsys.readouterr().err


def test_sql_at_a_terminal_reads_up_to_the_semicolon_and_outlives_mistakes(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shard = project / "data/rollouts/r1/00001.parquet"
    before = shard.read_bytes()
    lines = [
        "",
        "select 40",
        "  + 2 as answer;",
        "selec;",
        f"copy (select 1 as a) to '{shard}';",
        "select 43 as after;",
    ]

    def typed(_: str) -> str:
        if not lines:
            raise EOFError
        return lines.pop(0)

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", typed)
    example_data.run_potstill(project, "sql")
    out, told = capsys.readouterr()
    assert out.index("│     42 │") < out.index("│    43 │")
    assert told.index("Parser Error") < told.index("SQL only reads here")
    assert shard.read_bytes() == before


def test_ctrl_c_at_the_prompt_drops_what_was_begun_and_help_names_the_views(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    lines = [".tables", "select 1 +", KeyboardInterrupt(), "select 41 + 2 as after;", EOFError()]

    def typed(_: str) -> str:
        line = lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", typed)
    example_data.run_potstill(project, "sql")
    out, told = capsys.readouterr()
    assert out.count("evaluations, metrics, histories") == 2, "at the beginning, and when asked"
    assert "│    43 │" in out
    assert told == ""


def test_tab_at_the_prompt_completes_views():
    names = [conversation._complete("all_s", number) for number in range(3)]
    assert names == ["all_scores", "all_support", None]


def test_a_mistake_is_one_paragraph_and_exit_code_1(project: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        example_data.run_potstill(project, "sql", "-c", "select nothing from rollouts")
    assert end.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith("potstill: error: Binder Error")
    assert "Traceback" not in told


def test_what_others_wrote_reaches_the_terminal_as_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """In a mistake's paragraph and in the log: a title set, a screen cleared, lines overwritten."""
    hostile = "grader said \x1b]0;owned\x07 \x1b[2J"
    shown = "grader said ␛]0;owned␇ ␛[2J"

    def told() -> None:
        raise GradeError(hostile)

    def logged() -> None:
        logging.getLogger("refresh").warning(hostile)
        raise GradeError("end")

    for main in (told, logged):
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        with pytest.raises(SystemExit):
            command.run_stage(main, [])
        printed = capsys.readouterr().err
        assert shown in printed
        assert "\x1b" not in printed


def test_arguments_that_cannot_be_end_with_exit_code_2(project: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        example_data.run_potstill(project, "gc", "--older-than-days", "soon")
    assert end.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_ctrl_c_is_no_success(monkeypatch: pytest.MonkeyPatch, project: Path):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Database, "draw_boxes", interrupted)
    with pytest.raises(SystemExit) as end:
        example_data.run_potstill(project, "sql", "-c", "select 1")
    assert end.value.code == 130


def test_show_prints_a_rollout_by_the_beginning_of_its_id(project: Path, capsys: pytest.CaptureFixture[str]):
    with Database(project / "data") as database:
        row = database.ask("select rollout_id, text from rollouts where text like '%=%' order by rollout_id limit 1")[0]
    example_data.run_potstill(project, "show", row["rollout_id"][:12])
    out = capsys.readouterr().out
    assert row["rollout_id"] in out
    assert row["text"] + "<eos>" in out
    assert "the teacher's likeliest" in out


def test_show_shows_a_kept_rollout_in_the_round_and_beside_the_view_that_are_asked(
    project: Path, capsys: pytest.CaptureFixture[str]
):
    with Database(project / "data") as database:
        kept, other = (
            database.ask(f"select rollout_id from rollouts where {which} order by rollout_id limit 1")[0]["rollout_id"]
            for which in ("kept and prompt_id = 'opd-0-2'", "round = 'r1'")
        )
        logprob = database.ask(
            "select sampled_logprobs[1] as first from scores where rollout_id = ? and view = 'hinted'", [kept]
        )[0]["first"]
    example_data.run_potstill(project, "show", kept, "--round", "r1")
    assert "written in r1, shown from r1" in capsys.readouterr().out
    example_data.run_potstill(project, "show", kept, "--view", "hinted")
    out = capsys.readouterr().out
    assert "written in r1, shown from r2" in out
    assert "the view hinted finds the token less likely" in out
    assert any(line.startswith(" 0 ") and f"{logprob:.3f}" in line for line in out.splitlines())
    with pytest.raises(SystemExit):
        example_data.run_potstill(project, "show", other, "--round", "r2")
    assert f"no rollout's id begins with `{other}` in r2" in capsys.readouterr().err


def test_show_lists_the_rollouts_of_a_prompt(project: Path, capsys: pytest.CaptureFixture[str]):
    """Those of the kept bucket 0 once, in their latest round; where a round is named, in that one."""
    for asked, rounds in (((), ["r2", "r2"]), (("--round", "r1"), ["r1", "r1"])):
        example_data.run_potstill(project, "show", "--prompt", "opd-0-1", *asked)
        out = capsys.readouterr().out
        assert "prompt opd-0-1, opd" in out
        lines = [line.split() for line in out.splitlines() if line.startswith((" r1 ", " r2 "))]
        assert [(line[0], line[1], line[3]) for line in lines] == list(
            zip(rounds, "01", ("right", "wrong"), strict=True)
        )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing"], "no rollout's id begins with `nothing`. `potstill sql"),
        ([""], "several rollouts"),
        (["opd-1-1"], "A prompt's does: `potstill show --prompt opd-1-1`"),
        (["--prompt", "opd-1"], "several prompts' ids: opd-1-0, opd-1-1, opd-1-2, …"),
        (["--prompt", "nothing"], "no prompt's id begins with `nothing`"),
        (["--prompt", "opd-1-1", "--round", "r3"], "no rollouts of the round `r3`; known here: r1, r2"),
        (["", "--round", "x"], "no rollouts of the round `x`; known here: r1, r2"),
        (["", "--view", "hintd"], "no scores of the view `hintd`; did you mean `hinted`?"),
        ([], "name either a rollout"),
        (["a", "--prompt", "b"], "name either a rollout"),
    ],
)
def test_show_says_what_it_cannot_find(
    project: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as end:
        example_data.run_potstill(project, "show", *arguments)
    assert end.value.code == 1
    assert told in capsys.readouterr().err


def test_a_token_is_coloured_by_the_nats_between_student_and_teacher():
    levels = [Token(0, "a", student, -3.0, ()).level for student in (-3.1, -2.6, -1.9, -8.0, 1.0)]
    assert levels == [0, 1, 3, -5, 5]
    assert Token(0, "a", -5.0, None, ()).level == 0


def test_pieces_add_up_to_the_text():
    """In a vocabulary that drops a word's leading space at the beginning of a text."""
    words = ["▁two", "▁and", "▁two", "s"]

    def decode(ids):
        return "".join(words[token] for token in ids).replace("▁", " ").removeprefix(" ")

    assert split_pieces([0, 1, 2, 3], decode) == ["two", " and", " two", "s"]


def test_a_terminal_obeys_no_control_character():
    assert make_visible("a\x1b[31m\x7f\x9b\n\tb") == "a␛[31m␡�\n\tb"


def test_recipes_takes_the_bytes_per_token_of_the_latest_round(own: Path, capsys: pytest.CaptureFixture[str]):
    for old, new in (("r1", "r9"), ("r2", "r10")):
        (own / "data/scores" / old).rename(own / "data/scores" / new)
    example_data.run_potstill(own, "recipes", "topk_reverse_kl")
    assert f"bytes per token in {own / 'data/scores/r10/teacher'}" in capsys.readouterr().out
