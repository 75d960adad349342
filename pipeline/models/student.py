"""A causal language model of transformers that answers what objectives and shards ask, inside its `forward`.

DDP, FSDP2, activation checkpointing and LoRA wrap this module; since the head runs inside the wrapped forward, they
gather its weight as they do every other (outside, FSDP2 would mix tensors and DTensors).
"""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.head.answer import Answer, Ask
from pipeline.head.gradient import answer_tokens
from pipeline.head.layer import LowRank, OutputLayer, logit_scale
from pipeline.models.packing import Layout, Pack


class Student(nn.Module):
    """The transformer and its head.

    Args:
        transformer: a causal language model, as it is or with LoRA layers, in peft's wrapper or without it.

    Attributes:
        layout: how its sequences are batched.
        tokens: ids of the tokenizer; rows of the output layer behind them are padding, and get no probability. None
            where every row counts.

    Raises:
        ModelError: peft changes the output layer, or the input, in a way that the head does not compute.
    """

    def __init__(self, transformer: Any):
        super().__init__()
        self.layout = Layout.PACKED
        self.tokens: int | None = None
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

    def logits(self, pack: Pack) -> Tensor:
        """The model's own logits, [T, vocabulary], where `hidden` has its states: what the head is compared with."""
        found = self.transformer(input_ids=pack.input_ids, position_ids=pack.position_ids, use_cache=False).logits
        return found.reshape(-1, found.shape[-1])[pack.predicts][:, : self.tokens]

    @property
    def architecture(self) -> str:
        """The model's type, as its config.json says it."""
        return self._model().config.model_type

    @property
    def caps_scores(self) -> bool:
        """Whether the architecture bounds its attention scores (Gemma 2), which fast kernels leave out."""
        return getattr(self._model().config.get_text_config(), "attn_logit_softcapping", None) is not None

    @property
    def kernel(self) -> str:
        """What computes attention: `sdpa`, `eager` or another name of transformers'."""
        return self._model().config._attn_implementation or "eager"

    @kernel.setter
    def kernel(self, name: str) -> None:
        self._model().set_attn_implementation(name)

    def output(self) -> OutputLayer:
        """The output layer, with what LoRA adds to it and what the architecture does to its logits."""
        model = self._model()
        layer, config = model.get_output_embeddings(), model.config.get_text_config()
        adapter = _adapter(layer)
        layer = getattr(layer, "base_layer", layer)
        cap = getattr(config, "final_logit_softcapping", None)
        bias = None if layer.bias is None else layer.bias[: self.tokens]
        if adapter is not None:
            adapter = LowRank(adapter.down, adapter.up[: self.tokens])
        return OutputLayer(layer.weight[: self.tokens], bias, logit_scale(config), cap, adapter)

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


def find_unfinite(student: Student) -> str | None:
    """Name the first weight that has values which are no finite numbers; None where there is none."""
    for name, values in student.named_parameters():
        values = getattr(values, "to_local", lambda values=values: values)()  # FSDP2's: the part of this process
        if not torch.isfinite(values.detach()).all():
            return name.removeprefix("transformer.")
    return None
