"""Shards against what was written: values, encodings, footers, hashes, and what other readers see of them."""

import math
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ShardError
from pipeline.storage import hashing
from pipeline.storage.grades import GRADES
from pipeline.storage.prompts import PROMPTS
from pipeline.storage.ragged import Ragged, from_lists, from_nested_lists, list_lengths
from pipeline.storage.rollouts import ROLLOUTS, Rollout, make_rollout_table
from pipeline.storage.rounding import normalise, round_to_half
from pipeline.storage.scores import SCORES, Scores, make_score_table, make_skipped_table
from pipeline.storage.shards import (
    Writer,
    count_group_rows,
    count_rows_and_tokens,
    list_shards,
    make_table,
    read_about,
    read_groups,
    read_shard,
)

ABOUT = {"stage": "test", "number": 1}
SCHEMAS = {"prompts": PROMPTS, "rollouts": ROLLOUTS, "grades": GRADES, "scores": SCORES}
every_schema = pytest.mark.parametrize("kind", SCHEMAS)

PLANES = {
    "rollouts": {"prompt_ids", "response_ids", "behaviour_logprobs", "sampling_logprobs", "behaviour_topk_ids"},
    "scores": {"sampled_logprobs", "support_ids", "support_logprobs", "tail_logprobs", "entropies"},
}
"""The columns of numbers, which must be written in byte planes, or they take twice the disk."""


def table(kind: str, rows: int = 3) -> pa.Table:
    """Rows with every column filled, and every nullable one null in some row."""
    filled = [_row(kind, number) for number in range(rows)]
    for number, field in enumerate(field for field in SCHEMAS[kind] if field.nullable):
        filled[number % rows][field.name] = None
    return pa.Table.from_pylist(filled, SCHEMAS[kind])


def _row(kind: str, number: int) -> dict:
    length = number % 4 + 1
    nats = [-0.5 * (position + 1) for position in range(length)]
    match kind:
        case "prompts":
            return {
                "prompt_id": f"p{number}", "domain": "sums", "messages": [{"role": "user", "content": f"{number} é?"}],
                "answer": "1", "hint": "count", "bucket": number, "split": "opd",
            }  # fmt: skip
        case "rollouts":
            return {
                "rollout_id": f"r{number}", "prompt_id": "p", "sample": number, "source": "student", "behaviour": "b",
                "written_in": "r1", "prompt_ids": [1, 2], "response_ids": list(range(length)),
                "behaviour_logprobs": nats, "sampling_logprobs": nats, "behaviour_topk_ids": [[3, 4]] * length,
                "segments": [0] * (length - 1) + [65535], "finish_reason": "stop", "text": "t",
            }  # fmt: skip
        case "grades":
            return {"rollout_id": f"r{number}", "correct": True, "reward": 0.5, "feedback": "good"}
    return {
        "rollout_id": f"r{number}", "sampled_logprobs": nats, "support_ids": [[5], [6, 7], [], [8]][:length],
        "support_logprobs": [[-0.25], [-0.5, -2.0], [], [-1.0]][:length], "own": [1, 2, 0, 1][:length],
        "tail_logprobs": [-1.0, -math.inf, 0.0, -3.0][:length], "entropies": [0.5] * length, "context_hash": "c",
        "skipped": None,
    }  # fmt: skip


