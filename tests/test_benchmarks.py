"""What benchmarks share: verdicts against bars written out by hand, and memory and time against known amounts."""

import json
import time

import pytest

from benchmarks import measure
from benchmarks.rows import Bar, Row, conclude, table

MIB = 2**20
ROWS = [
    Row("twice as fast", "s", 1.0, 2.0, Bar("≤", 0.5)),
    Row("slower", "s", 3.0, 2.0, Bar("≤", 1.1)),
    Row("small", "bytes", 94.0, bar=Bar("≤", 95)),
    Row("many", "tokens/s", 12_345.0, 1000.0, Bar("≥", 10)),
    Row("few", "tokens/s", 9.0, 1.0, Bar("≥", 10)),
    Row("only told", "s", 1e-5),
]


def test_a_bar_judges_the_ratio_or_where_there_is_no_baseline_the_figure():
    assert [row.ok for row in ROWS] == [True, False, True, True, False, True]


def test_the_table_has_ratios_first_and_says_what_was_missed():
    lines = table(ROWS).splitlines()[2:]
    assert lines[0] == "| 0.5 | ≤ 0.5 | twice as fast | 1 | 2 | s |"
    assert lines[1] == "| 1.5 | **≤ 1.1: missed** | slower | 3 | 2 | s |"
    assert lines[3] == "| 12.3 | ≥ 10 | many | 12,345 | 1,000 | tokens/s |"
    assert lines[5] == "|  |  | only told | 1.0e-05 |  | s |"


def test_check_exits_with_the_claims_that_miss_their_bar(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        conclude(ROWS, tmp_path / "rows.json", check=True)
    assert stopped.value.code == "missed: slower: 1.5, bar ≤ 1.1\nmissed: few: 9, bar ≥ 10"
    assert capsys.readouterr().out == table(ROWS) + "\n"
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows[1] == {
        "name": "slower", "unit": "s", "ours": 3.0, "baseline": 2.0, "bar": "≤ 1.1", "ratio": 1.5, "ok": False
    }  # fmt: skip
    conclude(ROWS, None, check=False)
    conclude([row for row in ROWS if row.ok], None, check=True)


def hold(size: int) -> int:
    return len(bytearray(b"\1") * size)


def test_peak_memory_is_the_childs_own():
    """Of the child's largest moment, and not of a parent that held more."""
    held = bytearray(b"\1") * (200 * MIB)
    (_, small), (size, large) = measure.in_child(hold, 1), measure.in_child(hold, 100 * MIB)
    assert len(held) > size == 100 * MIB
    assert 90 * MIB < large - small < 110 * MIB
    assert small < 150 * MIB


def test_seconds_are_the_median_without_the_first_turn():
    waits = iter([0.2, 0.01, 0.1, 0.01])
    found = measure.seconds({"one": lambda: time.sleep(next(waits)), "other": lambda: None}, rounds=3)
    assert 0.01 <= found["one"] < 0.05
    assert found["other"] < 0.01


def test_a_warm_up_of_its_own_comes_first_and_is_no_turn():
    done: list[str] = []
    measure.seconds({"way": lambda: done.append("way")}, rounds=2, warm_up={"way": lambda: done.append("warm")})
    assert done == ["warm", "way", "way"]
