"""Bugs in what is found out about damaged files."""

from tests.planting import Plant

DAMAGE = "tests/test_damage.py::test_"
FLIPS = f"{DAMAGE}a_flipped_bit_in_the_values_is_never_read_as_another_value"

WRITER = """pq.ParquetWriter(
    path, self._schema, compression="zstd", compression_level=1,
    use_dictionary=[name for name in leaves if name not in planes],
    column_encoding=dict.fromkeys(planes, "BYTE_STREAM_SPLIT"), write_page_checksum=True,
)"""

PLANTS = [
    Plant(
        "shards without checksums",
        "pipeline.storage.shards:Writer.__init__",
        WRITER,
        WRITER.replace("write_page_checksum=True", "write_page_checksum=False"),
        (FLIPS,),
    ),
    Plant(
        "checksums that nobody compares",
        "pipeline.storage.shards:open_parquet",
        "pq.ParquetFile(path, page_checksum_verification=True)",
        "pq.ParquetFile(path)",
        (FLIPS,),
    ),
    Plant(
        "two identities in one footer",
        "pipeline.storage.shards:parse_footer",
        "said != again",
        "False",
        (f"{DAMAGE}another_identity_in_one_copy_of_the_footer_is_damage",),
    ),
]
