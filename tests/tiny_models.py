"""Models that tests make: bigram models whose every probability is known, and small transformers."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

LETTERS = "abcdefghijklmnop0123456789 +=?:;."
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
MARKS = ["<end>", "<system>", "<user>", "<assistant>"]


def tokenizer(letters: str = LETTERS) -> PreTrainedTokenizerFast:
    """One token for each letter, and four marks for the chat."""
    vocabulary = {token: index for index, token in enumerate([*MARKS, *letters])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    inner.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<end>")
    made.add_special_tokens({"additional_special_tokens": MARKS[1:]})
    made.chat_template = TEMPLATE
    return made


def bigram(folder: Path, seed: int = 0, letters: str = LETTERS, sharpness: float = 2.0, layers: int = 0) -> Path:
    """A Llama whose next token depends on the last one alone.

    Without layers it stays one when it is trained; with a layer, which adds nothing, vLLM opens it too.
    """
    torch.manual_seed(seed)
    own = tokenizer(letters)
    config = LlamaConfig(
        vocab_size=len(own), hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=128, tie_word_embeddings=False, eos_token_id=0,
        bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.lm_head.weight, std=sharpness / 4)
    torch.nn.init.normal_(model.model.embed_tokens.weight)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.zeros_(parameter)
    return _saved(model, own, folder)


def qwen3(folder: Path, seed: int = 0, letters: str = LETTERS, tied: bool = True, padding: int = 0) -> Path:
    """A small transformer of the demo's architecture, untrained; `padding` ids are the model's alone."""
    torch.manual_seed(seed)
    own = tokenizer(letters)
    config = Qwen3Config(
        vocab_size=len(own) + padding, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=128,
        tie_word_embeddings=tied, eos_token_id=0,
        bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():  # the usual initialisation is so flat that nothing could be told apart
        for parameter in model.parameters():
            parameter.mul_(4)
    return _saved(model, own, folder)


def _saved(model: LlamaForCausalLM | Qwen3ForCausalLM, own: PreTrainedTokenizerFast, folder: Path) -> Path:
    assert model.generation_config is not None
    model.generation_config.eos_token_id = 0
    model.save_pretrained(folder)
    own.save_pretrained(folder)
    return folder
