"""Bugs in what is found out about damaged files."""

from tests.planting import Plant

DAMAGE = "tests/test_damage.py::test_"
WHOLE = "tests/test_whole.py::test_"
FLIPS = f"{DAMAGE}a_flipped_bit_in_the_values_is_never_read_as_another_value"

WRITER = """pq.ParquetWriter(
    path, self._schema, compression="zstd", compression_level=1,
    use_dictionary=[name for name in leaves if name not in planes],
    column_encoding=dict.fromkeys(planes, "BYTE_STREAM_SPLIT"), write_page_checksum=True,
)"""
READ = "tests/test_damaged_inputs.py"

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
    Plant(
        "a file that is renamed before it is on the disk",
        "pipeline.storage.whole:write_whole",
        "os.fsync(file.fileno())",
        "None",
        (f"{WHOLE}a_name_stands_for_what_is_on_the_disk",),
    ),
    Plant(
        "a file that is written in place",
        "pipeline.storage.whole:write_whole",
        'path.with_name(f"{path.name}.making-{uuid.uuid4().hex}")',
        "path",
        (f"{WHOLE}a_file_that_dvcs_cache_has_too_is_not_written_in_place",),
    ),
    Plant(
        "a note of another entry",
        "pipeline.storage.store:Store._read_note",
        "read_identity(final) if identity is None else identity",
        "identity or {}",
        (f"{WHOLE}a_note_that_the_power_took_is_written_anew",),
    ),
    Plant(
        "a changed entry that the store gives out",
        "pipeline.storage.store:_check_whole",
        "hashing.hash_path(final) != entry.content",
        "False",
        (f"{WHOLE}what_was_changed_in_the_store_is_not_given_out",),
    ),
    Plant(
        "a shard that is read as it is found",
        "pipeline.storage.manifest:verify_folder",
        "hashing.hash_path(path) != entry.content",
        "False",
        ("tests/test_damage.py::test_a_flipped_bit_anywhere_ends_the_stage_that_would_read_the_shard",),
    ),
    *(
        Plant(f"{stage} reads what it finds", f"stages.{stage}:{function}", call, "None", (READ,))
        for stage, function, call in (
            ("teacher_rollouts", "run", "check_folders(folders.prompts)"),
            ("sft", "_list_sources", "check_folders(folders.rollouts, folders.grades)"),
            ("refresh", "run", "check_folders(folders.prompts, folders.previous)"),
            ("score", "run", "check_folders(folders.rollouts, folders.prompts, folders.grades, folders.previous)"),
            ("train", "run", "_check_whole(recipe, folders)"),
            ("evaluate", "run", "check_folders(folders.prompts)"),
        )
    ),
    Plant(
        "a checkpoint that is read as it is found",
        "pipeline.models.record:read_model",
        "check_checkpoint(path)",
        "None",
        (READ,),
    ),
    Plant(
        "weights that nobody hashes again",
        "pipeline.models.seal:_compare",
        "hash_file(folder / name) != listed[name]",
        "False",
        (f"{WHOLE}every_flipped_bit_in_a_checkpoint_is_named",),
    ),
    Plant(
        "a record that does not answer for itself",
        "pipeline.storage.whole:read_json",
        "seal != [_hash(found)]",
        "False",
        (f"{WHOLE}every_flipped_bit_in_a_checkpoint_is_named",),
    ),
    Plant(
        "SQL that may write",
        "pipeline.report.sql:Database.__init__",
        "self._run(\"set disabled_filesystems = 'LocalFileSystem'\")",
        "None",
        ("tests/test_readonly.py::test_no_statement_writes_a_file",),
    ),
    Plant(
        "one place in a file for all threads",
        "pipeline.report.readonly:_ReadFile.read",
        "threading.get_ident()",
        "0",
        ("tests/test_readonly.py::test_a_thread_reads_where_it_sought_whatever_others_sought_since",),
    ),
    Plant(
        "an experiment's copy that has a store of its own",
        "pipeline.project:find_home",
        "original or project",
        "project",
        ("tests/test_project.py::test_an_experiments_copy_uses_the_projects_store_and_its_own_data",),
    ),
    Plant(
        "an empty lock file that counts as one",
        "pipeline.storage.dvc_files:repair_dvc_files",
        "not _is_lock(lock)",
        "False",
        ("tests/test_project.py::test_a_lock_file_cut_by_a_power_cut_is_set_aside_and_dvc_runs_again",),
    ),
    Plant(
        "a grader's child that is left behind",
        "pipeline.grading.pool:_kill_with_children",
        "process.children(recursive=True)",
        "[]",
        ("tests/test_grading.py::test_what_a_grader_starts_ends_with_it_in_a_session_of_its_own_too",),
    ),
]
