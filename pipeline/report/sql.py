"""SQL over a data folder: DuckDB with views on the shards, and nothing copied, cached or written.

| view | one row is |
|---|---|
| `prompts` | a prompt |
| `teacher_rollouts` | a response that the teacher wrote for SFT |
| `rollouts`, `grades` | a student's response; its grade |
| `scores` | a response under one `view` |
| `tokens` | a response token: the student's log-probability and the `teacher` view's, null where there is none |
| `support` | an entry that a view keeps at a token: `rank` from 1, and whether it is the model's `own` |

A kept shard lies in several rounds under the same rollout ids. These views show each response once, in the latest
round where it occurs; `all_rollouts`, `all_grades`, `all_scores`, `all_tokens` and `all_support` show every round.
`round`, `view` and `bucket` come from the paths; `kept` says that the response was written in an earlier round than
the folder's. Log-probabilities are as stored: rounded, hence not exactly a distribution. `pos` counts from 0.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import duckdb

from pipeline.errors import PotstillError
from pipeline.report.readonly import PROTOCOL, ReadOnlyFiles
from pipeline.storage.grades import GRADES
from pipeline.storage.prompts import PROMPTS
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.scores import SCORES

VIEWS = ("prompts", "teacher_rollouts", "rollouts", "grades", "scores", "tokens", "support")
"""The views that SQL can ask; from `rollouts` on also with `all_` before the name."""

_FILES = {
    "prompts": (PROMPTS, ["prompts/*/*.parquet"]),
    "teacher_rollouts": (ROLLOUTS, ["teacher_rollouts/rollouts/*.parquet"]),
    "rollouts": (ROLLOUTS, ["rollouts/*/*.parquet"]),
    "grades": (GRADES, ["grades/*/*.parquet"]),
    "scores": (SCORES, ["scores/*/teacher/*.parquet", "scores/*/views/*/*.parquet"]),
}

_DEFINITIONS = Path(__file__).with_name("views.sql")


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
        for name, (schema, patterns) in _FILES.items():
            found = [pattern for pattern in patterns if any(data.glob(pattern))]
            if found:
                globs = ", ".join(f"'{PROTOCOL}://{_quote(data.resolve() / pattern)}'" for pattern in found)
                source = f"select * from read_parquet([{globs}], filename = true, hive_partitioning = false)"
            else:
                self._connection.register(f"no_{name}", schema.empty_table())
                source = f"select *, null::varchar as filename from no_{name}"
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

    def write_csv(self, text: str, stream: TextIO) -> None:
        """Write the results, each with a line of column names, for other programs.

        Raises:
            PotstillError: DuckDB refuses a statement, as it does one that would write a file.
        """
        for statement in self._split(text):
            columns, rows = self._run(statement)
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows)

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


def _quote(path: Path) -> str:
    return path.as_posix().replace("'", "''")


def _describe_error(error: duckdb.Error) -> PotstillError:
    text = str(error).strip()
    if "LocalFileSystem has been disabled" in text or "SQL only reads" in text:
        return PotstillError(
            "SQL only reads here. `potstill sql --csv … > FILE` keeps a result; any other file that is to be read "
            f"is named with `{PROTOCOL}://` before its path."
        )
    hint = " `potstill verify` finds damaged shards." if "arquet" in text else ""
    return PotstillError(f"{text}{hint}")
