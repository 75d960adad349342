"""Writing rollouts: from a shard of prompts to a shard of responses, by whichever model is open."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import compress, product
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.engines.engine import Request
from pipeline.engines.identity import find_engine_libraries, identify_engine
from pipeline.engines.open import OnDemand
from pipeline.models.record import Model
from pipeline.models.templates import render_prompt
from pipeline.progress import Progress
from pipeline.rollouts.fit import check_prompts_fit
from pipeline.settings.models import EngineSettings, Sampling
from pipeline.storage import hashing
from pipeline.storage import rollouts as rollouts_format
from pipeline.storage.families import Families, KnownRows, put_in_order
from pipeline.storage.prompts import PROMPTS, Prompt, read_prompts
from pipeline.storage.rollouts import ROLLOUTS, Rollout, make_rollout_table
from pipeline.storage.shards import Writer, read_shard
from pipeline.storage.store import Folder, Store

AT_ONCE = 4096
"""Responses that are held until they are written: enough for an engine to be busy to the end."""

RENDERED_COLUMNS = ("prompt_id", "messages")
"""Of a shard of prompts, what a response depends on; a hint or an answer may change without writing anew."""

Wanted = tuple[Path, dict[str, Any]]
"""A shard of prompts, with the identity of its rollouts."""


@dataclass(frozen=True)
class Writing:
    """How responses are written: what decides them besides the prompts.

    Attributes:
        model: that writes.
        engine: its settings.
        sampling: the distribution drawn from.
        samples: responses to each prompt.
        seed: of the run.
    """

    model: Model
    engine: EngineSettings
    sampling: Sampling
    samples: int
    seed: int


def identify_rollouts(stage: str, version: int, prompts: Path, writing: Writing, **more: Any) -> dict[str, Any]:
    """List everything that decides what a shard of rollouts holds: `rows` picks its rows, the rest decides each.

    Args:
        stage: that writes it.
        version: of the stage.
        prompts: the shard of prompts.
        writing: how, and with which model.
        more: the round, the teacher of the SFT data; None leaves a fact out.
    """
    return {
        "stage": stage,
        "version": version,
        "format": rollouts_format.VERSION,
        "model": writing.model.identity,
        "engine": identify_engine(writing.engine),
        "sampling": writing.sampling.model_dump(include={"temperature", "top_p", "top_k", "max_tokens"}),
        "seed": writing.seed,
        **{name: value for name, value in more.items() if value is not None},
        "rows": {"prompts": hashing.hash_columns(prompts, PROMPTS, RENDERED_COLUMNS), "samples": writing.samples},
    }


def derive_seed(seed: int, round_: str, prompt_id: str, sample: int) -> int:
    """Choose the seed of one response, of 63 bits; the response then does not depend on what else is written."""
    return int(hashing.digest(str(seed), round_, prompt_id, str(sample))[:16], 16) >> 1


@dataclass(frozen=True)
class Author:
    """A model that writes, and what is kept of its writing.

    Attributes:
        engine: of the model that writes, opened when something is to be written.
        source: `student` or `teacher`.
        top_k: the model's own likeliest ids that are kept at each position.
        made_with: what the footer records besides the libraries, and nobody hashes.
    """

    engine: OnDemand
    source: str
    top_k: int = 0
    made_with: Mapping[str, str] = field(default_factory=dict)


def find_families(store: Store, wanted: Sequence[Wanted]) -> Families:
    """Find responses that other shards have to the same prompts: of fewer prompts, say, or with fewer samples."""
    return Families(store, ROLLOUTS, ("prompt_id", "sample"), {hashing.fingerprint(identity) for _, identity in wanted})


@dataclass(frozen=True)
class Missing:
    """What is to be written.

    Attributes:
        shards: that the store lacks.
        responses: in these shards.
        known: those of the responses that other shards have.
    """

    shards: int
    responses: int
    known: int

    @property
    def unknown(self) -> int:
        """The responses that no shard has."""
        return self.responses - self.known


def count_missing(store: Store, wanted: Sequence[Wanted], families: Families) -> Missing:
    """Count what the store lacks.

    Args:
        store: of finished shards.
        wanted: what is asked of it.
        families: as `find_families` gives them.
    """
    shards = responses = known = 0
    for prompts, identity in wanted:
        if not store.has(identity):
            prompt_ids = read_shard(prompts, PROMPTS, ["prompt_id"]).column("prompt_id").to_pylist()
            keys = list(product(prompt_ids, range(identity["rows"]["samples"])))
            others = families.of(identity)
            shards += 1
            responses += len(keys)
            known += sum(key in others for key in keys)
    return Missing(shards, responses, known)


def obtain_rollouts(folder: Folder, wanted: Sequence[Wanted], author: Author, what: str) -> None:
    """Write what the store does not have, under one progress bar, and link everything into the output.

    Args:
        folder: the output.
        wanted: what shall be in it.
        author: who writes.
        what: the stage, for the bar and the log.
    """
    check_prompts_fit(folder.store, wanted, author.engine)
    families = find_families(folder.store, wanted)
    missing = count_missing(folder.store, wanted, families)
    log = logging.getLogger(what)
    log.info("%d of %d shards to write with %s", missing.shards, len(wanted), author.engine.model.name)
    if missing.known:
        log.info("%d of their %d responses are there already, and are taken over", missing.known, missing.responses)
    with author.engine.make_bar(missing.unknown, what) as bar:
        for prompts, identity in wanted:
            folder.obtain(prompts.name, identity, partial(_write, prompts, identity, author, bar, families))


def _write(
    prompts: Path, identity: dict[str, Any], author: Author, bar: Progress, families: Families, path: Path
) -> None:
    write_rollouts(path, identity, read_prompts(prompts), author, bar, families.of(identity))


def write_rollouts(
    path: Path,
    identity: Mapping[str, Any],
    prompts: Sequence[Prompt],
    author: Author,
    progress: Progress | None = None,
    known: KnownRows | None = None,
) -> None:
    """Write one shard: every sample of every prompt, in their order.

    Args:
        path: of the new file.
        identity: as `identify_rollouts` gives it; the settings are read from it, so that no other can be used.
        prompts: of one bucket.
        author: who writes.
        progress: told of responses that the author finished.
        known: responses that other shards have, by prompt and sample: they are taken over, and not written again.
    """
    asked = [(prompt, sample) for prompt in prompts for sample in range(identity["rows"]["samples"])]
    known = known or KnownRows(ROLLOUTS, ())
    footer = {**find_engine_libraries(identity["engine"]["engine"]), **author.made_with}
    with Writer(path, ROLLOUTS, dict(identity), footer) as writer:
        tokenizer = author.engine.model.load_tokenizer()
        for start in range(0, len(asked), AT_ONCE):
            some = asked[start : start + AT_ONCE]
            keys = [(prompt.prompt_id, sample) for prompt, sample in some]
            is_known = np.array([key in known for key in keys], bool)
            missing = list(compress(some, ~is_known))
            drawn = _draw_rollouts(missing, identity, tokenizer, author, progress) if missing else []
            taken = known.read(list(compress(keys, is_known)))
            parts = [(np.flatnonzero(is_known), taken), (np.flatnonzero(~is_known), make_rollout_table(drawn))]
            writer.write(put_in_order(parts))


def _draw_rollouts(
    asked: Sequence[tuple[Prompt, int]],
    identity: Mapping[str, Any],
    tokenizer: Any,
    author: Author,
    progress: Progress | None,
) -> list[Rollout]:
    """Have the responses to some prompts by sample number written."""
    sampling = Sampling.model_validate(identity["sampling"])
    round_, writer = str(identity.get("round", "")), author.engine.model.weights_hash
    rendered = {prompt.prompt_id: render_prompt(tokenizer, prompt.messages) for prompt, _ in asked}
    requests = [
        Request(rendered[prompt.prompt_id], derive_seed(identity["seed"], round_, prompt.prompt_id, sample))
        for prompt, sample in asked
    ]
    responses = author.engine.open().generate(requests, sampling, author.top_k, progress)
    texts = tokenizer.batch_decode([response.ids for response in responses], skip_special_tokens=True)
    return [
        Rollout(
            rollout_id=hashing.digest(writer, prompt.prompt_id, str(sample), response.ids.astype("<i4").tobytes()),
            prompt_id=prompt.prompt_id,
            sample=sample,
            source=author.source,
            behaviour=writer,
            written_in=round_,
            prompt_ids=request.prompt_ids,
            response_ids=response.ids,
            behaviour_logprobs=response.behaviour_logprobs,
            finish_reason=response.finish_reason,
            text=text,
            sampling_logprobs=response.sampling_logprobs,
            behaviour_topk_ids=response.topk_ids,
        )
        for (prompt, sample), request, response, text in zip(asked, requests, responses, texts, strict=True)
    ]
