"""Bugs in what a new shard takes over from others."""

from tests.planting import Plant

GROWTH = "tests/test_growth.py::test_what_exists_is_taken_over_and_the_result_is_that_of_a_run_from_nothing"

PLANTS = [
    Plant(
        "every sample is the first",
        "pipeline.rollouts.write:find_families",
        '("prompt_id", "sample")',
        '("prompt_id",)',
        (f"{GROWTH}[more samples]",),
    ),
    Plant(
        "the seed in no family",
        "pipeline.storage.hashing:fingerprint_family",
        'name != "rows"',
        'name not in ("rows", "seed")',
        (f"{GROWTH}[another seed]",),
    ),
    Plant(
        "scores without the ids asked for",
        "pipeline.scoring.write:_has_asked",
        "asked is None",
        "True",
        (f"{GROWTH}[ids of their own]",),
    ),
    Plant(
        "a grade by another answer",
        "pipeline.grading.write:_hash_answer",
        "hashing.digest(answer)",
        'hashing.digest("")',
        (f"{GROWTH}[an answer]",),
    ),
    Plant(
        "a grader's failure for ever",
        "pipeline.grading.write:Grading._grade",
        "not grade.failed",
        "True",
        ("tests/test_growth.py::test_a_response_whose_grader_failed_is_graded_again",),
    ),
    Plant(
        "rows taken over come first",
        "pipeline.storage.families:put_in_order",
        "pa.array(np.argsort(positions), pa.int64())",
        "pa.array(sorted(order), pa.int64())",
        (f"{GROWTH}[prompts added where views ask]",),
    ),
    Plant(
        "a shard near the cut that nobody measures again",
        "pipeline.rollouts.stale:find_undecided",
        "found.margin > max(abs(found.nats - cut), CLOSE * cut)",
        "False",
        ("tests/test_drift.py::test_shards_are_measured_until_the_policy_is_sure_or_the_limit_is_reached",),
    ),
    Plant(
        "a drift as sure as if the whole shard had been measured",
        "pipeline.rollouts.drift:_standard_error",
        "count == of",
        "True",
        ("tests/test_drift.py::test_its_error_is_what_other_responses_of_the_shard_would_have_given",),
    ),
]
