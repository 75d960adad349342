"""SQL over a data folder: DuckDB with views on the shards, and nothing copied, cached or written.

| view | one row is |
|---|---|
| `prompts` | a prompt |
| `teacher_rollouts` | a response that the teacher wrote for SFT |
| `rollouts`, `grades` | a student's response; its grade |
| `scores` | a response under one `view` |
| `tokens` | a response token: the student's log-probability and the `teacher` view's, null where there is none |
| `support` | an entry that a view keeps at a token: `rank` from 1, and whether it is the model's `own` |
| `evaluations` | a response to an evaluation prompt, with its grade, by `checkpoint` and `mode` (`greedy`, `sampled`) |
| `metrics` | a checkpoint's figures |
| `histories`, `validations` | a step of a checkpoint's training; a measurement on the held-out bucket |
| `drift` | a shard of a round's rollouts, and how far the student was from it before the round |
| `timings` | what a stage made, and the seconds that making it took |

A kept shard lies in several rounds under the same rollout ids. The views of responses show each once, in the latest
round where it occurs; `all_rollouts`, `all_grades`, `all_scores`, `all_tokens` and `all_support` show every round.
`token` is what an id adds to a text, from the student's tokenizer; null where that is not there.
`round`, `view` and `bucket` come from the paths; `kept` says that the response was written in an earlier round than
the folder's. Log-probabilities are as stored: rounded, hence not exactly a distribution. `pos` counts from 0.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
from duckdb.func import FunctionNullHandling, PythonUDFType
from duckdb.sqltypes import INTEGER, VARCHAR

from pipeline.errors import PotstillError
from pipeline.report.decoding import make_texts
from pipeline.report.readonly import PROTOCOL, ReadOnlyFiles
from pipeline.report.sources import write_sources

OF_ROUNDS = ("rollouts", "grades", "scores", "tokens", "support")
"""The views that show the latest round in which a response occurs; with `all_` before the name, they show every one."""

VIEWS = (
    "prompts", "teacher_rollouts", *OF_ROUNDS,
    "evaluations", "metrics", "histories", "validations", "drift", "timings",
)  # fmt: skip
"""The views that SQL can ask."""

_DEFINITIONS = Path(__file__).with_name("views.sql")


class QueryResult(NamedTuple):
    """What a statement gives: names of columns, and rows of as many values."""

    columns: list[str]
    rows: list[tuple[Any, ...]]


class Database:
    """An open connection to the shards of a data folder; it belongs to one thread.

    Kinds of shards that do not exist when it is opened have their columns and no rows.
    """

    def __init__(self, data: Path):
        if not data.is_dir():
            raise PotstillError(f"{data} is no folder. `dvc repro` makes the shards, `dvc pull` fetches them.")
        self._connection = duckdb.connect(":memory:", config={"autoinstall_known_extensions": "false"})
        self._connection.register_filesystem(ReadOnlyFiles())
        self._connection.execute("create schema files").fetchall()
        self._connection.create_function(
            "token_text",
            make_texts(data / "models" / "student.json"),
            [INTEGER],
            VARCHAR,
            type=PythonUDFType.ARROW,
            null_handling=FunctionNullHandling.SPECIAL,  # an id may have no text
        )
        for name, source in write_sources(data):
            self._run(f"create view files.{name} as {source}")
        for definition in duckdb.extract_statements(_DEFINITIONS.read_text()):
            self._run(definition.query)
        self._run("set disabled_filesystems = 'LocalFileSystem'")
        self._run("set lock_configuration = true")

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(self, statement: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Ask one statement, whose `?` stand for the values, and get its rows by column name.

        Raises:
            PotstillError: DuckDB refuses the statement, or a shard is damaged.
        """
        columns, rows = self._run(statement, values)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def draw_boxes(self, text: str) -> list[str]:
        """Draw the result of each statement as a box that fits the terminal; control characters are spelled out.

        Raises:
            PotstillError: DuckDB refuses a statement, as it does one that would write a file.
        """
        try:
            return [str(self._connection.sql(statement)).rstrip() for statement in self._split(text)]
        except duckdb.Error as error:
            raise _describe_error(error) from None

    def answer(self, text: str) -> Iterator[QueryResult]:
        """Answer each statement of a text, one after another, with names of columns and rows.

        Raises:
            PotstillError: DuckDB refuses a statement, as it does one that would write a file.
        """
        for statement in self._split(text):
            yield QueryResult(*self._run(statement))

    def _run(self, statement: str, values: Sequence[Any] = ()) -> tuple[list[str], list[tuple[Any, ...]]]:
        try:
            answer = self._connection.execute(statement, list(values))
            columns = [column[0] for column in answer.description or []]
            return columns, answer.fetchall()
        except duckdb.Error as error:
            raise _describe_error(error) from None

    def _split(self, text: str) -> list[str]:
        """Split a text into statements."""
        try:
            return [statement.query for statement in duckdb.extract_statements(text)]
        except duckdb.Error as error:
            raise _describe_error(error) from None


def _describe_error(error: duckdb.Error) -> PotstillError:
    text = str(error).strip()
    if "LocalFileSystem has been disabled" in text or "SQL only reads" in text:
        return PotstillError(
            "SQL only reads here. `potstill sql --out FILE` keeps a result; any other file that is to be read "
            f"is named with `{PROTOCOL}://` before its path."
        )
    hint = " `potstill verify` finds damaged shards." if "arquet" in text else ""
    return PotstillError(f"{text}{hint}")