def write(path, content: pa.Table, schema=None, identity=ABOUT, pieces=1):
    with Writer(path, schema or content.schema, identity, {"torch": "2"}) as writer:
        for start in range(0, content.num_rows, -(-content.num_rows // pieces)):
            writer.write(content.slice(start, -(-content.num_rows // pieces)))
    return path


@every_schema
def test_every_column_is_read_as_it_was_written(tmp_path, kind):
    written = table(kind)
    path = write(tmp_path / "a.parquet", written)
    assert read_shard(path, SCHEMAS[kind]).to_pylist() == written.to_pylist()
    some = SCHEMAS[kind].names[::-2]
    assert read_shard(path, SCHEMAS[kind], some).column_names == some


@every_schema
def test_a_shard_without_rows_is_read_as_such(tmp_path, kind):
    path = tmp_path / "a.parquet"
    with Writer(path, SCHEMAS[kind], ABOUT, {}):
        pass
    found = read_shard(path, SCHEMAS[kind])
    assert found.num_rows == 0
    assert found.column_names == SCHEMAS[kind].names
    assert count_rows_and_tokens(path) == (0, 0)


def test_rows_are_in_groups_however_they_were_written(tmp_path):
    written = table("grades", 150)
    for pieces in (1, 7, 150):
        path = write(tmp_path / f"{pieces}.parquet", written, pieces=pieces)
        assert count_group_rows(path) == [64, 64, 22]
        assert read_shard(path, GRADES).equals(written)
        assert [group.num_rows for group in read_groups(path, GRADES)] == [64, 64, 22]


def test_the_footer_says_how_the_shard_was_made(tmp_path):
    path = write(tmp_path / "a.parquet", table("grades"))
    assert read_about(path) == {"identity": ABOUT, "made_with": {"torch": "2"}}


@pytest.mark.parametrize("kind", PLANES)
def test_numbers_are_in_byte_planes_and_nothing_else_is(tmp_path, kind):
    path = write(tmp_path / "a.parquet", table(kind))
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    planes = {column.path_in_schema.split(".")[0] for column in columns if "BYTE_STREAM_SPLIT" in column.encodings}
    assert planes == PLANES[kind]
    assert {column.compression for column in columns} == {"ZSTD"}


@every_schema
def test_duckdb_reads_every_column_without_potstill(tmp_path, kind):
    written = table(kind, 5)
    path = write(tmp_path / "a.parquet", written)
    found = duckdb.execute(f"select * from '{path}'").fetchall()
    assert [dict(zip(written.column_names, row, strict=True)) for row in found] == written.to_pylist()


def test_size_counts_rows_and_response_tokens(tmp_path):
    for kind, expected in (("rollouts", (5, 11)), ("scores", (5, 10)), ("grades", (5, 0))):
        assert count_rows_and_tokens(write(tmp_path / f"{kind}.parquet", table(kind, 5))) == expected


@given(st.lists(st.one_of(st.floats(-80, -(2**-20), width=32), st.just(-math.inf), st.just(0.0)), max_size=30))
def test_rounding_errs_by_half_a_unit_of_fp16_and_keeps_infinities(values):
    exact = np.array(values, np.float32)
    rounded = round_to_half(exact)
    assert rounded.dtype == np.float32
    np.testing.assert_array_equal(np.isneginf(rounded), np.isneginf(exact))
    finite = exact[np.isfinite(exact)].astype(np.float64)
    _, exponent = np.frexp(finite)
    assert (np.abs(rounded[np.isfinite(exact)] - finite) <= np.ldexp(0.5, exponent - 11)).all()
    assert not (rounded[np.isfinite(exact)].view(np.uint32) & 0x1FFF).any()


def test_rounding_takes_arrays_that_are_not_contiguous():
    values = np.arange(-20, 0, dtype=np.float32)[::2] / 3
    np.testing.assert_array_equal(round_to_half(values), round_to_half(values.copy()))


def test_a_score_table_has_one_list_for_each_row():
    scores = Scores(
        sampled_logprobs=np.array([-1, -2, -3], np.float32),
        ids=Ragged.from_rows([[4, 5], [], [6]], np.int32),
        logprobs=Ragged.from_rows([[-0.5, -1.5], [], [-0.25]], np.float32),
        own=np.array([2, 0, 1], np.uint16),
        tail_logprobs=np.array([-3, 0, -np.inf], np.float32),
        entropies=None,
    )
    first, second = make_score_table(["a", "b"], np.array([1, 2]), scores, ["x", "y"]).to_pylist()
    assert first["support_ids"], first["support_logprobs"] == ([[4, 5]], [[-0.5, -1.5]])
    assert (second["support_ids"], second["support_logprobs"]) == ([[], [6]], [[], [-0.25]])
    assert (first["sampled_logprobs"], second["sampled_logprobs"]) == ([-1.0], [-2.0, -3.0])
    assert (second["own"], second["tail_logprobs"], second["entropies"]) == ([0, 1], [0.0, -math.inf], None)
    assert (first["context_hash"], second["context_hash"], first["skipped"]) == ("x", "y", None)


def test_a_skipped_row_has_a_reason_and_nothing_else():
    (row,) = make_skipped_table(["a"], ["no hint"]).to_pylist()
    assert {name for name, value in row.items() if value is not None} == {"rollout_id", "skipped"}


def content(tmp_path, name, written, columns, **more):
    return hashing.hash_columns(write(tmp_path / name, written, **more), SCHEMAS["rollouts"], columns)


def test_content_is_of_the_named_columns_and_no_others(tmp_path):
    base, columns = table("rollouts"), ("rollout_id", "response_ids", "behaviour_topk_ids", "segments", "source")
    known = content(tmp_path, "base.parquet", base, columns)
    assert content(tmp_path, "order.parquet", base, columns[::-1]) == known
    assert content(tmp_path, "fewer.parquet", base, columns[1:]) != known
    for number, name in enumerate(base.column_names):
        rows = base.to_pylist()
        rows[1][name] = _row("rollouts", 3)[name]
        rows[1]["source"] = "gold" if name == "source" else "student"
        other = pa.Table.from_pylist(rows, base.schema)
        changed = not other.column(name).equals(base.column(name))
        found = content(tmp_path, f"{number}.parquet", other, columns)
        assert (found != known) == (name in columns and changed)


def test_content_does_not_depend_on_how_the_shard_was_written(tmp_path):
    written, columns = table("rollouts", 150), ROLLOUTS.names
    known = content(tmp_path, "a.parquet", written, columns)
    assert content(tmp_path, "b.parquet", written, columns, pieces=11) == known
    assert content(tmp_path, "c.parquet", written, columns, identity={"stage": "other"}) == known
    plain = tmp_path / "plain.parquet"
    pq.write_table(written, plain, compression="none", use_dictionary=False, row_group_size=64)
    assert hashing.hash_columns(plain, ROLLOUTS, columns) == known


def test_content_tells_rows_apart_that_hold_the_same_values(tmp_path):
    def of(lists):
        rows = [{**_row("scores", 0), "support_ids": ids} for ids in lists]
        path = write(tmp_path / "a.parquet", pa.Table.from_pylist(rows, SCORES))
        return hashing.hash_columns(path, SCORES, ("support_ids",))

    cuts = [
        [[[1, 2]], [[3]]],
        [[[1], [2]], [[3]]],
        [[[1, 2], [3]], []],
        [[[1, 2]], None],
        [[[1, 2]], []],
        [[[3]], [[1, 2]]],
    ]
    assert len({of(lists) for lists in cuts}) == len(cuts)


def test_a_null_is_not_a_zero_an_empty_text_or_false(tmp_path):
    def of(row):
        path = write(tmp_path / "a.parquet", pa.Table.from_pylist([{"rollout_id": "r", **row}], GRADES))
        return hashing.hash_columns(path, GRADES, GRADES.names)

    rows = [{}, {"correct": False}, {"reward": 0.0}, {"feedback": ""}]
    assert len({of(row) for row in rows}) == len(rows)


def test_the_digest_tells_its_parts_apart():
    assert hashing.digest("ab", "c") != hashing.digest("a", "bc")
    assert hashing.digest("a") == hashing.digest(b"a")
    assert hashing.fingerprint({"a": 1, "b": [2, 3]}) == hashing.fingerprint({"b": [2, 3], "a": 1})


def test_a_fingerprint_stays_what_it_was():
    """From the identity as written here; a change would have every user's shards made again."""
    identity = {"stage": "score", "version": [1, 2], "model": {"name": "é", "share": 0.1}, "none": None, "yes": True}
    assert hashing.fingerprint(identity) == "0312713cd89ac764d437d7c13e59d59a"


def test_an_identity_that_json_cannot_hold_is_an_error():
    with pytest.raises(ValueError, match="JSON"):
        hashing.fingerprint({"share": float("nan")})


def _cut_off(path):
    path.write_bytes(path.read_bytes()[:-50])


def _spoiled(path):
    data = bytearray(path.read_bytes())
    data[4:300] = bytes(296)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [_cut_off, _spoiled])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = write(tmp_path / "a.parquet", table("rollouts", 100))
    damage(path)
    with pytest.raises(ShardError, match=r"a\.parquet is cut off or damaged"):
        read_shard(path, ROLLOUTS)


def test_a_missing_file_is_named_with_what_brings_it(tmp_path):
    with pytest.raises(ShardError, match=r"a\.parquet is missing.*dvc pull"):
        read_about(tmp_path / "a.parquet")


def test_a_foreign_parquet_file_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(ShardError, match=r"a\.parquet is Parquet, but no shard"):
        read_about(path)


def test_missing_columns_are_named(tmp_path):
    path = write(tmp_path / "a.parquet", table("grades"))
    with pytest.raises(ShardError, match=r"a\.parquet lacks sampled_logprobs, .*it has rollout_id, correct"):
        read_shard(path, SCORES)


@every_schema
def test_a_column_that_older_files_lack_leaves_their_others_readable(tmp_path, kind):
    path = write(tmp_path / "a.parquet", table(kind), identity={"stage": "refresh"})
    wide = SCHEMAS[kind].append(pa.field("noted", pa.string()))
    assert read_shard(path, wide, SCHEMAS[kind].names).to_pylist() == table(kind).to_pylist()
    asked_for_it = r"a\.parquet lacks noted: .* by the stage `refresh` of another version .*; `dvc repro` runs it again"
    with pytest.raises(ShardError, match=asked_for_it):
        read_shard(path, wide)


@every_schema
def test_a_nullable_column_that_nobody_fills_is_null(tmp_path, kind):
    wide = SCHEMAS[kind].append(pa.field("noted", pa.list_(pa.float32())))
    given = {name: table(kind).column(name).combine_chunks() for name in SCHEMAS[kind].names}
    path = write(tmp_path / "a.parquet", make_table(given, wide))
    assert read_shard(path, wide, ["noted"]).column("noted").null_count == 3
    assert read_shard(path, SCHEMAS[kind]).to_pylist() == table(kind).to_pylist()


def test_a_column_that_must_be_filled_or_that_no_schema_has_is_a_mistake_of_ours():
    with pytest.raises(KeyError, match="rollout_id"):
        make_table({"correct": [True]}, GRADES)
    with pytest.raises(AssertionError, match="noted"):
        make_table({"rollout_id": ["r"], "noted": [1]}, GRADES)


def test_a_rollout_becomes_the_row_that_it_says():
    rows: list[dict[str, Any]] = [_row("rollouts", number) | {"segments": None} for number in range(3)]
    said = [{name: value for name, value in row.items() if name != "segments"} for row in rows]
    assert make_rollout_table([Rollout(**row) for row in said]).to_pylist() == rows
    none: dict[str, Any] = {"sampling_logprobs": None, "behaviour_topk_ids": None}
    bare = make_rollout_table([Rollout(**(row | none)) for row in said])
    assert bare.to_pylist() == [row | none for row in rows]
    assert make_rollout_table([]).schema.equals(ROLLOUTS)


def test_a_folder_without_shards_names_the_stage(tmp_path):
    with pytest.raises(ShardError, match="dvc repro score"):
        list_shards(tmp_path, "score")
    for name in ("b.parquet", "a.parquet"):
        write(tmp_path / name, table("grades"))
    assert [path.name for path in list_shards(tmp_path, "score")] == ["a.parquet", "b.parquet"]


def _stored(probabilities: list[float], kept: int) -> tuple[Ragged, np.ndarray]:
    """One token's entries as a shard has them, and the tail."""
    logprobs = np.log(np.array(probabilities) / math.fsum(probabilities))
    rest = math.fsum(np.exp(logprobs[kept:]))
    tails = np.array([math.log(rest) if rest else -math.inf], np.float32)
    return Ragged.from_rows([round_to_half(logprobs[:kept].astype(np.float32))], np.float32), tails


@given(
    probabilities=st.one_of(
        st.lists(st.floats(1e-9, 1), min_size=1, max_size=30),
        st.integers(1, 3000).map(lambda count: [1.0] * count),  # all values round the same way
    ),
    share=st.floats(0, 1),
)
def test_what_was_stored_is_a_distribution_again(probabilities, share):
    logprobs, tails = _stored(probabilities, math.ceil(share * len(probabilities)))
    values, tail = normalise(logprobs, tails, Path("here"))
    total = math.fsum([*np.exp(values.astype(np.float64)), *np.exp(tail.astype(np.float64))])
    assert total == pytest.approx(1, abs=2e-6)
    assert np.abs(values - logprobs.values).max(initial=0) < 5e-3


@pytest.mark.parametrize("excess", [2e-3, -2e-3, math.nan])
def test_what_no_rounding_explains_is_refused(excess):
    logprobs = Ragged.from_rows([[math.log(0.5)], [math.log(0.5) + excess]], np.float32)
    with pytest.raises(ShardError, match=r"here is damaged: the .* sum to .*`find \. -samefile here -delete`"):
        normalise(logprobs, np.full(2, math.log(0.5) + excess * np.array([0, 1]), np.float32), Path("here"))


def test_an_id_of_probability_zero_stays_one():
    logprobs = Ragged.from_rows([[math.log(0.5), -math.inf]], np.float32)
    values, tails = normalise(logprobs, np.array([math.log(0.5)], np.float32), Path("here"))
    np.testing.assert_allclose(np.exp([*values, *tails]), [0.5, 0, 0.5], atol=1e-6)


def test_rows_of_ragged_values_are_what_went_in():
    rows = Ragged.from_rows([[1, 2], [], [3]], np.int32)
    assert [row.tolist() for row in rows] == [[1, 2], [], [3]]
    assert rows.lengths.tolist() == [2, 0, 1]
    assert len(Ragged.from_rows([], np.int32)) == 0


def test_list_columns_become_ragged_values_in_any_chunks():
    column = pa.chunked_array([[[1], [2, 3]], [[]], [[4]]], pa.list_(pa.int32()))
    assert [row.tolist() for row in from_lists(column)] == [[1], [2, 3], [], [4]]
    nested = pa.chunked_array([[[[1], [2, 3]], []], [[[]]]], pa.list_(pa.list_(pa.int32())))
    tokens, entries = from_nested_lists(nested.slice(1))
    assert tokens.tolist() == [0, 1]
    assert [row.tolist() for row in entries] == [[]]


def test_a_null_row_has_no_values_whatever_lies_in_its_place():
    offsets, values = pa.array([0, 2, 4], pa.int32()), pa.array([1, 2, 3, 4], pa.int32())
    column = pa.ListArray.from_arrays(offsets, values, mask=pa.array([True, False]))
    assert list_lengths(column).tolist() == [0, 2]
