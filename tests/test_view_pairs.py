"""Two views of one model in two contexts: the KL between them against slow loops, and when they are told to be one.

Distributions are drawn whole, so the KL over the vocabulary is known; what a view keeps of them is cut from there.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ShardError
from pipeline.scoring import context_effect
from pipeline.scoring.context_effect import ROWS, SHARDS, check_contexts_differ, least_kl
from pipeline.storage.ragged import Ragged
from pipeline.storage.scores import SCORES, Scores, make_score_table, make_skipped_table
from pipeline.storage.shards import Writer

VOCABULARY, TOKENS = 12, 5
seeds = st.integers(0, 2**32 - 1)


def drawn(random: np.random.Generator, sharpness: float = 2.0) -> np.ndarray:
    """Log-probabilities [token, id]."""
    logits = random.normal(size=(TOKENS, VOCABULARY)) * sharpness
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def top(logprobs: np.ndarray, k: int, sampled: np.ndarray) -> Scores:
    """What a view with `top_k: k` keeps."""
    ids = np.argsort(-logprobs, axis=1)[:, :k]
    kept = np.take_along_axis(logprobs, ids, axis=1)
    outside = [np.delete(row, entries) for row, entries in zip(logprobs, ids, strict=True)]
    tails = [np.logaddexp.reduce(row) if len(row) else -np.inf for row in outside]
    lengths = np.full(len(logprobs), k)
    at_sampled = logprobs[np.arange(len(logprobs)), sampled]
    entries = Ragged.cut(ids.ravel(), lengths), Ragged.cut(kept.ravel(), lengths)
    return Scores(at_sampled, *entries, lengths, np.array(tails), None)


def full_kl(one: np.ndarray, other: np.ndarray) -> list[float]:
    return [
        math.fsum(math.exp(p) * (p - q) for p, q in zip(row, twin, strict=True))
        for row, twin in zip(one, other, strict=True)
    ]


@given(seeds, st.integers(1, VOCABULARY), st.integers(1, VOCABULARY))
def test_the_least_kl_lies_between_zero_and_the_kl_over_the_vocabulary(seed, k, other_k):
    random = np.random.default_rng(seed)
    one, other, sampled = drawn(random), drawn(random), random.integers(0, VOCABULARY, TOKENS)
    least = least_kl(top(one, k, sampled), top(other, other_k, sampled))
    assert (least > -1e-12).all()
    assert (least <= np.array(full_kl(one, other)) + 1e-9).all()


@given(seeds)
def test_it_is_that_kl_where_both_kept_the_whole_vocabulary(seed):
    random = np.random.default_rng(seed)
    one, other, sampled = drawn(random), drawn(random), random.integers(0, VOCABULARY, TOKENS)
    least = least_kl(top(one, VOCABULARY, sampled), top(other, VOCABULARY, sampled))
    np.testing.assert_allclose(least, full_kl(one, other), atol=1e-9)


@given(seeds, st.integers(1, VOCABULARY), st.integers(1, VOCABULARY))
def test_it_is_zero_between_two_supports_of_one_distribution(seed, k, other_k):
    random = np.random.default_rng(seed)
    one, sampled = drawn(random), random.integers(0, VOCABULARY, TOKENS)
    assert np.abs(least_kl(top(one, k, sampled), top(one, other_k, sampled))).max() < 1e-9


def test_views_without_an_id_in_common_differ_by_the_sampled_token():
    one = np.log(np.array([[0.7, 0.2, 0.1]]))
    other = np.log(np.array([[0.1, 0.2, 0.7]]))
    least = least_kl(top(one, 1, np.array([0])), top(other, 1, np.array([0])))
    np.testing.assert_allclose(least, [0.7 * math.log(7) + 0.3 * math.log(0.3 / 0.9)])


def write(path: Path, logprobs: Sequence[np.ndarray | None], hashes: Sequence[str]) -> None:
    """A shard of scores: of each row its log-probabilities, None for a row without a score."""
    path.parent.mkdir(exist_ok=True)
    tables = []
    for number, (row, context_hash) in enumerate(zip(logprobs, hashes, strict=True)):
        if row is None:
            tables.append(make_skipped_table([f"row-{number}"], ["no hint"]))
            continue
        scores = top(row, 4, np.zeros(TOKENS, int))
        tables.append(make_score_table([f"row-{number}"], np.array([TOKENS]), scores, [context_hash]))
    with Writer(path, SCORES, {}, {}) as writer:
        writer.write(pa.concat_tables(tables))


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    return {"teacher": tmp_path / "teacher", "hinted": tmp_path / "hinted"}


PLAIN = [drawn(np.random.default_rng(number)) for number in range(6)]
HINTED = [drawn(np.random.default_rng(100 + number)) for number in range(6)]


def pair(folders, hinted, hashes, shard="0.parquet"):
    write(folders["teacher"] / shard, PLAIN, [f"plain-{number}" for number in range(6)])
    write(folders["hinted"] / shard, hinted, hashes)


def test_two_contexts_that_change_what_is_said_are_welcome(folders):
    pair(folders, HINTED, [f"hinted-{number}" for number in range(6)])
    check_contexts_differ(folders)


def test_one_row_with_the_same_context_is_told_in_whichever_shard(folders):
    pair(folders, HINTED, [f"hinted-{number}" for number in range(6)])
    pair(folders, HINTED, [*(f"hinted-{number}" for number in range(5)), "plain-5"], "1.parquet")
    with pytest.raises(ShardError) as told:
        check_contexts_differ(folders)
    assert "score.views.teacher and score.views.hinted are one model in two contexts" in str(told.value)
    assert f"response row-5 ({folders['hinted'] / '1.parquet'}) was scored after the same tokens" in str(told.value)


def test_contexts_that_change_nothing_are_told_with_their_kl(folders):
    close = [row + 1e-4 * np.random.default_rng(7).normal(size=row.shape) for row in PLAIN]
    pair(folders, [row - np.logaddexp.reduce(row, axis=1, keepdims=True) for row in close], list("abcdef"))
    with pytest.raises(
        ShardError, match=r"over 20 tokens of 4 responses, row-0 the first, their mean KL is \d\.\de-\d+ n"
    ):
        check_contexts_differ(folders)


def test_a_difference_in_a_few_rows_is_enough(folders):
    pair(folders, [HINTED[0], *PLAIN[1:]], list("abcdef"))
    check_contexts_differ(folders)


def test_rows_that_a_view_skipped_are_not_compared(folders):
    pair(folders, [None, None, None, None, None, HINTED[5]], ["", "", "", "", "", "hinted"])
    check_contexts_differ(folders)
    pair(folders, [None, None, None, None, None, PLAIN[5]], ["", "", "", "", "", "hinted"])
    with pytest.raises(ShardError, match="over 5 tokens of 1 responses, row-5 the first"):
        check_contexts_differ(folders)


def test_views_without_a_row_in_common_are_not_compared(folders):
    pair(folders, [None] * 6, [""] * 6)
    check_contexts_differ(folders)


def test_the_sample_is_spread_over_the_shards_and_bounded(folders, monkeypatch):
    hashes = [f"hinted-{number}" for number in range(6)]
    for number in range(50):
        pair(folders, HINTED if number == 48 else PLAIN, hashes, f"{number:02d}.parquet")
    check_contexts_differ(folders)  # shards 0, 4, 8, … are looked at, 48 the last
    looked_at = []
    original = least_kl
    monkeypatch.setattr(context_effect, "least_kl", lambda *kept: looked_at.append(kept) or original(*kept))
    check_contexts_differ(folders)
    assert len(looked_at) == 13 * ROWS <= SHARDS * ROWS
