"""A causal language model of transformers that answers what objectives and shards ask, inside its `forward`.

DDP, FSDP2, activation checkpointing and LoRA wrap this module; since the head runs inside the wrapped forward, they
gather its weight as they do every other (outside, FSDP2 would mix tensors and DTensors).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.head.answer import Answer, Ask
from pipeline.head.gradient import answer_tokens
from pipeline.head.layer import LowRank, OutputLayer, logit_scale
from pipeline.models.packing import Pack
from pipeline.models.record import Model


class Student(nn.Module):
    """The transformer and its head.

    Args:
        transformer: a causal language model, as it is or with LoRA layers, in peft's wrapper or without it.

    Raises:
        ModelError: peft changes the output layer, or the input, in a way that the head does not compute.
    """

    def __init__(self, transformer: Any):
        super().__init__()
        self.transformer = transformer
        peft = getattr(transformer, "active_peft_config", None)
        if peft is not None and peft.is_prompt_learning:
            raise ModelError("The student learns a prompt (peft), which has no place in a pack: use LoRA.")
        self.output()

    def forward(self, pack: Pack, ask: Ask) -> Answer:
        """Answer for every response token of the pack, in its order."""
        return answer_tokens(self.hidden(pack), self.output(), ask)

    def layers(self) -> list[nn.Module]:
        """The transformer's blocks, in their order: each is computed, and may be held, by itself."""
        kinds = set(self._model()._no_split_modules)
        return [module for module in self.transformer.modules() if type(module).__name__ in kinds]

    def hidden(self, pack: Pack) -> Tensor:
        """Last hidden states, [T, hidden], of the positions that predict response tokens; only they reach the head."""
        body = self._model().base_model
        states = body(input_ids=pack.input_ids, position_ids=pack.position_ids, use_cache=False).last_hidden_state
        return states.reshape(-1, states.shape[-1])[pack.predicts]

    def output(self) -> OutputLayer:
        """The output layer, with what LoRA adds to it and what the architecture does to its logits."""
        model = self._model()
        layer, config = model.get_output_embeddings(), model.config.get_text_config()
        adapter = _adapter(layer)
        layer = getattr(layer, "base_layer", layer)
        cap = getattr(config, "final_logit_softcapping", None)
        return OutputLayer(layer.weight, layer.bias, logit_scale(config), cap, adapter)

    def _model(self) -> Any:
        """The causal language model; peft's wrapper adds nothing to its hidden states, but hides them."""
        return self.transformer.get_base_model() if hasattr(self.transformer, "get_base_model") else self.transformer


def _adapter(layer: Any) -> LowRank | None:
    """Read what the active LoRA adapters add to an output layer; several add up.

    Raises:
        ModelError: it is another change than that of plain LoRA.
    """
    if isinstance(layer, nn.Linear) and layer.weight.is_floating_point():
        return None
    from peft.tuners.lora import Linear as LoraLinear

    if not isinstance(layer, LoraLinear) or not isinstance(layer.base_layer, nn.Linear):
        raise ModelError(
            f"The student's output layer is a {type(layer).__name__}, which the head does not compute: a plain matrix, "
            "or one with LoRA, is expected. Leave `lm_head` out of the adapter's modules."
        )
    is_off = layer.disable_adapters or layer.merged
    names = [name for name in layer.active_adapters if name in layer.lora_A and not is_off]
    for name in names:
        own = {
            "lora_dropout": not isinstance(layer.lora_dropout[name], nn.Identity),
            "lora_bias": layer.lora_B[name].bias is not None,
            type(layer.lora_variant.get(name)).__name__: name in layer.lora_variant,
        }
        if found := [what for what, is_there in own.items() if is_there]:
            raise ModelError(
                f"The LoRA adapter `{name}` has {found[0]} on the student's output layer, which the head does not "
                "compute. Leave `lm_head` out of its target_modules, or switch that off."
            )
    if not names:
        return None
    downs: list[Any] = [layer.lora_A[name].weight * layer.scaling[name] for name in names]
    ups: list[Any] = [layer.lora_B[name].weight for name in names]
    return LowRank(torch.cat(downs), torch.cat(ups, dim=1))


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
    model.check_unchanged()
    try:
        transformer = AutoModelForCausalLM.from_pretrained(
            model.location,
            revision=model.commit or "main",
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
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
