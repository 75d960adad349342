"""From token ids to text: what each token adds to the text before it."""

import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError

if TYPE_CHECKING:
    import pyarrow as pa

Decoder = Callable[[Sequence[int]], str]
"""From ids to text, special tokens included."""

_FIRST_IDS = 1000
"""Where a token is looked for that others are decoded after: every vocabulary has a letter among so many."""


def make_decoder(record: Path) -> Decoder:
    """Make the decoder of a recorded model (`data/models/student.json`) from its tokenizer.

    Raises:
        ModelError: there is no record, or its tokenizer cannot be opened.
    """
    from pipeline.models.record import read_model

    tokenizer = read_model(record).load_tokenizer()
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def split_pieces(ids: Sequence[int], decode: Decoder) -> list[str]:
    """Split a text into what each token adds to the text of the one before it.

    A token decoded alone loses the space before it in SentencePiece vocabularies; decoded after its neighbour it does
    not. A character that is spread over tokens shows as replacement characters.
    """
    found = [decode(ids[:1])] if len(ids) else []
    for before, token in itertools.pairwise(ids):
        alone = decode([before])
        both = decode([before, token])
        found.append(both[len(alone) :] if both.startswith(alone) else decode([token]))
    return found


def make_texts(record: Path) -> Callable[["pa.ChunkedArray"], "pa.Array"]:
    """Make the function from a column of ids to a column of their texts, each as it stands after a letter.

    An id is decoded once, however many rows have it, and the tokenizer is opened at the first call. Where there is
    none (shards alone were pulled), every text is null.
    """
    texts: dict[int | None, str | None] = {None: None}

    @functools.cache
    def open_decoder() -> tuple[Decoder, list[int]] | None:
        """Open the tokenizer, and find a letter to decode others after (none in a vocabulary without); or None."""
        try:
            decode = make_decoder(record)
        except ModelError:
            return None
        letters = (token for token in range(_FIRST_IDS) if decode([token]).isalpha())
        return decode, list(itertools.islice(letters, 1))

    def find_texts(ids: Any) -> Any:  # DuckDB evaluates what stands here
        """Give the texts of a column of ids; those that were not asked for before are decoded."""
        import pyarrow as pa

        asked, opened = ids.to_pylist(), open_decoder()
        if opened is None:
            return pa.nulls(len(asked), pa.string())
        decode, letter = opened
        for token in set(asked) - texts.keys():
            texts[token] = split_pieces([*letter, token], decode)[-1]
        return pa.array([texts[token] for token in asked], pa.string())

    return find_texts
