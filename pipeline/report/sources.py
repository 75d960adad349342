"""What the files of a data folder are to SQL: a relation for each kind, with its columns where there is no file yet."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.report.readonly import PROTOCOL

if TYPE_CHECKING:
    import pyarrow as pa

SHARDS = {
    "prompts": ["prompts/*/*.parquet"],
    "teacher_rollouts": ["teacher_rollouts/rollouts/*.parquet"],
    "rollouts": ["rollouts/*/*.parquet"],
    "grades": ["grades/*/*.parquet"],
    "scores": ["scores/*/teacher/*.parquet", "scores/*/views/*/*.parquet"],
    "evaluation_rollouts": ["evaluations/*/rollouts/*.parquet"],
    "evaluation_grades": ["evaluations/*/grades/*.parquet"],
}
"""Where the shards of each kind are, below the data folder."""

_RECORDS = {
    "metrics": (
        "metrics/*.json",
        {
            "checkpoint": "varchar", "greedy": "double", "greedy_se": "double", "avg_at_k": "double",
            "avg_at_k_se": "double", "pass_at_k": "double", "k": "integer", "prompts": "integer", "graded": "integer",
            "mean_length": "double", "truncated": "double", "repetition": "double", "validation_kl": "double",
        },
    ),
    "drift": (
        "drift/*.json",
        {
            "round": "varchar", "policy": "varchar", "bound": "double", "floor": "double",
            "shards": "map(varchar, struct(drift double, margin double, responses integer, "
            "effective_sample_size double, written_in varchar, kept boolean))",
        },
    ),
    "timings": (
        "timings/*.json",
        {
            "stage": "varchar", "round": "varchar", "files": "integer", "tokens": "bigint", "bytes": "bigint",
            "seconds": "double",
        },
    ),
}  # fmt: skip
"""Files of one JSON object each: where they are, and their columns."""

_TABLES = {
    "histories": ("models/*/history.csv", ("step", "learning_rate", "gradient_norm", "loss", "kl")),
    "validations": ("models/*/validation.csv", ("step", "validation_kl", "validation_mass")),
}
"""CSV of numbers: where they are, and the columns that are there in any case; a recipe's diagnostics come behind."""


def write_sources(data: Path) -> Iterator[tuple[str, str]]:
    """Write, for each kind of file, its name and the statement that selects its rows."""
    for name, patterns in SHARDS.items():
        found = _find(data, patterns)
        yield (
            name,
            (
                f"select * from read_parquet({found}, filename = true, hive_partitioning = false)"
                if found
                else _select_nothing({**_list_columns(name), "filename": "varchar"})
            ),
        )
    for name, (pattern, columns) in _RECORDS.items():
        listed = ", ".join(f"{column}: '{kind}'" for column, kind in columns.items())
        found = _find(data, [pattern])
        yield (
            name,
            (
                f"select * exclude (filename) from read_json({found}, columns = {{{listed}}}, filename = true)"
                if found
                else _select_nothing(columns)
            ),
        )
    for name, (pattern, columns) in _TABLES.items():
        empty = _select_nothing({"checkpoint": "varchar", **dict.fromkeys(columns, "double")})
        found = _find(data, [pattern])
        # A column that is blank throughout would be taken for text: every cell is read as text, and made a number.
        rows = (
            "select regexp_extract(filename, '([^/]+)/[a-z]+[.]csv$', 1) as checkpoint, "
            "columns(* exclude (filename))::double from "
            f"read_csv({found}, all_varchar = true, union_by_name = true, filename = true, header = true)"
        )
        yield name, f"{empty} union all by name {rows}" if found else empty


def _list_columns(name: str) -> dict[str, str]:
    """List the columns of a kind of shards, with their types in SQL."""
    # They bring Arrow, which is not needed where all kinds have files.
    from pipeline.storage.grades import GRADES
    from pipeline.storage.prompts import PROMPTS
    from pipeline.storage.rollouts import ROLLOUTS
    from pipeline.storage.scores import SCORES

    kinds = {"prompts": PROMPTS, "grades": GRADES, "scores": SCORES, "evaluation_grades": GRADES}
    return {field.name: _name_type(field.type) for field in kinds.get(name, ROLLOUTS)}


def _name_type(kind: "pa.DataType") -> str:
    """Name a type of Arrow's as SQL does (DuckDB could be given an empty table, and would load pandas for it)."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _name_type(kind.value_type)
    if pa.types.is_list(kind):
        return f"{_name_type(kind.value_type)}[]"
    if pa.types.is_struct(kind):
        return f"struct({', '.join(f'{field.name} {_name_type(field.type)}' for field in kind)})"
    names = {"string": "varchar", "int32": "integer", "uint16": "usmallint", "float": "float", "bool": "boolean"}
    return names[str(kind)]


def _find(data: Path, patterns: list[str]) -> str:
    """Write the patterns that match a file as a list in SQL; empty where none does."""
    found = [data.resolve() / pattern for pattern in patterns if any(data.glob(pattern))]
    quoted = ", ".join("'" + f"{PROTOCOL}://{path.as_posix()}".replace("'", "''") + "'" for path in found)
    return f"[{quoted}]" if quoted else ""


def _select_nothing(columns: dict[str, str]) -> str:
    return f"select {', '.join(f'null::{kind} as {column}' for column, kind in columns.items())} where false"
