"""The demo's tokenizers and tiny transformers, made from seeds, without downloads."""

from collections.abc import Iterable
from typing import Any, Literal

from pipeline.demo.task import draw_sums, write_solution
from pipeline.settings.models import TinyModel

CONTEXT = 256
"""Longest sequence of a demo model, tokens: a sum, a hint, a system message and a response fit well."""

INITIAL_SPREAD = 0.06
"""Standard deviation of first weights. transformers' 0.02 suits large models: so small ones then hardly learn to add
(a student of 2 layers × 64 after 600 steps: 7 % right against 70 %)."""

LEAST_HEAD = 32
"""vLLM's attention on a CPU takes no narrower heads."""

BPE_TOKENS = 384
"""Vocabulary of the BPE tokenizer: 256 bytes, the marks, and the pairs that are most common in worked sums."""

_PAD, _END, _UNKNOWN = "<|pad|>", "<|end|>", "<|unknown|>"

_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

_MARKS = (_PAD, _END, _UNKNOWN, *_ROLES)

_CHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""A turn costs one token besides its text: the mark of its role. A response ends itself."""


def make_tokenizer(kind: Literal["characters", "bpe"]) -> Any:
    """Make the tokenizer that `models.demo.tokenizer` names."""
    if kind == "characters":
        return make_character_tokenizer()
    return make_bpe_tokenizer(
        (f"{row['question']} {write_solution(row['question'])}" for row in draw_sums(0, 2000)), BPE_TOKENS
    )


def make_character_tokenizer() -> Any:
    """Make a tokenizer with a token for each printable ASCII character and the line break; others are `<|unknown|>`."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds

    characters = ["\n", *map(chr, range(ord(" "), ord("~") + 1))]
    vocabulary = {token: number for number, token in enumerate([*_MARKS, *characters])}
    inner = Tokenizer(kinds.WordLevel(vocabulary, unk_token=_UNKNOWN))
    single = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.pre_tokenizer = single  # pyright: ignore[reportAttributeAccessIssue] - a property of the Rust class
    inner.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    return _with_chat(inner)


def make_bpe_tokenizer(texts: Iterable[str], size: int) -> Any:
    """Make a byte-level BPE tokenizer as GPT-2's is: any text can be written.

    Args:
        texts: what the pairs are counted in.
        size: tokens in all, marks and the 256 bytes included; fewer where the texts have not so many pairs.
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers import models as kinds

    inner = Tokenizer(kinds.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.pre_tokenizer = level  # pyright: ignore[reportAttributeAccessIssue]
    inner.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(_MARKS), initial_alphabet=level.alphabet(), show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    return _with_chat(inner)


def _with_chat(inner: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=_END,
        pad_token=_PAD,
        unk_token=_UNKNOWN,
        additional_special_tokens=list(_ROLES),
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = _CHAT
    return made


def make_model(size: TinyModel, architecture: Literal["qwen3", "llama"], tokenizer: Any, seed: int) -> Any:
    """Make a causal language model with random fp32 weights; its vocabulary and its marks are the tokenizer's.

    Args:
        size: layers, hidden size and attention heads; the feed-forward layer is three times the hidden size.
        architecture: `qwen3` with tied embeddings, or `llama` with an output layer of its own.
        tokenizer: says how many tokens there are, and which of them end and fill a sequence.
        seed: of the weights alone; the global random state is left as it was.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    config, kind = {
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[architecture]
    made = config(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=3 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        head_dim=max(LEAST_HEAD, size.hidden // size.heads),
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=architecture == "qwen3",
        initializer_range=INITIAL_SPREAD,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(made)
