"""Settings of prompts: where they come from, what they are for, and how they are spread over shards."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.settings.reading import NonNegative, Settings

Split = Literal["sft", "opd", "evaluation"]

Text = Annotated[str, Field(min_length=1)]

Countable = Annotated[int, Field(gt=0, lt=2**31)]
"""A count that fits the columns of shards, and Python's own counters."""


class Fields(Settings):
    """Which field of a source's row holds what."""

    prompt: Text = "prompt"
    """Either one user message as text, or a list of {role, content}."""
    answer: Text | None = None
    hint: Text | None = None
    domain: Text | None = None
    system: Text | None = None
    """The row's own system message, where it is not null."""


class Source(Settings):
    """Where prompts come from: exactly one of `path`, `dataset` and `sums`."""

    split: Split
    """What the prompts are for: `sft` (teacher writes), `opd` (student writes) or `evaluation`."""
    path: Text | None = None
    """A .jsonl or .parquet file."""
    dataset: Text | None = None
    """`owner/name@revision` of a data set on the Hugging Face Hub, or a folder that `datasets` can read."""
    subset: Text | None = None
    dataset_split: Text = "train"
    sums: Annotated[int, Field(ge=0)] | None = None
    """The demo's task: sums of three numbers, drawn with this seed. Needs `limit`."""
    hinted: bool = False
    """`sums`: the prompt itself shows the hint, as `context: hint` would; a student learns from it to use hints."""
    fields: Fields = Fields()
    answer_after: Text | None = None
    """The answer is what follows the last occurrence of this text (GSM8K: `####`)."""
    domain: Text = "all"
    """Domain of every row, where `fields.domain` does not name a field; of `sums` it is `sums` if left out."""
    system: Text | None = None
    """A system message put before every prompt."""
    limit: Countable | None = None
    """Take the first rows only."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = [name for name in ("path", "dataset", "sums") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of `path`, `dataset` and `sums` is expected, found {given or 'none'}")
        if self.sums is not None and self.limit is None:
            raise ValueError("`sums` needs `limit`: how many sums to draw")
        if self.hinted and self.sums is None:
            raise ValueError(f"`hinted` does nothing with `{given[0]}`: leave it out")
        for origin, needless in (("sums", "fields"), ("dataset", "subset"), ("dataset", "dataset_split")):
            if needless in self.model_fields_set and (origin in given) == (origin == "sums"):
                raise ValueError(f"`{needless}` does nothing with `{given[0]}`: leave it out")
        return self


class Prompts(Settings):
    """Settings of prompts."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    buckets: Countable
    """Shards that the prompts of each split are spread over; a prompt's bucket never changes."""
    held_out: NonNegative = 0
    """The bucket of the opd split that is scored but never trained on, for validation KL."""
    contradictions: Literal["refuse", "drop"] = "refuse"
    """What becomes of prompts that the sources give with different answers, hints or domains."""
    max_tokens: Countable | None = None
    """Longest prompt, tokens of the teacher's and of the student's, chat template included; null: what models take."""
    unfit: Literal["refuse", "drop"] = "refuse"
    """What becomes of longer prompts, and of those with a special token's text, which would end a turn."""

    @model_validator(mode="after")
    def _bucket_exists(self) -> Self:
        if self.held_out >= self.buckets:
            raise ValueError(f"held_out is bucket {self.held_out}, there are {self.buckets} (0 to {self.buckets - 1})")
        return self
