"""What of an engine can change a number, and which libraries it computes with."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.errors import ModelError
from pipeline.settings.models import EngineSettings
from pipeline.storage import hashing
from pipeline.storage.made_with import library_versions


def identify_engine(settings: EngineSettings) -> dict[str, Any]:
    """What of an engine can change a number; settings that came later enter only where they are used."""
    version = _module(settings.engine).VERSION
    facts: dict[str, Any] = {"engine": settings.engine, "version": version, "dtype": settings.dtype}
    later = {"quantization": settings.quantization, "adapter": _adapter(settings.adapter)}
    return facts | {name: value for name, value in later.items() if value is not None}


def engine_libraries(engine: str) -> dict[str, str]:
    """The versions of what an engine computes with, for footers."""
    return library_versions(*_module(engine).LIBRARIES)


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
