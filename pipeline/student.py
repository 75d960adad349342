"""A causal language model of transformers that answers what objectives and shards ask, inside its `forward`.

DDP, FSDP2, activation checkpointing and LoRA wrap this module; since the head runs inside the wrapped forward, they
gather its weight as they do every other (outside, FSDP2 would mix tensors and DTensors).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import head
from pipeline.errors import ModelError
from pipeline.models import Model
from pipeline.packing import Pack


class Student(nn.Module):
    """The transformer and its head."""

    def __init__(self, transformer: Any):
        super().__init__()
        self.transformer = transformer

    def forward(self, pack: Pack, ask: head.Ask) -> head.Answer:
        """Answer for every response token of the pack, in its order."""
        return head.answer(self.hidden(pack), self.output(), ask)

    def layers(self) -> list[nn.Module]:
        """The transformer's blocks, in their order: each is computed, and may be held, by itself."""
        kinds = set(self.transformer._no_split_modules)
        return [module for module in self.transformer.modules() if type(module).__name__ in kinds]

    def hidden(self, pack: Pack) -> Tensor:
        """Last hidden states, [T, hidden], of the positions that predict response tokens; only they reach the head."""
        states = self.transformer.base_model(
            input_ids=pack.input_ids, position_ids=pack.position_ids, use_cache=False
        ).last_hidden_state
        return states.reshape(-1, states.shape[-1])[pack.predicts]

    def output(self) -> head.Output:
        """The output layer with what the architecture does to its logits."""
        layer, config = self.transformer.get_output_embeddings(), self.transformer.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        return head.Output(layer.weight, layer.bias, float(scale), getattr(config, "final_logit_softcapping", None))


def open_student(model: Model, dtype: torch.dtype = torch.float32, adapter: str | None = None) -> Student:
    """Open a model's weights.

    Args:
        model: its record; a folder's files are compared with it.
        dtype: of the parameters. transformers would take the checkpoint's own, and bf16 parameters hardly move at
            usual learning rates (3.9 % of the entries after 150 steps at 2e-6), so training asks for fp32.
        adapter: a folder with a LoRA adapter, merged into the weights.

    Raises:
        ModelError: the files are missing or changed.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.check()
    try:
        transformer = AutoModelForCausalLM.from_pretrained(
            model.location, revision=model.commit or "main", dtype=dtype, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{model.name} cannot be opened: {reason}") from None
    if adapter is not None:
        transformer = _with_adapter(transformer, adapter)
    return Student(transformer)


def _with_adapter(transformer: Any, adapter: str) -> Any:
    from peft import PeftModel

    if not (Path(adapter) / "adapter_config.json").exists():
        raise ModelError(f"{adapter} holds no LoRA adapter: adapter_config.json is missing.")
    return PeftModel.from_pretrained(transformer, adapter).merge_and_unload()  # pyright: ignore[reportCallIssue]
