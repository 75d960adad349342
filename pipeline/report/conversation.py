"""A conversation in SQL at a terminal."""

import sys
from pathlib import Path

from pipeline.errors import PotstillError
from pipeline.report.sql import VIEWS, Database


def converse(data: Path) -> None:
    """Read statements up to their semicolon and show their results, until the input ends.

    DuckDB's own shell would be better company, and would not keep the shards safe: its Python package has none, the
    one in `duckdb-cli` is of another version (1.5 beside a library 2.0), and what lets a shell read a folder
    (`allowed_directories`) lets it write there, by COPY and by `.once`, over a shard. `Database` cannot write.

    Raises:
        PotstillError: the data folder is missing.
    """
    import readline  # noqa: F401 - gives `input` its history and line editing

    with Database(data) as database:
        print(f"Views: {', '.join(VIEWS)}; all_rollouts, … for every round. End with `;`, leave with Ctrl-D.")
        pending = ""
        while True:
            try:
                pending += input("     ...> " if pending else "potstill> ") + "\n"
            except EOFError:
                print()
                return
            if not pending.strip():
                pending = ""
            elif pending.rstrip().endswith(";"):
                try:
                    print("\n".join(database.draw_boxes(pending)))
                except PotstillError as error:
                    print(error, file=sys.stderr)
                pending = ""
