"""The ready questions in SQL, each against the same question put to the shards in plain Python."""

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.report.formats import format_answers
from pipeline.report.questions import list_questions, read_question
from pipeline.report.sql import Database
from pipeline.storage.grades import GRADES
from tests import example_data

Row = dict[str, Any]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = example_data.make(tmp_path_factory.mktemp("project"))
    example_data.tokenizer(made)
    _fail_two_prompts(made / "grades/r2/00001.parquet")
    return made


def _fail_two_prompts(path: Path) -> None:
    """Grade the responses to the first two prompts of a shard as wrong, in a file of its own."""
    rows = pq.read_table(path).to_pylist()
    for row in rows[: 2 * example_data.SAMPLES]:
        row["correct"] = False
    path.unlink()
    pq.write_table(pa.Table.from_pylist(rows, GRADES), path)


@pytest.fixture(scope="module")
def database(data: Path) -> Iterator[Database]:
    with Database(data) as opened:
        yield opened


def mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)


def read(data: Path, pattern: str) -> list[Row]:
    return [row for path in sorted(data.glob(pattern)) for row in pq.read_table(path).to_pylist()]


def text_of(token: int) -> str:
    return "<eos>" if token == example_data.EOS else example_data.LETTERS[token]


def rollouts_of(data: Path, round_: str) -> list[Row]:
    """Each rollout of a round's folder with its grade, its teacher's score and its tokens."""
    correct = {row["rollout_id"]: row["correct"] for row in read(data, f"grades/{round_}/*.parquet")}
    scores = {row["rollout_id"]: row for row in read(data, f"scores/{round_}/teacher/*.parquet")}
    found = []
    for row in read(data, f"rollouts/{round_}/*.parquet"):
        score = scores[row["rollout_id"]]
        tokens = [
            {
                "round": round_, "rollout_id": row["rollout_id"], "pos": pos, "id": row["response_ids"][pos],
                "student": row["behaviour_logprobs"][pos], "teacher": score["sampled_logprobs"][pos],
                "gap": row["behaviour_logprobs"][pos] - score["sampled_logprobs"][pos],
                "tail": math.exp(score["tail_logprobs"][pos]),
                "own": score["support_ids"][pos][: score["own"][pos]],
            }
            for pos in range(len(row["response_ids"]))
        ]  # fmt: skip
        found.append(row | {"round": round_, "correct": correct[row["rollout_id"]], "tokens": tokens})
    return found


def every_rollout(data: Path) -> list[Row]:
    return [row for round_ in ("r1", "r2") for row in rollouts_of(data, round_)]


def latest_tokens(data: Path) -> list[Row]:
    """Those of each rollout once, in the latest round where it occurs."""
    latest = {row["rollout_id"]: row for row in every_rollout(data)}
    return [token for row in latest.values() for token in row["tokens"]]


