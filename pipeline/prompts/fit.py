"""What a model could not be asked as it is written: prompts that are too long, and text that would end a turn."""

from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.models.record import Model
from pipeline.models.templates import render_prompt


class Fit:
    """The tokenizers of the models that read the prompts, and the longest prompt that all of them take.

    How long a response may be is a setting of the stage that writes it, which asks again before it opens a model.
    """

    def __init__(self, models: Iterable[Model], max_tokens: int | None):
        models = list(models)
        distinct = {(model.tokenizer, model.chat_template): model for model in models}
        self._readers = [(model.name, model.load_tokenizer()) for model in distinct.values()]
        self._special = {
            str(token): name
            for name, tokenizer in self._readers
            # Those with a role (end of sequence), and those that templates write (`<|im_start|>`).
            for token in [*tokenizer.all_special_tokens, *_list_added(tokenizer)]
        }
        known = [(model.context, model.name) for model in models if model.context]
        limits = [(context - 1, f"{name} takes {context}, a response included") for context, name in known]
        limits += [] if max_tokens is None else [(max_tokens, f"prompts.max_tokens allows {max_tokens}")]
        self._limit = min(limits, default=None) if self._readers else None
        self._frame = self._count_tokens([{"role": "user", "content": "x"}])

    def find_fault(self, messages: Sequence[dict[str, str]], hint: str | None = None) -> str | None:
        """Say why a model cannot be asked this, or be shown this hint; None where it can."""
        texts = [message["content"] for message in messages]
        for text in [*texts, hint or ""]:
            for token, name in self._special.items():
                if token in text:
                    return (
                        f"has `{token}`, which the tokenizer of {name} takes for its own: it ends a turn, or begins one"
                    )
        # A token is a byte at least. Most prompts are short beside what models take, and need not be counted; twice,
        # for tokenizers that rewrite a text before they cut it.
        most = len(messages) * self._frame + 2 * sum(len(text.encode()) for text in texts)
        if (
            self._limit is not None
            and most > self._limit[0]
            and (count := self._count_tokens(messages)) > self._limit[0]
        ):
            return f"has {count} tokens, where {self._limit[1]}"
        return None

    def _count_tokens(self, messages: Sequence[dict[str, str]]) -> int:
        """Count the tokens of a prompt, template included, by whichever model it is longest for."""
        return max((len(render_prompt(tokenizer, messages)) for _, tokenizer in self._readers), default=0)


def _list_added(tokenizer: Any) -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
