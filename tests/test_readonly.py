"""The file system that SQL reads through: nothing is written by any statement, and threads read what is there."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import PotstillError
from pipeline.report.readonly import ReadOnlyFiles
from pipeline.report.sql import Database
from tests import example_data

WRITING = (
    "copy (select 1 as a) to '{target}'",
    "copy (select 1 as a) to $${target}$$",
    'copy (select 1 as a) to "{target}"',
    "copy (select 1 as a) to 'shards://{target}'",
    "explain analyze copy (select 1 as a) to '{target}'",
    "prepare p as copy (select 1 as a) to '{target}'; execute p",
    "copy (select 1 as a, 2 as b) to '{folder}' (format parquet, partition_by (a), overwrite)",
    "copy (select 1 as a, 2 as b) to 'shards://{folder}' (format parquet, partition_by (a), overwrite)",
    "export database '{folder}'",
    "attach '{target}' as other",
    "attach '{folder}/new.db' as other; create table other.t as select 1",
    "set disabled_filesystems = ''; copy (select 1 as a) to '{target}'",
    "reset disabled_filesystems; copy (select 1 as a) to '{target}'",
    "pragma enable_profiling; set profiling_output = '{folder}/new.json'; select 1",
    "copy (select 1 as a) to '{outside}'",
)


@pytest.mark.parametrize("statement", WRITING)
def test_no_statement_writes_a_file(statement: str, tmp_path: Path):
    data = example_data.make(tmp_path)
    folder = data / "rollouts"
    before = _contents(tmp_path)
    written = statement.format(target=folder / "r1/00000.parquet", folder=folder, outside=tmp_path / "x.csv")
    with Database(data) as database, pytest.raises(PotstillError):
        database.draw_boxes(written)
    assert _contents(tmp_path) == before


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_file_of_the_users_own_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.csv").write_text("a\n7\n")
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with Database(tmp_path / "data") as database:
        assert database.ask("select a from read_csv('shards://*.csv')") == [{"a": 7}]
        assert database.ask(f"select a from read_csv('shards://{tmp_path}/mine.csv')") == [{"a": 7}]


def test_threads_that_read_on_continue_where_the_last_of_them_stopped(tmp_path: Path):
    """Readers of CSV and JSON hand a file from thread to thread; each once began at its beginning again."""
    (tmp_path / "file").write_bytes(b"0123456789")
    pieces: list[Any] = []
    with ReadOnlyFiles().open(str(tmp_path / "file")) as file:

        def in_a_thread(read) -> None:
            thread = threading.Thread(target=lambda: pieces.append(read()))
            thread.start()
            thread.join()

        in_a_thread(lambda: file.read(3))
        in_a_thread(lambda: file.read(3))
        file.seek(1)
        in_a_thread(lambda: (file.seek(8), file.read(2))[1])
        pieces.append(file.read(2))  # where this thread went, whatever others did since
        in_a_thread(lambda: file.read(4))
        pieces.append(file.read(4))
    assert pieces == [b"012", b"345", b"89", b"12", b"3456", b"789"]


def test_many_threads_read_one_file_each_at_its_own_place(tmp_path: Path):
    numbers = np.arange(200_000, dtype=np.int64)
    pq.write_table(pa.table({"n": numbers}), tmp_path / "many.parquet", row_group_size=1000)
    (tmp_path / "data").mkdir()
    with Database(tmp_path / "data") as database:
        for _ in range(5):
            found = database.ask(f"select sum(n) as n from read_parquet('shards://{tmp_path}/many.parquet')")
            assert found == [{"n": numbers.sum()}]


def test_a_thread_reads_where_it_sought_whatever_others_sought_since(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"0123456789")
    with ReadOnlyFiles().open(str(tmp_path / "file")) as file:
        file.seek(1)
        other = threading.Thread(target=lambda: file.seek(8))
        other.start()
        other.join()
        assert file.read(2) == b"12"
