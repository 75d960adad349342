"""SQL over the shards against what the manifests and the shards themselves say."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.errors import PotstillError
from pipeline.grading.metrics import Answered, compute_metrics
from pipeline.report import decoding
from pipeline.report.formats import format_csv
from pipeline.report.sql import OF_ROUNDS, VIEWS, Database
from pipeline.storage.grades import GRADES
from pipeline.storage.manifest import read_manifest
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.scores import SCORES
from tests import example_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example_data.make(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def database(data: Path):
    with Database(data) as opened:
        yield opened


def _count(database: Database, view: str, where: str = "true") -> int:
    return database.ask(f"select count(*) as n from {view} where {where}")[0]["n"]


def test_tokens_counts_each_distinct_rollout_once(data: Path, database: Database):
    """Two rounds, a kept shard and two views: none of them may count a token twice."""
    manifests = [read_manifest(data / "rollouts" / round_) for round_ in ("r1", "r2")]
    distinct = {entry.content: entry.tokens for manifest in manifests for entry in manifest.values()}
    everything = sum(entry.tokens for manifest in manifests for entry in manifest.values())
    assert sum(distinct.values()) < everything
    assert _count(database, "tokens") == sum(distinct.values())
    assert _count(database, "all_tokens") == everything


def test_a_kept_rollout_shows_in_the_latest_round_only(database: Database):
    rows = database.ask("select round, bucket, kept, count(*) as n from rollouts group by all order by all")
    each = example_data.PROMPTS_EACH * example_data.SAMPLES
    assert [(row["round"], row["bucket"], row["kept"], row["n"]) for row in rows] == [
        ("r1", 1, False, each),
        ("r1", 2, False, each),
        ("r2", 0, True, each),
        ("r2", 1, False, each),
        ("r2", 2, False, each),
    ]
    assert _count(database, "all_rollouts", "kept") == each
    for view in ("grades", "scores"):
        kept = database.ask(f"select distinct round, bucket from {view} where kept")
        assert kept == [{"round": "r2", "bucket": 0}], view


def test_rounds_are_ordered_by_number(tmp_path: Path):
    data = example_data.make(tmp_path)
    for kind in ("rollouts", "grades"):
        (data / kind / "r2").rename(data / kind / "r10")
        (data / kind / "r1").rename(data / kind / "r2")
    with Database(data) as database:
        assert database.ask("select distinct round from rollouts where bucket = 0") == [{"round": "r10"}]


def test_tokens_hold_what_the_shards_hold(data: Path, database: Database):
    rollouts = pq.read_table(data / "rollouts/r2/00001.parquet").slice(2, 1).to_pylist()[0]
    scores = pq.read_table(data / "scores/r2/teacher/00001.parquet").slice(2, 1).to_pylist()[0]
    rows = database.ask("select * from tokens where rollout_id = ? order by pos", [rollouts["rollout_id"]])
    assert [row["pos"] for row in rows] == list(range(len(rollouts["response_ids"])))
    assert [row["token_id"] for row in rows] == rollouts["response_ids"]
    assert [row["behaviour_logprob"] for row in rows] == rollouts["behaviour_logprobs"]
    assert [row["sampled_logprob"] for row in rows] == scores["sampled_logprobs"]
    assert [row["tail"] for row in rows] == scores["tail_logprobs"]
    assert [row["entropy"] for row in rows] == scores["entropies"]


def test_support_holds_what_the_shards_hold(data: Path, database: Database):
    scores = pq.read_table(data / "scores/r2/views/hinted/00001.parquet").slice(2, 1).to_pylist()[0]
    rows = database.ask(
        "select * from support where rollout_id = ? and view = 'hinted' order by pos, rank", [scores["rollout_id"]]
    )
    flat = [
        (pos, rank + 1, token, logprob, rank < scores["own"][pos])
        for pos, (ids, logprobs) in enumerate(zip(scores["support_ids"], scores["support_logprobs"], strict=True))
        for rank, (token, logprob) in enumerate(zip(ids, logprobs, strict=True))
    ]
    assert [(row["pos"], row["rank"], row["id"], row["logprob"], row["own"]) for row in rows] == flat
    assert {row["own"] for row in rows} == {True, False}


def test_support_tells_the_views_apart(database: Database):
    counts = {row["view"]: row["n"] for row in database.ask("select view, count(*) as n from support group by view")}
    skipped = database.ask(
        "select sum(len(response_ids)) as n from rollouts join scores using (rollout_id) where skipped is not null"
    )
    assert counts["teacher"] == example_data.TOP_K * _count(database, "tokens")
    assert counts["hinted"] == counts["teacher"] - example_data.TOP_K * skipped[0]["n"]
    assert counts["hinted"] < counts["teacher"]


def test_a_rollout_without_a_score_has_tokens_without_one(tmp_path: Path):
    data = example_data.make(tmp_path)
    (data / "scores/r2/teacher/00001.parquet").unlink()
    with Database(data) as database:
        without = database.ask("select round, bucket, kept from tokens where sampled_logprob is null group by all")
        assert without == [{"round": "r2", "bucket": 1, "kept": False}]


def test_a_rollout_that_is_scored_in_an_earlier_round_alone_has_its_score(tmp_path: Path):
    data = example_data.make(tmp_path)
    (data / "scores/r2/teacher/00000.parquet").unlink()
    with Database(data) as database:
        assert _count(database, "tokens", "kept and sampled_logprob is null") == 0
        assert _count(database, "all_tokens", "kept and sampled_logprob is null") > 0


def test_prompts_and_teacher_rollouts_are_counted(database: Database):
    every = example_data.BUCKETS * example_data.PROMPTS_EACH
    assert _count(database, "prompts") == 3 * every
    assert _count(database, "prompts", "split = 'opd'") == every
    assert _count(database, "teacher_rollouts", "source = 'teacher'") == every * example_data.SAMPLES
    assert _count(database, "rollouts", "source = 'teacher'") == 0


def test_an_empty_folder_has_the_same_columns_and_no_rows(tmp_path: Path, database: Database):
    with Database(tmp_path) as empty:
        for view in [*VIEWS, *[f"all_{name}" for name in OF_ROUNDS]]:
            described, expected = empty.ask(f"describe {view}"), database.ask(f"describe {view}")
            if view == "histories":  # what a recipe's diagnostics add comes behind
                expected = expected[: len(described)]
            assert [(row["column_name"], row["column_type"]) for row in described] == [
                (row["column_name"], row["column_type"]) for row in expected
            ], view
            assert _count(empty, view) == 0


def test_every_view_has_the_columns_of_its_shards(database: Database):
    for view, schema in (("rollouts", ROLLOUTS), ("grades", GRADES), ("scores", SCORES)):
        names = [row["column_name"] for row in database.ask(f"describe {view}")]
        places = ["round", "view", "bucket", "kept"] if view == "scores" else ["round", "bucket", "kept"]
        assert Counter(names) == Counter([*schema.names, *places])


def test_plain_duckdb_reads_the_shards(data: Path):
    import duckdb

    with duckdb.connect() as plain:
        rows = plain.execute(f"select sum(len(response_ids)) from '{data}/rollouts/r1/*.parquet'").fetchall()
    assert rows[0][0] == sum(entry.tokens for entry in read_manifest(data / "rollouts/r1").values())


def test_a_box_shows_control_characters_instead_of_obeying_them(database: Database):
    assert "\x1b" not in database.draw_boxes("select chr(27) || '[31m' as text")[0]


def test_several_statements_give_several_results(database: Database):
    answers = database.answer("select 1 as a, null as b; select 'x,y' as c")
    assert [format_csv(answer) for answer in answers] == ["a,b\n1,\n", 'c\n"x,y"\n']
    assert len(database.draw_boxes("select 1; select 2")) == 2


def test_a_mistake_is_told_without_a_traceback(database: Database, tmp_path: Path):
    for statement in ("selec 1", "select nothing from rollouts", "select 1; select"):
        with pytest.raises(PotstillError, match="Error"):
            database.draw_boxes(statement)
    with pytest.raises(PotstillError, match="is no folder"):
        Database(tmp_path / "nowhere")


def test_a_damaged_shard_is_named(tmp_path: Path):
    data = example_data.make(tmp_path)
    path = data / "rollouts/r1/00001.parquet"
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PotstillError, match=r"r1/00001\.parquet"), Database(data) as database:
        database.ask("select count(*) from tokens")


def test_tokens_have_the_text_that_the_tokenizer_gives_each_once(data: Path, monkeypatch: pytest.MonkeyPatch):
    example_data.tokenizer(data)
    decoded: Counter[int] = Counter()

    def make_counting(record: Path):
        decode = make_decoder(record)

        def decode_and_count(ids):
            decoded[ids[-1]] += len(ids) == 2  # a token after a letter
            return decode(ids)

        return decode_and_count

    make_decoder = decoding.make_decoder
    monkeypatch.setattr(decoding, "make_decoder", make_counting)
    with Database(data) as database:
        assert database.ask("select count(*) as n from (select token_id, pos from tokens)")[0]["n"] > 0
        assert not decoded, "a question that names no token opened the tokenizer"
        rows = database.ask("select token_id, token from tokens")
        assert {row["token_id"]: row["token"] for row in rows} == {
            token: "<eos>" if token == example_data.EOS else example_data.LETTERS[token]
            for token in {row["token_id"] for row in rows}
        }
        kept = database.ask("select id, token from support")
        assert all(row["token"] == (*example_data.LETTERS, "<eos>")[row["id"]] for row in kept)
    assert set(decoded.values()) == {1}
    assert len(rows) > 5 * len(decoded)


def test_tokens_without_a_tokenizer_have_no_text(tmp_path: Path):
    with Database(example_data.make(tmp_path)) as database:
        assert database.ask("select distinct token from tokens") == [{"token": None}]


def test_measurements_are_views(data: Path, database: Database):
    record = json.loads((data / "metrics/r1.json").read_text())
    (row,) = database.ask("select * from metrics where checkpoint = 'r1'")
    assert {name: value for name, value in row.items() if value is not None} == {
        name: value for name, value in record.items() if name != "seal"
    }
    for view, file, column in (("histories", "history", "kl"), ("validations", "validation", "validation_kl")):
        with (data / f"models/r2/{file}.csv").open(newline="") as lines:
            wanted = [(int(line["step"]), float(line[column])) for line in csv.DictReader(lines)]
        rows = database.ask(f"select step, {column} from {view} where checkpoint = 'r2' order by step")
        assert [(row["step"], row[column]) for row in rows] == wanted
    assert database.ask("select distinct kl from histories where checkpoint = 'r0'") == [{"kl": None}]
    shards = json.loads((data / "drift/r2.json").read_text())["shards"]
    rows = database.ask("select * from drift where round = 'r2' order by bucket")
    names = ("drift", "effective_sample_size", "written_in", "kept")
    assert [[row[name] for name in names] for row in rows] == [
        [shards[shard][name] for name in names] for shard in sorted(shards)
    ]
    record = json.loads((data / "timings/score-r1.json").read_text())
    (row,) = database.ask("select * from timings where stage = 'score' and round = 'r1'")
    assert row == {name: value for name, value in record.items() if name != "seal"}


def test_every_metric_is_a_column(database: Database):
    answered = Answered([True, False], np.array([3, 4]), ["stop", "length"], [0.0, 0.1])
    metrics = compute_metrics("r1", answered, answered, 1)
    names = [row["column_name"] for row in database.ask("describe metrics")]
    assert set(names) == {*metrics, "validation_kl"}, "pipeline/report/sources.py lists the columns of `metrics`"


def test_evaluations_have_their_grades_by_checkpoint_and_mode(data: Path, database: Database):
    for mode, samples in (("greedy", 1), ("sampled", example_data.SAMPLES)):
        rows = database.ask(
            "select prompt_id, sample, correct, text from evaluations where checkpoint = 'r1' and mode = ?", [mode]
        )
        folder = data / "evaluations/r1"
        correct = {
            row["rollout_id"]: row["correct"]
            for path in folder.glob(f"grades/{mode}-*")
            for row in pq.read_table(path).to_pylist()
        }
        wanted = [
            (row["prompt_id"], row["sample"], correct[row["rollout_id"]], row["text"])
            for path in folder.glob(f"rollouts/{mode}-*")
            for row in pq.read_table(path).to_pylist()
        ]
        assert Counter(tuple(row.values()) for row in rows) == Counter(wanted)
        assert len(rows) == 2 * example_data.PROMPTS_EACH * samples
