"""Packs against the sequences that went in: each once, little padding, and the model sees each as if it were alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.head.answer import Ask
from pipeline.models.open import open_student
from pipeline.models.packing import Pack, build_pack, plan_packs
from pipeline.models.record import record_model
from pipeline.objectives.supervised import nll
from tests import tiny_models

lengths_and_tokens = st.tuples(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200))


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tiny_models.qwen3(tmp_path_factory.mktemp("model") / "qwen3")
    return open_student(record_model(str(folder)), torch.float64).eval()


def sequences(lengths, prompt_share=0.4):
    """Random prompts and responses of these lengths together; every response has a token."""
    random = np.random.default_rng(0)
    cuts = [max(1, min(length - 1, round(length * prompt_share))) for length in lengths]
    ids = [random.integers(4, 30, length) for length in lengths]
    return [row[:cut] for row, cut in zip(ids, cuts, strict=True)], [
        row[cut:] for row, cut in zip(ids, cuts, strict=True)
    ]


@given(lengths_and_tokens)
def test_every_sequence_stands_in_one_row_once(case):
    lengths, tokens = case
    packs = plan_packs(lengths, tokens)
    assert sorted(index for rows in packs for row in rows for index in row) == list(range(len(lengths)))
    assert all(row for rows in packs for row in rows)


@given(lengths_and_tokens)
def test_no_pack_exceeds_the_token_budget_but_that_of_an_over_long_sequence(case):
    lengths, tokens = case
    for rows in plan_packs(lengths, tokens):
        in_pack = [lengths[index] for row in rows for index in row]
        size = len(rows) * max(sum(lengths[index] for index in row) for row in rows)
        assert size <= tokens or len(in_pack) == 1


@given(lengths_and_tokens)
def test_no_row_is_wider_than_the_longest_sequence(case):
    lengths, tokens = case
    rows = [row for rows in plan_packs(lengths, tokens) for row in rows]
    assert all(sum(lengths[index] for index in row) <= max(lengths) for row in rows)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40))
def test_what_fits_one_pack_is_in_one_pack(lengths):
    """Every pack is a pass through the model."""
    assert len(plan_packs(lengths, max(lengths) * len(lengths))) == 1


def test_little_of_a_tenfold_spread_is_padding():
    """Over twenty draws of 256 lengths, 64 to 640 tokens."""
    used = computed = 0
    for seed in range(20):
        lengths = np.random.default_rng(seed).integers(64, 641, 256)
        used += lengths.sum()
        for rows in plan_packs(lengths, 16384):
            computed += len(rows) * max(sum(lengths[index] for index in row) for row in rows)
    assert 1 - used / computed < 0.05


def test_one_long_sequence_does_not_widen_the_rows_of_short_ones():
    """Attention costs the square of a row's width."""
    lengths = [8000] + [50] * 400
    widths = [max(sum(lengths[index] for index in row) for row in rows) for rows in plan_packs(lengths, 16384)]
    assert sorted(widths)[-2:] == [50, 8000]


def test_a_plan_is_the_same_each_time_and_for_lists_and_arrays():
    lengths = [5, 9, 5, 2, 9, 1]
    assert plan_packs(lengths, 20) == plan_packs(np.array(lengths), 20)


def test_a_pack_says_where_each_response_token_is_predicted():
    prompts, responses = [np.array([5, 6]), np.array([7])], [np.array([8, 9]), np.array([10, 11, 12])]
    pack = build_pack([[0, 1]], prompts, responses)
    assert pack.input_ids.tolist() == [[5, 6, 8, 9, 7, 10, 11, 12]]
    assert pack.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3]]
    assert pack.sampled_ids.tolist() == [8, 9, 10, 11, 12]
    assert pack.input_ids.flatten()[pack.predicts].tolist() == [6, 8, 7, 10, 11]
    assert pack.sequences.tolist() == [0, 1]


def test_the_token_after_each_place_of_prediction_is_the_response_token():
    prompts, responses = sequences([7, 3, 12, 5, 9, 2])
    for rows in plan_packs([7, 3, 12, 5, 9, 2], 24):
        pack = build_pack(rows, prompts, responses)
        assert torch.equal(pack.input_ids.flatten()[pack.predicts + 1], pack.sampled_ids)
        assert torch.equal(
            pack.position_ids.flatten()[pack.predicts + 1], pack.position_ids.flatten()[pack.predicts] + 1
        )


def _loss(student, pack):
    """Something that depends on every response token differently, whatever pack it is in."""
    ids = (pack.sampled_ids[:, None] + torch.tensor([1, 2])) % 30
    answer = student(pack, Ask(pack.sampled_ids, ids))
    return (nll(answer.sampled) + 0.5 * answer.logprobs[:, 0] * answer.tail).sum()


def _gradient(student, packs):
    student.zero_grad()
    torch.stack([_loss(student, pack) for pack in packs]).sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in student.parameters()])


def test_packed_sequences_are_to_the_model_what_they_are_alone(student):
    """Hidden states of every sequence, in rows with neighbours before and behind and with padding."""
    lengths = [9, 14, 6, 11, 5, 3, 8]
    prompts, responses = sequences(lengths)
    packs = [build_pack(rows, prompts, responses) for rows in plan_packs(lengths, 42)]
    assert max(len(row) for rows in plan_packs(lengths, 42) for row in rows) > 1
    with torch.no_grad():
        for pack in packs:
            found = student.hidden(pack)
            alone = [student.hidden(build_pack([[int(index)]], prompts, responses)) for index in pack.sequences]
            torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=1e-10)


def test_gradients_of_packed_sequences_are_those_of_each_alone(student):
    lengths = [9, 14, 6, 11, 5, 3, 8]
    prompts, responses = sequences(lengths)
    packed = _gradient(student, [build_pack(rows, prompts, responses) for rows in plan_packs(lengths, 42)])
    alone = _gradient(student, [build_pack([[index]], prompts, responses) for index in range(len(lengths))])
    assert alone.abs().max() > 0.1
    torch.testing.assert_close(packed, alone, rtol=1e-9, atol=1e-9)


def test_what_stands_in_the_padding_changes_nothing(student):
    prompts, responses = sequences([12, 5])
    pack = build_pack([[0], [1]], prompts, responses)
    is_padding = torch.tensor([[False] * 12, [False] * 5 + [True] * 7])
    assert not pack.input_ids[is_padding].any()
    filled = Pack(
        pack.input_ids.masked_fill(is_padding, 21), pack.position_ids, pack.predicts, pack.sampled_ids, pack.sequences
    )
    with torch.no_grad():
        assert torch.equal(student.hidden(pack), student.hidden(filled))
