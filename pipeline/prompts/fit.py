"""What a model could not be asked as it is written: prompts that are too long, and text that would end a turn."""

from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.models.record import Model, render_prompt


class Fit:
    """The tokenizers of the models that read the prompts, and the longest prompt allowed."""

    def __init__(self, models: Iterable[Model], max_tokens: int | None):
        distinct = {(model.tokenizer, model.chat_template): model for model in models}
        self._readers = [(model.name, model.load_tokenizer()) for model in distinct.values()]
        self._special = {
            str(token): name
            for name, tokenizer in self._readers
            # Those with a role (end of sequence), and those that templates write (`<|im_start|>`).
            for token in [*tokenizer.all_special_tokens, *_list_added(tokenizer)]
        }
        self._max_tokens = max_tokens

    def find_fault(self, messages: Sequence[dict[str, str]], hint: str | None = None) -> str | None:
        """Say why a model cannot be asked this, or be shown this hint; None where it can."""
        for text in [*(message["content"] for message in messages), hint or ""]:
            for token, name in self._special.items():
                if token in text:
                    return (
                        f"has `{token}`, which the tokenizer of {name} takes for its own: it ends a turn, or begins one"
                    )
        if self._max_tokens is not None and self._readers:
            longest = max(len(render_prompt(tokenizer, messages)) for _, tokenizer in self._readers)
            if longest > self._max_tokens:
                return f"has {longest} tokens, where prompts.max_tokens allows {self._max_tokens}"
        return None


def _list_added(tokenizer: Any) -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
