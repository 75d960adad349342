"""The shape that benchmarks state: a Qwen3 of its true vocabulary and random weights, small enough for a CPU."""

from pathlib import Path
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


def save(made: "Qwen3ForCausalLM", folder: Path) -> None:
    """A model's folder, with a tokenizer of as many words as the model has ids: `word7` is id 7."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    made.save_pretrained(folder)
    vocabulary = {f"word{number}": number for number in range(made.config.vocab_size)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="word0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="word0", pad_token="word0")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(folder)
