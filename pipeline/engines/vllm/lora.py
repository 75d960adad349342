"""LoRA adapters for vLLM, which must know the rank before it opens, and cannot serve every adapter."""

import json
from pathlib import Path
from typing import get_args

from pipeline.errors import EngineError

_OUTPUT_LAYERS = {"lm_head", "embed_tokens", "embed_out"}


def read_rank(adapter: str, by_hidden_states: bool) -> int:
    """Find the least rank that vLLM can be opened with to serve this adapter.

    Args:
        adapter: a folder in peft's format.
        by_hidden_states: whether the output layer is the project's own, read from the base model.

    Raises:
        EngineError: the folder holds no adapter, or one that vLLM cannot serve.
    """
    from vllm.config.lora import MaxLoRARanks

    file = Path(adapter) / "adapter_config.json"
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError):
        raise EngineError(f"{adapter} holds no LoRA adapter in peft's format: {file} is missing or no JSON.") from None
    if saved := config.get("modules_to_save"):
        raise EngineError(
            f"{adapter} replaces whole modules ({', '.join(saved)}), which vLLM cannot serve: merge it into the model, "
            "or use `engine: hf`."
        )
    targets = config.get("target_modules") or []
    changed = {target for target in ([targets] if isinstance(targets, str) else targets) if target in _OUTPUT_LAYERS}
    if by_hidden_states and changed:
        raise EngineError(
            f"{adapter} changes {', '.join(sorted(changed))}, and scoring by hidden states reads the output layer from "
            "the base model: set `hidden_states: false`, or merge the adapter into the model."
        )
    fitting = [allowed for allowed in sorted(get_args(MaxLoRARanks)) if allowed >= config.get("r", 0)]
    if not fitting:
        raise EngineError(f"{adapter} has rank {config['r']}; vLLM serves at most {max(get_args(MaxLoRARanks))}.")
    return fitting[0]
