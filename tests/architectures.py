"""Every causal language model of the installed transformers, tiny, and what is done with it.

    python -m tests.architectures [NAME ...]   # print the table: what each architecture bears, or why it is refused

The weights are random and three times as large as transformers draws them, so that what is wrong shows.
"""

import logging
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from pipeline.errors import ModelError
from pipeline.models.probe import Probe, probe_student
from pipeline.models.student import Student

VOCABULARY = 97
MOST_PARAMETERS = 30_000_000

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("head_dim", "q_lora_rank", "kv_lora_rank"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    "num_key_value_heads": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1,
}  # fmt: skip
"""What makes a model tiny; each configuration takes what it knows of this."""

LATENT = (
    "axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash",
    "minicpm3", "youtu",
)  # fmt: skip
"""Architectures of latent attention, which has as many heads for keys as for queries."""

MORE: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1]},
    "falcon": {"head_dim": None, "new_decoder_architecture": False},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "layer_types": ["mamba", "attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "dots1": {"n_shared_experts": 1},
    **{name: {"num_key_value_heads": 4} for name in LATENT},
    "deepseek_v4": {"layer_types": ["sliding_attention", "compressed_sparse_attention"]},
    **{name: {"rotary_dim": 4} for name in ("codegen", "gptj")},
    **{name: {"layer_types": ["linear_attention", "full_attention"]} for name in ("qwen3_5_text", "qwen3_next")},
    **{name: {"layer_types": ["linear_attention", "full_attention"]} for name in ("qwen3_5", "qwen3_5_moe")},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "bert": {"is_decoder": True},
    "bert-generation": {"is_decoder": True},
}
"""What single architectures need besides; None leaves a size out."""


class UnbuildableError(Exception):
    """The architecture has no tiny random model: its configuration cannot be had from sizes alone."""


def list_architectures() -> list[str]:
    """Name those that transformers opens as a causal language model."""
    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))


def build(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Build a tiny random model of an architecture.

    Raises:
        UnbuildableError: it cannot be built, or is not tiny.
    """
    try:
        text = AutoConfig.for_model(name).get_text_config()
        sizes = {key: value for key, value in SIZES.items() if _has(text, key)} | MORE.get(name, {})
        config = type(text)(**{key: value for key, value in sizes.items() if value is not None})
        with torch.device("meta"):
            parameters = sum(one.numel() for one in AutoModelForCausalLM.from_config(config).parameters())
        if parameters > MOST_PARAMETERS:
            raise UnbuildableError(f"has {parameters / 1e6:.0f} million parameters")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    except UnbuildableError:
        raise
    except Exception as error:
        raise UnbuildableError(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:80]}") from None
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model


def _has(config: Any, key: str) -> bool:
    try:
        return hasattr(config, key)
    except Exception:
        return False


@dataclass(frozen=True)
class Row:
    """A line of the table: what an architecture bears, or why it is refused or cannot be built."""

    name: str
    probe: Probe | None = None
    refused: str = ""
    unbuildable: str = ""

    def __str__(self) -> str:
        if self.probe is None:
            return f"{self.name:24} {'refused: ' + self.refused if self.refused else 'not built: ' + self.unbuildable}"
        return f"{self.name:24} {self.probe.layout.name.lower():8} {self.probe.kernel}"


def examine(name: str) -> Row:
    """Build an architecture and try what is assumed of it."""
    try:
        model = build(name)
    except UnbuildableError as error:
        return Row(name, unbuildable=str(error))
    try:
        return Row(name, probe_student(Student(model), name, VOCABULARY))
    except ModelError as error:
        return Row(name, refused=str(error))


def main(names: list[str]) -> None:
    """Print the table and its totals."""
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    totals: Counter[str] = Counter()
    for name in names or list_architectures():
        row = examine(name)
        print(row, flush=True)
        found = "refused" if row.refused else "not built" if row.probe is None else row.probe.layout.name.lower()
        totals[found] += 1
        totals["by eager attention"] += row.probe is not None and row.probe.kernel == "eager"
    print(", ".join(f"{count} {what}" for what, count in totals.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
