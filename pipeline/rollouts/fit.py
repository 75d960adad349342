"""Whether prompts leave room for a response: asked of all of them before a model is opened, and all are named."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.engines.open import OnDemand
from pipeline.errors import PromptError
from pipeline.models.templates import render_prompt
from pipeline.storage.prompts import Prompt, read_prompts
from pipeline.storage.store import Store

_LISTED = 10


def check_prompts_fit(store: Store, wanted: Sequence[tuple[Path, Mapping[str, Any]]], engine: OnDemand) -> None:
    """Refuse prompts that with the longest response are longer than the model takes.

    Args:
        store: of finished shards, whose prompts fitted.
        wanted: shards of prompts, each with the identity of its rollouts.
        engine: that would write them.

    Raises:
        PromptError: names the prompts with their lengths, and the setting that leaves them out.
    """
    limit = engine.context
    missing = [(path, identity["sampling"]["max_tokens"]) for path, identity in wanted if not store.has(dict(identity))]
    if limit is None or not missing:
        return
    tokenizer = engine.model.load_tokenizer()
    lengths: dict[str, tuple[int, str]] = {}
    for path in dict.fromkeys(path for path, _ in missing):
        for prompt in read_prompts(path):
            length = len(render_prompt(tokenizer, prompt.messages))
            lengths[prompt.prompt_id] = length, f"prompt_id {prompt.prompt_id} ({length} tokens: {_quote(prompt)})"
    response = max(max_tokens for _, max_tokens in missing)
    too_long = [told for length, told in lengths.values() if length + response > limit]
    if too_long:
        more = f"\n  and {len(too_long) - _LISTED} more" if len(too_long) > _LISTED else ""
        listing = "".join(f"\n  {told}" for told in too_long[:_LISTED])
        room = limit - response
        drop = f"Drop them (`prompts.max_tokens: {room}`, `prompts.unfit: drop`), or lower" if room > 0 else "Lower"
        raise PromptError(
            f"{len(too_long)} of {len(lengths)} prompts are too long for {engine.model.name}, which takes {limit} "
            f"tokens, {response} of them for a response:{listing}{more}\n"
            f"{drop} sampling.max_tokens, then run `dvc repro`."
        )


def _quote(prompt: Prompt) -> str:
    return repr(prompt.messages[-1]["content"][:40])
