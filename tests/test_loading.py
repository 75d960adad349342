"""The loader against the shards: which rows a step has, in which order, and what a pack says of each token."""

import itertools
import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.engines.fake import BigramEngine
from pipeline.errors import ShardError
from pipeline.models.record import record_model
from pipeline.settings.models import EngineSettings
from pipeline.storage.bucket import Bucket
from pipeline.storage.scores import SCORES, make_skipped_table
from pipeline.storage.shards import Writer, read_shard
from pipeline.training.row_groups import RowGroups
from pipeline.training.rows import Rows
from tests import tiny_models, tiny_shards

COUNTS = [70, 9]
TOKENS = 60


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tiny_models.bigram(tmp_path_factory.mktemp("model") / "bigram")
    return BigramEngine(record_model(str(folder)), EngineSettings(engine="fake"))


@pytest.fixture(scope="module")
def sources(engine, tmp_path_factory):
    return tiny_shards.write(tmp_path_factory.mktemp("shards"), engine, engine, COUNTS)


def same(first, second) -> bool:
    """Whether two steps have the same packs, to the last bit."""
    return len(first) == len(second) and all(
        all(torch.equal(a, b) for a, b in zip(one.tensors, other.tensors, strict=True))
        and torch.equal(inputs.targets["teacher"].outcomes.logprobs, others.targets["teacher"].outcomes.logprobs)
        for (one, inputs), (other, others) in zip(first, second, strict=True)
    )


def test_every_row_comes_once_in_each_epoch_in_an_order_of_its_own(sources):
    rows = Rows(sources)
    assert rows.count == sum(COUNTS)
    orders = [rows.order(epoch, seed) for epoch, seed in [(0, 0), (1, 0), (0, 1)]]
    for order in orders:
        assert sorted(order) == rows.sequential() == sorted(tiny_shards.stored(sources))
    assert orders[0] == Rows(sources).order(0, 0)
    assert all(first != second for first, second in itertools.combinations([*orders, rows.sequential()], 2))


def test_steps_go_through_the_epochs_without_a_gap(sources):
    rows, batch = Rows(sources), 16
    loader = tiny_shards.loader(rows, 10, batch, TOKENS, seed=3)
    order = [place for epoch in range(3) for place in rows.order(epoch, 3)]
    kept = tiny_shards.stored(sources)
    for step in range(10):
        found = sorted(ids for pack, _ in loader.step(step) for ids in _responses(pack))
        wanted = sorted(tuple(kept[place]["response_ids"]) for place in order[step * batch : (step + 1) * batch])
        assert found == wanted


def _responses(pack) -> list[tuple[int, ...]]:
    """The responses of a pack: a new one begins where the predicting place does not follow the last."""
    starts = [0, *(np.flatnonzero(np.diff(pack.predicts.numpy()) != 1) + 1), len(pack.predicts)]
    return [tuple(pack.sampled_ids[a:b].tolist()) for a, b in itertools.pairwise(starts)]


def test_a_step_depends_on_its_number_and_the_seed_alone(sources):
    loader, other = (tiny_shards.loader(Rows(sources), 8, 16, TOKENS, seed=3) for _ in range(2))
    in_turn = list(loader)
    assert len(in_turn) == len(loader) == 8
    assert all(same(other.step(number), in_turn[number]) for number in (7, 2, 5, 2))
    assert not same(tiny_shards.loader(Rows(sources), 8, 16, TOKENS, seed=4).step(2), in_turn[2])


def test_a_restored_loader_goes_on_where_the_other_was(sources):
    loader = tiny_shards.loader(Rows(sources), 6, 16, TOKENS, seed=0)
    steps = iter(loader)
    for _ in range(4):
        next(steps)
    restored = tiny_shards.loader(Rows(sources), 6, 16, TOKENS, seed=0)
    restored.load_state_dict(loader.state_dict())
    rest = list(restored)
    assert len(rest) == 2
    assert all(same(one, loader.step(number)) for one, number in zip(rest, (4, 5), strict=True))


@pytest.mark.parametrize("tokens", [TOKENS, 10_000])
@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_the_shares_of_a_step_sum_to_one(sources, reduction, tokens):
    packs = tiny_shards.loader(Rows(sources), 5, 16, tokens).step(1)
    assert (len(packs) > 1) == (tokens == TOKENS)
    shares = torch.cat([inputs.shares[reduction] for _, inputs in packs])
    assert shares.sum().item() == pytest.approx(1, abs=1e-6)
    assert len(shares) == sum(len(pack.sampled_ids) for pack, _ in packs)
    if reduction == "token_mean":
        assert len(set(shares.tolist())) == 1
        return
    ends = np.cumsum([len(response) for pack, _ in packs for response in _responses(pack)])
    for response in np.split(shares.numpy(), ends[:-1]):
        assert response.sum() == pytest.approx(1 / 16)
        assert len(set(response.tolist())) == 1


