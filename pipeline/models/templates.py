"""Chat templates: which one a tokenizer renders with, and messages rendered alike today and next year.

A template is a program that comes with a model. It is run as transformers runs it, in a sandbox that loads no files,
but with a clock that stands still: Llama 3.2's writes today's date into the system message, and prompts would be others
tomorrow under the same fingerprint.
"""

import datetime
from collections.abc import Sequence
from typing import Any

from pipeline.errors import ModelError, PromptError

TODAY = datetime.datetime(2024, 7, 26)
"""What `strftime_now` tells a template."""


def find_template(tokenizer: Any, name: str) -> str:
    """Find the text of the template that messages are rendered with; of several by name, the one called `default`.

    Raises:
        ModelError: there is none, or several and none of them called so.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            raise ModelError(
                f"{name}: its tokenizer has chat templates called {', '.join(sorted(template))}, and none `default`. "
                "Call the one to use so, in tokenizer_config.json, or save it as chat_template.jinja."
            )
        template = template["default"]
    if not template:
        raise ModelError(
            f"{name}: its tokenizer has no chat template, so no prompt can be written as the model expects."
        )
    return template


def render_prompt(tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[int]:
    """Render messages as the prompt's ids: the chat template around them, up to where the response begins.

    Raises:
        PromptError: the template does not take these messages; Gemma's refuses a system message, for example.
    """
    try:
        rendered = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=False, strftime_now=TODAY.strftime
        )
    except Exception as error:  # a template is a program that came with the model, and may raise anything
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        told = ", ".join(f"{message['role']} {message['content'][:40]!r}" for message in messages)
        raise PromptError(
            f"the chat template of {tokenizer.name_or_path} does not take a prompt: {reason} Its messages: {told}. "
            "Change the messages (`prompts.sources`), or the template."
        ) from error
    return list(rendered)
