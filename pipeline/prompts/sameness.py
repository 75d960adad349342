"""Which prompts are the same to a person, though not to the byte; what a model is asked stays as the user wrote it.

Prompts are compared in two normal forms, because two mistakes are possible:

- *spelled alike* decides duplicates and contradictions, so it must not join what differs in meaning. It forgets
  characters that nobody sees (zero-width characters, byte order marks, soft hyphens, direction marks, variation
  selectors), the kind and number of spaces, spaces beside punctuation, composed against decomposed letters (NFC),
  presentation forms (full-width digits, ligatures, letters in a mathematical font), and curly against straight quotes
  and dashes. Case stays, and so do superscripts, subscripts and fractions: x² is not x2.
- *asking alike* keeps evaluation prompts out of training and near-duplicates on one side of the validation split, where
  joining too much costs a prompt and joining too little a result. It also forgets case, superscripts and the like
  (NFKC), and system messages.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence

WINDOW = 8
"""Words and signs that an evaluation prompt has at least, if training prompts that quote it are to be left out."""

_PIECES = re.compile(r"\w+|[^\w\s]")

_KEPT_TAGS = ("<super>", "<sub>", "<fraction>")
"""Unicode's compatibility characters that mean something else than the plain ones."""

_MEANING_ALIKE = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
    }
)

_CONTROLS = {code: None for code in (*range(0x20), 0x7F) if not chr(code).isspace()}


def spell_messages(messages: Sequence[dict[str, str]]) -> str:
    """Write messages so that prompts which are spelled alike are equal."""
    return "\n".join(f"{message['role']}: {_spell(message['content'])}" for message in messages)


def ask_messages(messages: Sequence[dict[str, str]]) -> str:
    """Write messages so that prompts which ask alike are equal."""
    return _join(_list_turns(messages))


class Asked:
    """What evaluation prompts ask, to be found in other prompts: as the whole, as one turn, or quoted in a turn."""

    def __init__(self, prompts: Iterable[Sequence[dict[str, str]]]):
        self._wholes: set[str] = set()
        self._turns: set[str] = set()
        self._quoted: dict[tuple[str, ...], set[str]] = {}
        for messages in prompts:
            self._wholes.add(ask_messages(messages))
            question = _ask(messages[-1]["content"])
            if not any(message["role"] == "assistant" for message in messages):
                self._turns.add(question)
            pieces = question.split()
            if len(pieces) >= WINDOW:
                self._quoted.setdefault(tuple(pieces[:WINDOW]), set()).add(question)

    def is_in(self, messages: Sequence[dict[str, str]]) -> bool:
        """Tell whether a prompt asks what an evaluation prompt does, alone or among other text."""
        turns = _list_turns(messages)
        return _join(turns) in self._wholes or any(self._is_in_turn(turn) for role, turn in turns if role == "user")

    def _is_in_turn(self, turn: str) -> bool:
        if turn in self._turns:
            return True
        if not self._quoted:
            return False
        pieces = turn.split(" ")
        windows = zip(*(pieces[start:] for start in range(WINDOW)), strict=False)
        begun = self._quoted.keys() & set(windows)
        return any(f" {question} " in f" {turn} " for window in begun for question in self._quoted[window])


def _list_turns(messages: Sequence[dict[str, str]]) -> list[tuple[str, str]]:
    """List who says what, as `ask_messages` compares it."""
    return [(message["role"], _ask(message["content"])) for message in messages if message["role"] != "system"]


def _join(turns: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"{role}: {text}" for role, text in turns)


def _spell(text: str) -> str:
    """Give the pieces of a text, words and signs, with one space between them."""
    if text.isascii():  # most are, and need not be looked at sign by sign
        return " ".join(_PIECES.findall(text.translate(_CONTROLS)))
    seen = "".join(_plain(sign) for sign in text)
    return " ".join(_PIECES.findall(unicodedata.normalize("NFC", seen).translate(_MEANING_ALIKE)))


def _ask(text: str) -> str:
    spelled = _spell(text)
    if spelled.isascii():
        return spelled.lower()
    folded = unicodedata.normalize("NFKC", spelled).casefold()
    return " ".join(_PIECES.findall(unicodedata.normalize("NFKC", folded)))


@functools.cache
def _plain(sign: str) -> str:
    """Replace a presentation form by what it presents, and what nobody sees by nothing."""
    kind = unicodedata.category(sign)
    selects = "VARIATION SELECTOR" in unicodedata.name(sign, "") or sign == "\u034f"  # joins graphemes
    if kind == "Cf" or (kind == "Cc" and not sign.isspace()) or selects:
        return ""
    made_of = unicodedata.decomposition(sign)
    is_presentation = made_of.startswith("<") and not made_of.startswith(_KEPT_TAGS)
    return unicodedata.normalize("NFKC", sign) if is_presentation else sign
