"""The demo's task and models: sums of three numbers with written-out working, and tiny transformers.

All are made on the spot, from seeds: nothing is downloaded, and nothing pre-trained comes along.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipeline import facts, hashing, models, shards, view_settings
from pipeline.errors import PromptError
from pipeline.grading import MARKER
from pipeline.model_settings import Demo, TinyModel

SMALLEST, LARGEST = 10, 99
"""Every number has two digits, so every prompt is as long as the others."""

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


def sums(seed: int, count: int, hinted: bool = False) -> Iterator[dict[str, str]]:
    """Draw `count` different sums.

    Two seeds may have sums in common; the `prompts` stage keeps those of the evaluation out of training.

    Args:
        seed: of the draw.
        count: of sums.
        hinted: whether the question itself shows the hint.

    Returns:
        Rows of `question` (`17+48+25=?`), `answer` (`90`), `hint` (`17+48=65`: the first half of the working) and
        `domain` (`sums`).

    Raises:
        PromptError: there are not so many.
    """
    numbers = LARGEST - SMALLEST + 1
    if count > numbers**3:
        raise PromptError(f"sums: at most {numbers**3} different ones can be drawn, found `limit: {count}`.")
    # Of a permutation of all, so that a larger count adds sums and changes none.
    drawn = np.random.default_rng(seed).permutation(numbers**3)[:count]
    places = np.stack(np.unravel_index(drawn, (numbers,) * 3), axis=1) + SMALLEST
    rows = ({**_row(*map(int, place)), "domain": "sums"} for place in places)
    return ({**row, "question": shown(row)} for row in rows) if hinted else rows


def shown(row: dict[str, str]) -> str:
    """The question with its hint, as a view with `context: hint` shows it."""
    return view_settings.Hint().template.format(prompt=row["question"], hint=row["hint"])


def _row(first: int, second: int, third: int) -> dict[str, str]:
    question = f"{first}+{second}+{third}=?"
    return {"question": question, "answer": str(first + second + third), "hint": f"{first}+{second}={first + second}"}


def solution(question: str, written: Callable[[int], int] = int) -> str:
    r"""The worked solution: `17+48+25=?` gives `17+48=65\n65+25=90\n#### 90`.

    Args:
        question: the sum.
        written: what is written down for a computed number; the working goes on from that.
    """
    first, second, third = (int(number) for number in question.removesuffix("=?").split("+"))
    half = written(first + second)
    whole = written(half + third)
    return f"{first}+{second}={half}\n{half}+{third}={whole}\n{MARKER} {whole}"


def slipping(share: float, seed: int) -> Callable[[int], int]:
    """Writes numbers down with this share of their digits replaced by another digit, drawn evenly."""
    draw = np.random.default_rng(seed)

    def written(number: int) -> int:
        digits = np.array([int(digit) for digit in str(number)])
        offsets = draw.integers(1, 10, len(digits)) * (draw.random(len(digits)) < share)
        return int("".join(map(str, (digits + offsets) % 10)))

    return written


def make_tokenizer(kind: Literal["characters", "bpe"]) -> Any:
    """The tokenizer of a `models.demo.tokenizer` setting."""
    if kind == "characters":
        return character_tokenizer()
    return bpe_tokenizer((f"{row['question']} {solution(row['question'])}" for row in sums(0, 2000)), BPE_TOKENS)


def character_tokenizer() -> Any:
    """One token for each printable ASCII character and the line break; any other character is `<|unknown|>`."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds

    characters = ["\n", *map(chr, range(ord(" "), ord("~") + 1))]
    vocabulary = {token: number for number, token in enumerate([*_MARKS, *characters])}
    inner = Tokenizer(kinds.WordLevel(vocabulary, unk_token=_UNKNOWN))
    single = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.pre_tokenizer = single  # pyright: ignore[reportAttributeAccessIssue] - a property of the Rust class
    inner.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    return _with_chat(inner)


def bpe_tokenizer(texts: Iterable[str], size: int) -> Any:
    """Byte-level BPE as in GPT-2: any text can be written.

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
    """A causal language model with random fp32 weights; its vocabulary and its marks are the tokenizer's.

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


def write_examples(path: Path, tokenizer: Any, settings: Demo) -> None:
    """Write worked sums as a shard that training can read; nobody sampled them, so they have no log-probabilities."""
    rows = list(sums(settings.seed, settings.examples))
    written = slipping(settings.slips, settings.seed)
    has_hint = np.random.default_rng([settings.seed, 1]).random(len(rows)) < settings.hinted
    asked = [shown(row) if has else row["question"] for row, has in zip(rows, has_hint, strict=True)]
    prompts = [models.render(tokenizer, [{"role": "user", "content": question}]) for question in asked]
    responses = [[*tokenizer.encode(solution(row["question"], written)), tokenizer.eos_token_id] for row in rows]
    columns = {
        "rollout_id": [hashing.digest(row["question"]) for row in rows],
        "prompt_ids": prompts,
        "response_ids": responses,
    }
    schema = pa.schema([shards.ROLLOUTS.field(name) for name in facts.ROLLOUT_COLUMNS])
    identity = {"made": "worked sums", "seed": settings.seed, "count": settings.examples, "slips": settings.slips}
    identity |= {"hinted": settings.hinted} if settings.hinted else {}
    with shards.Writer(path, schema, identity, {}) as writer:
        writer.write(pa.table(columns, schema))
