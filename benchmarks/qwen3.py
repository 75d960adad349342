"""The shape that benchmarks state: a Qwen3 of its true vocabulary and random weights, small enough for a CPU."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Qwen3Config, Qwen3ForCausalLM

VOCABULARY = 151_936


def config(layers: int = 8, hidden: int = 512, vocabulary: int = VOCABULARY) -> "Qwen3Config":
    """Heads of 64, an inner width of three times the hidden one, and tied embeddings, as the small Qwen3 have."""
    from transformers import Qwen3Config  # seconds, which who asks for the vocabulary alone need not wait for

    heads = hidden // 64
    return Qwen3Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=max(1, heads // 2), head_dim=64, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip


def model(layers: int = 8, hidden: int = 512, vocabulary: int = VOCABULARY) -> "Qwen3ForCausalLM":
    """Fresh weights, from torch's current seed."""
    from transformers import Qwen3ForCausalLM

    return Qwen3ForCausalLM(config(layers, hidden, vocabulary))
