"""Shards of prompts: messages, and where known an answer and a hint."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.storage.shards import WORD, Writer, read_shard

VERSION = 1  # raise it when a column's meaning changes; shards of prompts are then made again

PROMPTS = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("domain", WORD, nullable=False),
        pa.field("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])), nullable=False),
        pa.field("answer", pa.string()),
        pa.field("hint", pa.string()),
        pa.field("bucket", pa.int32(), nullable=False),
        pa.field("split", WORD, nullable=False),
    ]
)


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        prompt_id: hash of the messages, 32 hex digits.
        domain: for recipes that tell domains apart.
        messages: {role, content}, the last one the user's; as chat templates take them.
        answer: the gold answer, None where unknown.
        hint: privileged information, None where there is none.
        bucket: number of the shard that its rollouts and scores are in.
        split: `sft`, `opd`, `validation` (the held-out bucket of opd) or `evaluation`.
    """

    prompt_id: str
    domain: str
    messages: tuple[dict[str, str], ...]
    answer: str | None
    hint: str | None
    bucket: int
    split: str


PROMPT_COLUMNS = tuple(field.name for field in fields(Prompt))
"""The columns that a `Prompt` is read from."""


def write_prompts(path: Path, identity: dict[str, Any], made_with: dict[str, Any], prompts: Iterable[Prompt]) -> None:
    """Write one shard of prompts."""
    with Writer(path, PROMPTS, identity, made_with) as writer:
        writer.write(pa.Table.from_pylist([make_prompt_row(prompt) for prompt in prompts], PROMPTS))


def read_prompts(path: Path) -> list[Prompt]:
    """Read the prompts of one shard, ordered by `prompt_id`.

    Raises:
        ShardError: the file is missing, damaged or of another format.
    """
    return list_prompts(read_shard(path, PROMPTS, PROMPT_COLUMNS))


def list_prompts(table: pa.Table) -> list[Prompt]:
    """List the prompts of some rows of a shard."""
    rows = table.to_pylist()
    return [Prompt(**row | {"messages": tuple(row["messages"])}) for row in rows]


def make_prompt_row(prompt: Prompt) -> dict[str, Any]:
    """Spell a prompt as the columns of its row; a column that `Prompt` does not have is null in the shard."""
    return vars(prompt) | {"messages": list(prompt.messages)}