def group(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


def by_tens(data: Path) -> dict[Any, list[Row]]:
    tokens = [token for row in every_rollout(data) for token in row["tokens"]]
    return dict(sorted(group(tokens, lambda token: (token["round"], token["pos"] // 10 * 10)).items()))


def worst_tokens(data: Path) -> list[tuple]:
    worst = sorted(latest_tokens(data), key=lambda token: (-token["gap"], token["rollout_id"], token["pos"]))[:20]
    names = ("round", "rollout_id", "pos")
    return [
        (*[token[name] for name in names], text_of(token["id"]), token["student"], token["teacher"], token["gap"])
        for token in worst
    ]


def gap_by_token(data: Path) -> list[tuple]:
    tokens = latest_tokens(data)
    whole = math.fsum(token["gap"] for token in tokens)
    found = []
    for token, those in group(tokens, lambda token: token["id"]).items():
        gaps = [each["gap"] for each in those]
        found.append((text_of(token), token, len(gaps), mean(gaps), math.fsum(gaps) / whole))
    return sorted(found, key=lambda row: (-row[4], row[1]))[:30]


def gap_by_position(data: Path) -> list[tuple]:
    return [(*key, len(those), mean(token["gap"] for token in those)) for key, those in by_tens(data).items()]


def gap_by_finish(data: Path) -> list[tuple]:
    groups = group(every_rollout(data), lambda row: (row["round"], row["finish_reason"], row["correct"]))
    found = []
    for key, rows in sorted(groups.items()):
        gaps = [token["gap"] for row in rows for token in row["tokens"]]
        found.append((*key, len(rows), mean(gaps), mean(map(abs, gaps))))
    return found


def overlap_by_round(data: Path) -> list[tuple]:
    found = []
    for round_ in ("r1", "r2"):
        tokens = [token for row in rollouts_of(data, round_) for token in row["tokens"]]
        likeliest, kept = (mean(token["id"] in token["own"][:count] for token in tokens) for count in (1, None))
        found.append((round_, len(tokens), likeliest, kept))
    return found


def tail_by_position(data: Path) -> list[tuple]:
    tails = {key: [token["tail"] for token in those] for key, those in by_tens(data).items()}
    return [(*key, len(those), mean(those), max(those)) for key, those in tails.items()]


def pass_rates(data: Path) -> list[tuple]:
    domains = {row["prompt_id"]: row["domain"] for row in read(data, "prompts/*/*.parquet")}
    groups = group(every_rollout(data), lambda row: (row["round"], domains[row["prompt_id"]]))
    found = []
    for key, rows in sorted(groups.items()):
        of_prompts = group(rows, lambda row: row["prompt_id"]).values()
        shares = [mean(row["correct"] for row in those) for those in of_prompts]
        solved, always = mean(share > 0 for share in shares), mean(share == 1 for share in shares)
        found.append((*key, len(shares), mean(shares), solved, always))
    return found


def unsolved_prompts(data: Path) -> list[tuple]:
    groups = group(rollouts_of(data, "r2"), lambda row: row["prompt_id"])
    found = [
        (prompt, len(rows), mean(token["gap"] for row in rows for token in row["tokens"]))
        for prompt, rows in groups.items()
        if not any(row["correct"] for row in rows)
    ]
    return sorted(found, key=lambda row: (-row[2], row[0]))


def worse_prompts(data: Path) -> list[tuple]:
    def share(checkpoint: str) -> dict[str, float]:
        folder = f"evaluations/{checkpoint}"
        correct = {row["rollout_id"]: row["correct"] for row in read(data, f"{folder}/grades/sampled-*.parquet")}
        graded = [
            row | {"correct": correct[row["rollout_id"]]} for row in read(data, f"{folder}/rollouts/sampled-*.parquet")
        ]
        graded = [row for row in graded if row["correct"] is not None]
        return {
            prompt: mean(row["correct"] for row in rows)
            for prompt, rows in group(graded, lambda row: row["prompt_id"]).items()
        }

    before, after = share("r1"), share("r2")
    both = [(prompt, "r1", before[prompt], "r2", after[prompt]) for prompt in before.keys() & after.keys()]
    return sorted((row for row in both if row[4] < row[2]), key=lambda row: (row[4] - row[2], row[0]))


def views_apart(data: Path) -> list[tuple]:
    found = []
    for round_ in ("r1", "r2"):
        teacher, other = (
            {row["rollout_id"]: row["sampled_logprobs"] for row in read(data, f"scores/{round_}/{view}/*.parquet")}
            for view in ("teacher", "views/hinted")
        )
        other = {name: logprobs for name, logprobs in other.items() if logprobs is not None}
        gaps = [a - b for name in other for a, b in zip(other[name], teacher[name], strict=True)]
        found.append((round_, "hinted", len(gaps), mean(gaps), mean(map(abs, gaps))))
    return found


def drift_by_round(data: Path) -> list[tuple]:
    found = []
    for round_ in ("r1", "r2"):
        record = json.loads((data / f"drift/{round_}.json").read_text())
        shards = record["shards"].values()
        drifts = [shard["drift"] for shard in shards if shard["drift"] is not None]
        sizes = [shard["effective_sample_size"] for shard in shards if shard["drift"] is not None]
        measured = (mean(drifts), max(drifts), min(sizes)) if drifts else (None, None, None)
        kept = sum(shard["kept"] for shard in shards)
        found.append((round_, record["policy"], record["bound"], record["floor"], len(shards), kept, *measured))
    return found


def costs(data: Path) -> list[tuple]:
    records = [json.loads(path.read_text()) for path in (data / "timings").glob("*.json")]
    whole = math.fsum(record["seconds"] or 0.0 for record in records)
    rows = []
    for record in sorted(records, key=lambda record: (record["round"], record["stage"])):
        seconds, tokens = record["seconds"], record["tokens"]
        speed = None if seconds is None else tokens / seconds
        size = record["bytes"] / tokens if tokens else None
        share = None if seconds is None else seconds / whole
        rows.append((record["stage"], record["round"], record["files"], tokens, seconds, speed, size, share))
    return rows


EXPECTED = {
    function.__name__.replace("_", "-"): function
    for function in (
        worst_tokens, gap_by_token, gap_by_position, gap_by_finish, overlap_by_round, tail_by_position, pass_rates,
        unsolved_prompts, worse_prompts, views_apart, drift_by_round, costs,
    )
}  # fmt: skip


def test_every_question_is_compared_here():
    assert sorted(EXPECTED) == list(list_questions())
    assert all(text.endswith(".") and len(text) < 130 for text in list_questions().values())


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_an_answer_is_what_python_finds(data: Path, database: Database, name: str):
    (answer,) = database.answer(read_question(name))
    expected = EXPECTED[name](data)
    assert len(answer.rows) == len(expected)
    assert expected, "the comparison would be of nothing"
    for found, wanted in zip(answer.rows, expected, strict=True):
        for column, value, other in zip(answer.columns, found, wanted, strict=True):
            assert value == (pytest.approx(other, rel=1e-6) if isinstance(other, float) else other), column


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_an_empty_project_gives_an_empty_answer(tmp_path: Path, name: str):
    with Database(tmp_path) as empty:
        (answer,) = empty.answer(read_question(name))
    assert answer.rows == []


def test_an_answer_is_the_same_in_each_format(database: Database):
    statement = "select 'a|b' as name, 0.5::double as share, null as nothing, '-inf'::double as tail, [1, 2] as ids"
    header, row = csv.reader(io.StringIO(format_answers(database, statement, "csv")))
    assert dict(zip(header, row, strict=True)) == {
        "name": "a|b", "share": "0.5", "nothing": "", "tail": "-inf", "ids": "[1, 2]"
    }  # fmt: skip
    assert json.loads(format_answers(database, statement, "json")) == [
        {"name": "a|b", "share": 0.5, "nothing": None, "tail": None, "ids": [1, 2]}
    ]
    assert format_answers(database, statement, "markdown").splitlines() == [
        "| name | share | nothing | tail | ids |",
        "| --- | ---: | --- | ---: | --- |",
        "| a\\|b | 0.5 | – | -inf | [1, 2] |",
        "",
    ]
    assert format_answers(database, "select 40 + 2 as answer", "table").count("42") == 1
