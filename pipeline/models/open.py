"""Opening a model's weights, and trying what is assumed of it before anything is computed."""

from pathlib import Path
from typing import Any

import torch

from pipeline.errors import ModelError
from pipeline.models.probe import probe_student
from pipeline.models.record import Model
from pipeline.models.student import Student, find_unfinite


def open_student(model: Model, dtype: torch.dtype = torch.float32, adapter: str | None = None) -> Student:
    """Open a model's weights.

    Args:
        model: its record; a folder's files are compared with it.
        dtype: of the parameters. transformers would take the checkpoint's own, and bf16 parameters hardly move at
            usual learning rates (3.9 % of the entries after 150 steps at 2e-6), so training asks for fp32.
        adapter: a folder with a LoRA adapter, merged into the weights.

    Raises:
        ModelError: the files are missing or changed, or the architecture is not what is assumed of it.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.check_unchanged()
    try:
        transformer = AutoModelForCausalLM.from_pretrained(
            model.location,
            revision=model.commit or "main",
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            # Not the folder's own: `generate` fills in from here what a request leaves open, a penalty for example.
            generation_config=GenerationConfig(eos_token_id=list(model.eos_ids)),
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{model.name} cannot be opened: {reason}") from None
    if adapter is not None:
        transformer = _with_adapter(transformer, adapter)
    student = Student(transformer)
    _check_finite(student, model.name, dtype)
    student.tokens = model.tokens if model.tokens < model.vocabulary else None
    student.layout = probe_student(student, model.name, model.tokens).layout
    return student


def _check_finite(student: Student, name: str, dtype: torch.dtype) -> None:
    """Refuse weights that are no numbers: whatever is computed with them would be none either."""
    if (weight := find_unfinite(student)) is not None:
        raise ModelError(
            f"{name}: weight {weight} has values that are no finite numbers in {str(dtype).removeprefix('torch.')}. "
            "The file is damaged, a training diverged, or the dtype has too small a range: restore the model, or open "
            "it with another dtype."
        )


def _with_adapter(transformer: Any, adapter: str) -> Any:
    from peft import PeftModel

    if not (Path(adapter) / "adapter_config.json").exists():
        raise ModelError(f"{adapter} holds no LoRA adapter: adapter_config.json is missing.")
    return PeftModel.from_pretrained(transformer, adapter).merge_and_unload()  # pyright: ignore[reportCallIssue]
