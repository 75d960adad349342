"""Bugs in what a person sees of a command: progress, lookups, answers of SQL."""

from tests.planting import Plant

PROGRESS = "tests/test_progress.py::test_"
CLI = "tests/test_cli.py::test_"
SQL = "tests/test_sql.py::test_"

PLANTS = [
    Plant(
        "time left that counts the opening of a model",
        "pipeline.progress:Meter.start",
        "self._started = self._told_at = time.monotonic()",
        "self._told_at = time.monotonic()",
        (f"{PROGRESS}opening_a_model_is_told_before_and_does_not_count",),
    ),
    Plant(
        "a bar before the model is open",
        "pipeline.engines.open:OnDemand.make_bar",
        "self._engine is not None",
        "True",
        (f"{PROGRESS}opening_a_model_is_told_before_and_does_not_count",),
    ),
    Plant(
        "a line in the log for every response",
        "pipeline.progress:Meter._is_line_due",
        "waited >= LEAST_SECONDS_APART and is_far",
        "is_far",
        (f"{PROGRESS}a_log_file_gets_a_line_for_ten_per_cent_ten_seconds_to_a_minute_apart",),
    ),
    Plant(
        "the speed of a run that goes on counts what another did",
        "pipeline.progress:Meter._write_line",
        "self._done - self._found",
        "self._done",
        (f"{PROGRESS}work_that_was_done_before_says_nothing_of_the_speed",),
    ),
    Plant(
        "a rollout beside the teacher, whatever view is asked",
        "pipeline.report.transcript:read_transcript",
        "[view, rollout_id, round_]",
        "['teacher', rollout_id, round_]",
        (f"{CLI}show_shows_a_kept_rollout_in_the_round_and_beside_the_view_that_are_asked",),
    ),
    Plant(
        "a file that every thread reads from its beginning",
        "pipeline.report.readonly:_ReadFile.read",
        "place = self._place",
        "place = 0",
        ("tests/test_readonly.py::test_threads_that_read_on_continue_where_the_last_of_them_stopped",),
    ),
    Plant(
        "a token decoded for each row",
        "pipeline.report.decoding:make_texts",
        "set(asked) - texts.keys()",
        "asked",
        (f"{SQL}tokens_have_the_text_that_the_tokenizer_gives_each_once",),
    ),
    Plant(
        "an answer written over a shard",
        "pipeline.report.formats:write_answers",
        "out.resolve().is_relative_to(folder.resolve())",
        "False",
        (f"{CLI}sql_writes_over_nothing_that_a_stage_made",),
    ),
    Plant(
        "greedy responses among the samples",
        "stages.evaluate:_list_wanted",
        "writings[mode]",
        'writings["sampled"]',
        ("tests/test_counts.py::test_evaluations_hold_what_the_metrics_are_made_from",),
    ),
]
