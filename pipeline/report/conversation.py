"""A conversation in SQL at a terminal."""

import sys
from pathlib import Path

from pipeline.errors import PotstillError
from pipeline.report.sql import OF_ROUNDS, VIEWS, Database

_HELP = f"Views: {', '.join(VIEWS)}; all_rollouts, … for every round. `describe VIEW;` lists its columns."


def converse(data: Path) -> None:
    """Read statements up to their semicolon and show their results, until the input ends.

    DuckDB's own shell would be better company, and would not keep the shards safe: its Python package has none, the
    one in `duckdb-cli` is of another version (1.5 beside a library 2.0), and what lets a shell read a folder
    (`allowed_directories`) lets it write there, by COPY and by `.once`, over a shard. `Database` cannot write.

    Raises:
        PotstillError: the data folder is missing.
    """
    import readline

    readline.set_completer_delims(" \t\n(),;=")
    readline.set_completer(_complete)
    readline.parse_and_bind("tab: complete")
    with Database(data) as database:
        print(f"{_HELP} End with `;`, leave with Ctrl-D.")
        pending = ""
        while True:
            try:
                pending += input("     ...> " if pending else "potstill> ") + "\n"
            except EOFError:
                print()
                return
            except KeyboardInterrupt:  # what was begun is dropped, as in other shells
                print()
                pending = ""
                continue
            statement = pending.strip()
            if statement.rstrip(";") in ("help", ".help", ".tables"):
                print(_HELP)
                pending = ""
            elif not statement:
                pending = ""
            elif statement.endswith(";"):
                _answer(database, pending)
                pending = ""


def _answer(database: Database, statement: str) -> None:
    try:
        print("\n".join(database.draw_boxes(statement)))
    except PotstillError as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)


def _complete(beginning: str, number: int) -> str | None:
    """Give one of the views whose name begins so, as readline asks for them one after another."""
    names = [*VIEWS, *(f"all_{name}" for name in OF_ROUNDS)]
    found = [name for name in names if name.startswith(beginning)]
    return found[number] if number < len(found) else None
