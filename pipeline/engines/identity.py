"""Facts of an engine without opening a model: what can change a number, how tails come about, its libraries."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.engines.engine import EngineUse
from pipeline.errors import ModelError
from pipeline.settings.models import EngineSettings
from pipeline.storage import hashing
from pipeline.storage.made_with import find_versions


def identify_engine(settings: EngineSettings) -> dict[str, Any]:
    """Say what of an engine can change a number; settings that came later enter only where they are used."""
    version = _module(settings.engine).VERSION
    identity: dict[str, Any] = {"engine": settings.engine, "version": version, "dtype": settings.dtype}
    later = {"quantization": settings.quantization, "adapter": _adapter(settings.adapter)}
    return identity | {name: value for name, value in later.items() if value is not None}


def name_tail(engine: str, use: EngineUse) -> str:
    """Say how an engine's `tail_logprobs` come about.

    Returns:
        `exact`: a logsumexp over all ids outside the entries. `derived`: log1p(−Σ) of the top k, floored at −11 nats.
    """
    return "exact" if use.scores_by == "hidden_states" else _module(engine).TAIL


def find_engine_libraries(engine: str) -> dict[str, str]:
    """Look up the versions of what an engine computes with, for footers."""
    return find_versions(*_module(engine).LIBRARIES)


def _module(engine: str) -> ModuleType:
    return importlib.import_module(f"pipeline.engines.{engine}")


def _adapter(folder: str | None) -> str | None:
    if folder is None:
        return None
    if not (Path(folder) / "adapter_config.json").exists():
        raise ModelError(
            f"`adapter: {folder}` holds no LoRA adapter in peft's format: adapter_config.json is missing. Name the "
            "folder that peft saved it to."
        )
    return hashing.hash_path(Path(folder))
