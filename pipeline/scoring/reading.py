"""Reading a bucket for the plan: each of its shards is opened once, for all views together."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.settings.views import Feedback, Plain, Sibling, View
from pipeline.storage.bucket import Bucket
from pipeline.storage.grades import GRADE_COLUMNS, GRADES, Grade, list_grades
from pipeline.storage.hashing import ColumnHashes
from pipeline.storage.prompts import PROMPT_COLUMNS, PROMPTS, Prompt, list_prompts
from pipeline.storage.ragged import from_lists
from pipeline.storage.rollouts import TOKEN_COLUMNS
from pipeline.storage.shards import open_shard, parse_footer, read_group, read_groups


@dataclass(frozen=True, eq=False)
class BucketRows:
    """The rows of one bucket, without their tokens; what no view needs is empty.

    Attributes:
        bucket: the shards.
        about: the footer of the rollouts: `identity` and `made_with`.
        hashes: of the columns that were read, by kind of shard: `rollouts`, `prompts`, `grades`.
        prompt_lengths: int32 [rows], tokens of the prompt as the student saw it.
        response_lengths: int32 [rows], tokens.
        rollout_ids: of each row.
        prompt_keys: of each row the `prompt_id` of its prompt.
        texts: of each row.
        prompts: by `prompt_id`.
        grades: of each row.
    """

    bucket: Bucket
    about: dict[str, Any]
    hashes: dict[str, ColumnHashes]
    prompt_lengths: np.ndarray
    response_lengths: np.ndarray
    rollout_ids: list[str] = field(default_factory=list)
    prompt_keys: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    prompts: dict[str, Prompt] = field(default_factory=dict)
    grades: list[Grade] = field(default_factory=list)


def read_bucket(bucket: Bucket, views: Iterable[View]) -> BucketRows:
    """Read what some views need to know of a bucket before it is scored.

    Raises:
        ShardError: a shard is missing, damaged, or not of the same rows as the rollouts.
    """
    views = list(views)
    has_prompts = any(view.domains or not isinstance(view.context, Plain) for view in views)
    has_grades = any(isinstance(view.context, Sibling | Feedback) for view in views)
    has_texts = any(isinstance(view.context, Sibling) for view in views)
    columns = [*TOKEN_COLUMNS, *(["prompt_id"] if has_prompts else []), *(["text"] if has_texts else [])]
    if any(view.support.behaviour for view in views):
        columns.append("behaviour_topk_ids")
    rows = _read_rollouts(bucket, columns)
    if has_prompts:
        assert bucket.prompts is not None, "a bucket that is scored names its prompts"
        groups = list(read_groups(bucket.prompts, PROMPTS, PROMPT_COLUMNS))
        rows.hashes["prompts"] = _hash_groups(groups, PROMPT_COLUMNS)
        rows.prompts.update({prompt.prompt_id: prompt for group in groups for prompt in list_prompts(group)})
    if has_grades:
        assert bucket.grades is not None, "a bucket that is scored names its grades"
        groups = list(read_groups(bucket.grades, GRADES, GRADE_COLUMNS))
        rows.hashes["grades"] = _hash_groups(groups, GRADE_COLUMNS)
        table = pa.concat_tables(groups) if groups else GRADES.empty_table().select(GRADE_COLUMNS)
        rows.grades.extend(list_grades(table, bucket.grades, rows.rollout_ids, bucket.rollouts))
    return rows


def _read_rollouts(bucket: Bucket, columns: list[str]) -> BucketRows:
    """Read a row group at a time: the tokens are hashed and counted, and not kept."""
    hashes = ColumnHashes(columns)
    kept: dict[str, list[str]] = {"rollout_id": [], "prompt_id": [], "text": []}
    lengths: dict[str, list[np.ndarray]] = {name: [np.empty(0, np.int32)] for name in ("prompt_ids", "response_ids")}
    with open_shard(bucket.rollouts, columns) as file:
        about = parse_footer(bucket.rollouts, file)
        for number in range(file.num_row_groups):
            group = read_group(bucket.rollouts, file, number, columns)
            hashes.feed(group)
            for name, values in kept.items():
                if name in columns:
                    values += group.column(name).to_pylist()
            for name, counts in lengths.items():
                counts.append(from_lists(group.column(name)).lengths.astype(np.int32))
    prompt_lengths, response_lengths = (np.concatenate(counts) for counts in lengths.values())
    ids, keys, texts = kept.values()
    return BucketRows(bucket, about, {"rollouts": hashes}, prompt_lengths, response_lengths, ids, keys, texts)


def _hash_groups(groups: list[pa.Table], columns: Iterable[str]) -> ColumnHashes:
    hashes = ColumnHashes(columns)
    for group in groups:
        hashes.feed(group)
    return hashes
