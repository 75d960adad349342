"""Bugs in reading, comparing and filtering prompts, and in what a stage depends on."""

from tests.planting import Plant

VALUES, SAMENESS = "tests/test_prompt_values.py", "tests/test_sameness.py"
PLANTS = [
    Plant(
        "an integer through a float",
        "pipeline.prompts.files:_integer",
        "Number(digits)",
        "Number(str(float(digits)))",
        (VALUES, "-k", "digits_of_its_file"),
    ),
    Plant(
        "a float32 as Python's float",
        "pipeline.prompts.files:_spell_float",
        "str(exact(value))",
        "str(value)",
        (VALUES, "-k", "digits_of_its_type"),
    ),
    Plant(
        "the last of two keys",
        "pipeline.prompts.files:_object",
        "len(row) < len(pairs)",
        "len(row) > len(pairs)",
        (VALUES, "-k", "no_value_can_be_read"),
    ),
    Plant(
        "text of a folder read by its guesses",
        "pipeline.prompts.data_sets:read_data_set",
        "kind in _OURS",
        "not kind",
        (VALUES, "-k", "looks_like_a_number or digits_of_its_file"),
    ),
    Plant(
        "spelled messages asked as text",
        "pipeline.prompts.sources:_prompt_text",
        "_MESSAGES.match(text)",
        "False",
        (VALUES, "-k", "spelled_as_text"),
    ),
    Plant(
        "what nobody sees makes another prompt",
        "pipeline.prompts.sameness:_plain",
        'kind == "Cf"',
        'kind == "Co"',
        (SAMENESS, "-k", "duplicate"),
    ),
    Plant(
        "superscripts joined with digits",
        "pipeline.prompts.sameness:_plain",
        "not made_of.startswith(_KEPT_TAGS)",
        "True",
        (SAMENESS, "-k", "something_else"),
    ),
    Plant(
        "evaluation prompts found as a whole only",
        "pipeline.prompts.sameness:Asked._is_in_turn",
        'any(f" {question} " in f" {turn} " for question in begun)',
        "False",
        (SAMENESS, "-k", "in_no_training"),
    ),
    Plant(
        "near-duplicates on both sides of the split",
        "pipeline.prompts.collect:_make_prompts",
        "buckets.setdefault(ask_messages(row.messages), choose_bucket(prompt_id, settings.buckets))",
        "choose_bucket(prompt_id, settings.buckets)",
        (SAMENESS, "-k", "one_side"),
    ),
    Plant(
        "a contradiction taken for a duplicate",
        "pipeline.prompts.collect:collect_prompts",
        "not _differing(group)",
        "True",
        (SAMENESS, "-k", "left_out_where"),
    ),
]
