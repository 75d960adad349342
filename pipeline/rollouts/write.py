"""Writing rollouts: from a shard of prompts to a shard of responses, by whichever model is open."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.engines.engine import OnDemand, Request, Response
from pipeline.engines.identity import engine_libraries, identify_engine
from pipeline.models.record import Model, render_prompt
from pipeline.progress import Bar, Progress
from pipeline.settings.models import EngineSettings, Sampling
from pipeline.storage import hashing
from pipeline.storage import rollouts as rollouts_format
from pipeline.storage.prompts import PROMPTS, Prompt, read_prompts
from pipeline.storage.ragged import Ragged
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.shards import Writer, count_rows_and_tokens
from pipeline.storage.store import Folder

AT_ONCE = 4096
"""Responses that are held until they are written: enough for an engine to be busy to the end."""

PROMPT_COLUMNS = ("prompt_id", "messages")
"""Of a shard of prompts, what a response depends on; a hint or an answer may change without writing anew."""


def identify_rollouts(
    stage: str,
    version: int,
    prompts: Path,
    model: Model,
    settings: EngineSettings,
    sampling: Sampling,
    samples: int,
    seed: int,
    **more: Any,
) -> dict[str, Any]:
    """Everything that decides what a shard of rollouts holds.

    Args:
        stage: that writes it.
        version: of the stage.
        prompts: the shard of prompts.
        model: that writes.
        settings: of the engine.
        sampling: the distribution drawn from.
        samples: responses to each prompt.
        seed: of the run.
        more: the round, the teacher of the SFT data; None leaves a fact out.
    """
    return {
        "stage": stage,
        "version": version,
        "format": rollouts_format.VERSION,
        "model": model.identity,
        "engine": identify_engine(settings),
        "sampling": sampling.model_dump(include={"temperature", "top_p", "top_k", "max_tokens"}),
        "samples": samples,
        "seed": seed,
        "prompts": hashing.hash_columns(prompts, PROMPTS, PROMPT_COLUMNS),
        **{name: value for name, value in more.items() if value is not None},
    }


def request_seed(seed: int, round_: str, prompt_id: str, sample: int) -> int:
    """One seed for each response, so that it does not depend on what else is written. 63 bits."""
    return int(hashing.digest(str(seed), round_, prompt_id, str(sample))[:16], 16) >> 1


@dataclass(frozen=True)
class Author:
    """Who writes, and what is kept of it.

    Attributes:
        model: opened when something is to be written.
        source: `student` or `teacher`.
        top_k: the model's own likeliest ids that are kept at each position.
        made_with: what the footer records besides the libraries, and nobody hashes.
    """

    model: OnDemand
    source: str
    top_k: int = 0
    made_with: Mapping[str, str] = field(default_factory=dict)


def obtain_rollouts(folder: Folder, wanted: Sequence[tuple[Path, dict[str, Any]]], author: Author, what: str) -> None:
    """Write what the store does not have, under one progress bar, and link everything into the output.

    Args:
        folder: the output.
        wanted: shards of prompts, each with the identity of its rollouts.
        author: who writes.
        what: the stage, for the bar and the log.
    """
    missing = [
        count_rows_and_tokens(prompts)[0] * identity["samples"]
        for prompts, identity in wanted
        if not folder.store.has(identity)
    ]
    name = author.model.model.name
    logging.getLogger(what).info("%d of %d shards to write with %s", len(missing), len(wanted), name)
    with Bar(sum(missing), what) as bar:
        for prompts, identity in wanted:
            folder.obtain(prompts.name, identity, partial(_write, prompts, identity, author, bar))


def _write(prompts: Path, identity: dict[str, Any], author: Author, bar: Progress, path: Path) -> None:
    write_rollouts(path, identity, read_prompts(prompts), author, bar)


def write_rollouts(
    path: Path, identity: Mapping[str, Any], prompts: Sequence[Prompt], author: Author, progress: Progress | None = None
) -> None:
    """Write one shard: every sample of every prompt, in their order.

    Args:
        path: of the new file.
        identity: as `identity` gives it; the settings are read from it, so that no other can be used.
        prompts: of one bucket.
        author: who writes.
        progress: told of finished responses.
    """
    asked = [(prompt, sample) for prompt in prompts for sample in range(identity["samples"])]
    footer = {**engine_libraries(identity["engine"]["engine"]), **author.made_with}
    with Writer(path, ROLLOUTS, dict(identity), footer) as writer:
        tokenizer = author.model.model.load_tokenizer()
        for start in range(0, len(asked), AT_ONCE):
            writer.write(_written(asked[start : start + AT_ONCE], identity, tokenizer, author, progress))


def _written(
    asked: Sequence[tuple[Prompt, int]],
    identity: Mapping[str, Any],
    tokenizer: Any,
    author: Author,
    progress: Progress | None,
) -> pa.Table:
    """Some rows of a shard: the responses to prompts by sample number."""
    sampling = Sampling.model_validate(identity["sampling"])
    round_, weights, rows = str(identity.get("round", "")), author.model.model.weights_hash, len(asked)
    rendered = {prompt.prompt_id: render_prompt(tokenizer, prompt.messages) for prompt, _ in asked}
    requests = [
        Request(rendered[prompt.prompt_id], request_seed(identity["seed"], round_, prompt.prompt_id, sample))
        for prompt, sample in asked
    ]
    responses = author.model.open().generate(requests, sampling, author.top_k, progress)
    columns: dict[str, Any] = {
        "rollout_id": [
            hashing.digest(weights, prompt.prompt_id, str(sample), response.ids.astype("<i4").tobytes())
            for (prompt, sample), response in zip(asked, responses, strict=True)
        ],
        "prompt_id": [prompt.prompt_id for prompt, _ in asked],
        "sample": [sample for _, sample in asked],
        "source": [author.source] * rows,
        "behaviour": [weights] * rows,
        "written_in": [round_] * rows,
        "prompt_ids": _lists([request.prompt_ids for request in requests], pa.int32()),
        "response_ids": _lists([response.ids for response in responses], pa.int32()),
        "behaviour_logprobs": _lists([response.behaviour_logprobs for response in responses], pa.float32()),
        "sampling_logprobs": _nullable([response.sampling_logprobs for response in responses], pa.float32()),
        "behaviour_topk_ids": _topk(responses),
        "segments": pa.nulls(rows, ROLLOUTS.field("segments").type),
        "finish_reason": [response.finish_reason for response in responses],
        "text": tokenizer.batch_decode([response.ids for response in responses], skip_special_tokens=True),
    }
    return pa.table(columns, ROLLOUTS)


def _lists(rows: Sequence[Any], kind: Any) -> pa.Array:
    ragged = Ragged.of(rows, kind.to_pandas_dtype())
    return pa.ListArray.from_arrays(pa.array(ragged.offsets, pa.int32()), pa.array(ragged.values, kind))


def _nullable(rows: Sequence[np.ndarray | None], kind: Any) -> pa.Array:
    present = [row for row in rows if row is not None]
    assert len(present) in (0, len(rows)), "one distribution is sampled from in one shard"
    return _lists(present, kind) if present else pa.nulls(len(rows), pa.list_(kind))


def _topk(responses: Sequence[Response]) -> pa.Array:
    if not responses or responses[0].topk_ids is None:
        return pa.nulls(len(responses), pa.list_(pa.list_(pa.int32())))
    tops = Ragged.of([response.topk_ids for response in responses if response.topk_ids is not None], np.dtype(np.int32))
    count, k = tops.values.shape
    of_tokens = pa.ListArray.from_arrays(
        pa.array(np.arange(0, count * k + 1, k), pa.int32()), pa.array(tops.values.ravel(), pa.int32())
    )
    return pa.ListArray.from_arrays(pa.array(tops.offsets, pa.int32()), of_tokens)
