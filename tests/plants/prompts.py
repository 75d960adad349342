"""Bugs in reading, comparing and filtering prompts, and in what a stage depends on."""

from tests.planting import Plant

VALUES, SAMENESS = "tests/test_prompt_values.py", "tests/test_sameness.py"
INPUTS, FIT = "tests/test_inputs.py", "tests/test_fit.py"
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
        'any(f" {question} " in f" {turn} " for window in begun for question in self._quoted[window])',
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
        "pipeline.prompts.collect:_sort_rows",
        "_differing(group)",
        "[]",
        (SAMENESS, "-k", "left_out_where"),
    ),
    Plant(
        "a file that was replaced is not read again",
        "pipeline.inputs:_hash_file",
        "[found.st_size, found.st_mtime_ns, found.st_ino]",
        "[found.st_size, found.st_mtime_ns]",
        (INPUTS, "-k", "edit_changes"),
    ),
    Plant(
        "a file that was edited is not read again",
        "pipeline.inputs:_hash_file",
        "hashed[name][0] != stamp",
        "False",
        (INPUTS, "-k", "edit_changes"),
    ),
    Plant(
        "a file that is elsewhere is forgotten",
        "pipeline.inputs:record_inputs",
        "recall().get(setting)",
        "None",
        (INPUTS, "-k", "not_on_this_machine"),
    ),
    Plant(
        "the grader is no input",
        "pipeline.inputs:list_inputs",
        "_find_grader(settings.grade.grader)",
        "None",
        (INPUTS, "-k", "edit_changes"),
    ),
    Plant(
        "no room for a response",
        "pipeline.rollouts.fit:check_prompts_fit",
        "length + response > limit",
        "length > limit + response",
        (FIT, "-k", "without_room"),
    ),
    Plant(
        "a special token in a hint",
        "pipeline.prompts.fit:Fit.find_fault",
        'hint or ""',
        '""',
        (FIT, "-k", "special_token"),
    ),
    Plant(
        "long prompts taken for short ones",
        "pipeline.prompts.fit:Fit.find_fault",
        "2 * sum(len(text.encode()) for text in texts)",
        "0",
        (FIT, "-k", "over_the_longest or leaves_no_room_in"),
    ),
]
