"""Damaged shards against the same shards as they were written: an error that names the file, or the same values."""

import base64

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ShardError
from pipeline.storage import hashing
from pipeline.storage.manifest import Entry, check_folders, verify_folder, write_manifest
from pipeline.storage.shards import IDS, NATS, WORD, Writer, read_about, read_shard

SCHEMA = pa.schema([("rollout_id", pa.string()), ("finish", WORD), ("response_ids", IDS), ("sampled_logprobs", NATS)])
IDENTITY = {"stage": "refresh", "seed": 1}


@pytest.fixture
def shard(tmp_path):
    """A shard with columns of every encoding that shards have."""
    random = np.random.default_rng(0)
    ids = [random.integers(0, 50_000, 12).tolist() for _ in range(8)]
    columns = {
        "rollout_id": [f"row {row}" for row in range(8)],
        "finish": ["stop", "length"] * 4,
        "response_ids": ids,
        "sampled_logprobs": [random.normal(size=12).tolist() for _ in range(8)],
    }
    path = tmp_path / "00000.parquet"
    with Writer(path, SCHEMA, IDENTITY, {}) as writer:
        writer.write(pa.table(columns, SCHEMA))
    return path


def test_a_flipped_bit_in_the_values_is_never_read_as_another_value(shard):
    whole, written = shard.read_bytes(), read_shard(shard, SCHEMA)
    unseen, told = [], set()
    for place in _bytes_of_values(shard):
        shard.write_bytes(_flip(whole, place))
        try:
            if not read_shard(shard, SCHEMA).equals(written):
                unseen.append(place)
        except ShardError as error:
            told.add("00000.parquet is cut off or damaged" in str(error))
    assert not unseen
    assert told == {True}


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (b'{"identity"', b'{\xffidentity"'),
        (b'{"identity"', b'x"identity"'),
        (b'{"identity"', b'{"idemtity"'),
        (b'"made_with": {}', b'"made_with": 17'),
        (b"rollout_id", b"rollout\xffid"),
    ],
    ids=["no text", "no JSON", "another key", "another type", "a column's name"],
)
def test_damage_in_the_footer_names_the_file_in_reading_and_in_verify(shard, said, found):
    _list(shard)
    assert len(said) == len(found)
    _replace_in_arrow_schema(shard, said, found)
    _replace(shard, said, found)
    _assert_told(shard)


@pytest.mark.parametrize("replace", ["parquet", "arrow"])
def test_another_identity_in_one_copy_of_the_footer_is_damage(shard, replace):
    _list(shard)
    {"parquet": _replace, "arrow": _replace_in_arrow_schema}[replace](shard, b'"seed": 1', b'"seed": 3')
    _assert_told(shard)


def test_a_flipped_bit_anywhere_ends_the_stage_that_would_read_the_shard(shard):
    _list(shard)
    check_folders(shard.parent)
    whole = shard.read_bytes()
    for place in range(0, len(whole), 7):
        shard.write_bytes(_flip(whole, place))
        with pytest.raises(ShardError, match=r"00000\.parquet is cut off or damaged.*samefile"):
            check_folders(shard.parent)


def test_a_shard_that_no_manifest_names_ends_the_stage(shard):
    with pytest.raises(ShardError, match=r"has no \.manifest"):
        check_folders(shard.parent)
    _list(shard)
    shard.rename(shard.with_name("other.parquet"))
    with pytest.raises(
        ShardError, match=r"other\.parquet is not in \.manifest\.json \(1 more: `potstill verify` names"
    ):
        check_folders(shard.parent)


def _list(shard):
    entry = Entry(hashing.fingerprint(IDENTITY), hashing.hash_path(shard), 8, 96, shard.stat().st_size)
    write_manifest(shard.parent, {shard.name: entry})


def _assert_told(shard):
    with pytest.raises(ShardError, match=r"00000\.parquet is cut off or damaged.*samefile"):
        read_about(shard)
    assert [sentence for sentence in verify_folder(shard.parent) if "00000.parquet is cut off or damaged" in sentence]


def _replace(path, said, found):
    whole = path.read_bytes()
    assert said in whole
    path.write_bytes(whole.replace(said, found))


def _replace_in_arrow_schema(path, said, found):
    """Replace in the copy that Arrow keeps of the schema, in base64."""
    with pq.ParquetFile(path) as file:
        encoded = file.metadata.metadata[b"ARROW:schema"]
    copy = base64.b64decode(encoded)
    assert said in copy
    _replace(path, encoded, base64.b64encode(copy.replace(said, found)))


def _bytes_of_values(path):
    """Every byte of the column chunks, page headers and pages."""
    with pq.ParquetFile(path) as file:
        group = file.metadata.row_group(0)
        for number in range(group.num_columns):
            chunk = group.column(number)
            first = chunk.dictionary_page_offset or chunk.data_page_offset
            yield from range(first, first + chunk.total_compressed_size)


def _flip(whole, place):
    flipped = bytearray(whole)
    flipped[place] ^= 1 << place % 8
    return bytes(flipped)