def test_each_token_has_the_entries_of_its_own_row_and_position(sources):
    rows, kept = Rows(sources), tiny_shards.stored(sources)
    places = rows.order(0, 0)[:20]
    by_response = {tuple(kept[place]["response_ids"]): kept[place] for place in places}
    for pack, inputs in rows.batch(places, TOKENS):
        target, token = inputs.targets["teacher"], 0
        for response in _responses(pack):
            row = by_response[response]
            for position in range(len(response)):
                count = len(row["support_ids"][position])
                assert target.ids[token].tolist() == row["support_ids"][position] + [-1] * (target.ids.shape[1] - count)
                values = target.outcomes.logprobs[token]
                assert values[:count].tolist() == pytest.approx(row["support_logprobs"][position], abs=1e-3)
                assert torch.isneginf(values[count:]).all()
                assert target.outcomes.tail[token].item() == pytest.approx(row["tail_logprobs"][position], abs=1e-3)
                assert target.sampled[token].item() == row["sampled_logprobs"][position]
                token += 1
        assert token == len(target.ids)


def test_a_target_is_a_distribution(sources):
    for _, inputs in Rows(sources).batch(Rows(sources).sequential(), 10_000):
        outcomes = inputs.targets["teacher"].outcomes
        torch.testing.assert_close(outcomes.all.logsumexp(-1), torch.zeros(len(outcomes.tail)), rtol=0, atol=1e-6)


def test_only_rows_that_may_be_trained_on_are_loaded(sources):
    keeps = [np.arange(count) % 3 == 1 for count in COUNTS]
    chosen = [
        Bucket(source.rollouts, scores=source.scores, keep=keep) for source, keep in zip(sources, keeps, strict=True)
    ]
    rows = Rows(chosen)
    everything = Rows(sources).sequential()
    wanted = [place for place, keep in zip(everything, np.concatenate(keeps), strict=True) if keep]
    assert rows.sequential() == sorted(rows.order(0, 0)) == wanted
    assert rows.count == len(wanted)


def test_a_batch_is_the_same_however_few_row_groups_are_in_memory(sources, monkeypatch):
    places = Rows(sources).order(0, 0)
    known = Rows(sources).batch(places, TOKENS)
    monkeypatch.setattr("pipeline.training.rows.WINDOW", 1)
    rows = Rows(sources)
    assert sorted(rows.order(0, 0)) == rows.sequential()
    assert same(rows.batch(places, TOKENS), known)


def test_a_batch_decodes_each_row_group_once_however_few_are_in_memory(sources, monkeypatch):
    """Its rows come from three row groups in turn, of which two are kept."""
    decoded, decode = [], RowGroups._decode
    monkeypatch.setattr("pipeline.training.rows.WINDOW", 1)
    monkeypatch.setattr(RowGroups, "_decode", lambda self, number: decoded.append(number) or decode(self, number))
    rows = Rows(sources)
    by_group = [list(inside) for _, inside in itertools.groupby(rows.sequential(), lambda place: place[0])]
    rows.batch([place for turn in zip(*by_group, strict=False) for place in turn], TOKENS)
    assert sorted(decoded) == [0, 1, 2]


def _edited(tmp_path, sources, edit) -> Rows:
    """The first shard, its scores changed."""
    table = edit(read_shard(sources[0].scores["teacher"], SCORES))
    path = tmp_path / "edited.parquet"
    with Writer(path, SCORES, {}, {}) as writer:
        writer.write(table)
    return Rows([Bucket(sources[0].rollouts, scores={"teacher": path})])


def _swapped(table):
    return table.take(pa.array([1, 0, *range(2, table.num_rows)]))


def _other_lengths(table):
    ids = table.column("rollout_id")
    return table.take(pa.array([1, 0, *range(2, table.num_rows)])).set_column(0, table.schema.field(0), ids)


def _skipped(table):
    return pa.concat_tables([make_skipped_table([table.column("rollout_id")[0].as_py()], ["no hint"]), table.slice(1)])


def _halved(table):
    tails = [[value - math.log(2) for value in row] for row in table.column("tail_logprobs").to_pylist()]
    place = table.schema.get_field_index("tail_logprobs")
    return table.set_column(place, table.schema.field(place), pa.array(tails, pa.list_(pa.float32())))


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (_swapped, r"edited\.parquet does not score the rows of .*rollouts-0\.parquet, in their order"),
        (_other_lengths, r"edited\.parquet: its lists are not as long as the responses"),
        (_skipped, r"edited\.parquet: 1 of 64 rows have no score \(no hint\)"),
        (_halved, r"edited\.parquet is damaged: the probabilities kept at one token sum to"),
    ],
)
def test_scores_that_do_not_fit_the_rollouts_are_refused(tmp_path, sources, edit, told):
    rows = _edited(tmp_path, sources, edit)
    with pytest.raises(ShardError, match=told):
        rows.batch(rows.sequential()[:4], TOKENS)
