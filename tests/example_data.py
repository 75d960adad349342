"""A small data folder as the stages leave it: two rounds with a kept shard, two views, and what the report reads."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import command
from pipeline.cli import app
from pipeline.storage import hashing
from pipeline.storage.grades import GRADES
from pipeline.storage.prompts import PROMPTS
from pipeline.storage.ragged import Ragged
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.scores import Scores, make_score_table, make_skipped_table
from pipeline.storage.shards import Writer
from pipeline.storage.store import Folder, Store
from pipeline.storage.whole import write_json

LETTERS = "0123456789+= <>scriptaleW"
"""The alphabet of the responses; a token's id is its place, and the last id ends a response."""
EOS = len(LETTERS)
BUCKETS, PROMPTS_EACH, SAMPLES, TOP_K = 3, 4, 2, 3


def run_potstill(root: Path, *arguments: str) -> None:
    """Run a command of `potstill` over the data folder below `root`."""
    command.call_app(app, "potstill", "potstill", [*arguments, "--data", str(root / "data")])


def make(root: Path) -> Path:
    """Write everything below `root` and return its data folder. Bucket 0 of r2 is r1's, kept."""
    data, store = root / "data", Store(root / ".potstill" / "store")
    for split in ("sft", "opd", "evaluation"):
        _folder(store, data / "prompts" / split, [_prompts(split, bucket) for bucket in range(BUCKETS)])
    teacher = [_rollouts("teacher", bucket) for bucket in range(BUCKETS)]
    _folder(store, data / "teacher_rollouts" / "rollouts", teacher)
    _folder(store, data / "teacher_rollouts" / "grades", [_grades(table, 0) for table in teacher])
    for kind in ("rollouts", "grades", "scores"):
        Folder(store, data / kind / "r0").close()
    for round_, writers in (("r1", ["r1", "r1", "r1"]), ("r2", ["r1", "r2", "r2"])):
        rollouts = [_rollouts(writer, bucket) for bucket, writer in enumerate(writers)]
        _folder(store, data / "rollouts" / round_, rollouts)
        _folder(store, data / "grades" / round_, [_grades(table, 1) for table in rollouts])
        _folder(store, data / "scores" / round_ / "teacher", [_scores(table, 0) for table in rollouts])
        _folder(store, data / "scores" / round_ / "views" / "hinted", [_scores(table, 1, 3) for table in rollouts])
    for checkpoint in ("teacher", "r0", "r1", "r2"):
        names = {f"{mode}-{bucket:05d}.parquet": (mode, bucket) for mode in ("greedy", "sampled") for bucket in (0, 1)}
        answers = [_answers(f"{checkpoint}-{mode}", bucket) for mode, bucket in names.values()]
        _folder(store, data / "evaluations" / checkpoint / "rollouts", answers, list(names))
        graded = [_grades_by_chance(table) for table in answers]
        _folder(store, data / "evaluations" / checkpoint / "grades", graded, list(names))
    _measurements(data)
    return data


def tokenizer(data: Path) -> None:
    """A tokenizer of single characters, and the record of the student that names it."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: place for place, letter in enumerate(LETTERS)} | {"<eos>": EOS}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    inner.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue] - a property of the Rust class
    folder = data / "models" / "tiny"
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>").save_pretrained(folder)
    record = {
        "name": "tiny", "location": str(folder), "commit": None, "weights": "", "tokenizer": "", "chat_template": "",
        "vocabulary": EOS + 1, "tokens": EOS + 1, "eos_ids": [EOS], "context": None, "parameters": None,
    }  # fmt: skip
    write_json(data / "models" / "student.json", record)


def encode(text: str) -> list[int]:
    """Ids of a text, end of sequence included."""
    return [*map(LETTERS.index, text), EOS]


def _folder(store: Store, path: Path, tables: list[pa.Table], names: list[str] | None = None) -> None:
    folder = Folder(store, path)
    for name, table in zip(names or [f"{bucket:05d}.parquet" for bucket in range(len(tables))], tables, strict=True):
        identity = {"content": hashing.digest(str(table.to_pylist()))}

        def write(target: Path, table: pa.Table = table, identity: dict[str, Any] = identity) -> None:
            with Writer(target, table.schema, identity, {}) as writer:
                writer.write(table)

        folder.obtain(name, identity, write)
    folder.close()


def _prompts(split: str, bucket: int) -> pa.Table:
    rows = [
        {
            "prompt_id": f"{split}-{bucket}-{number}",
            "domain": "sums",
            "messages": [{"role": "user", "content": f"{number}+{bucket}="}],
            "answer": str(number + bucket),
            "hint": None if number == 0 else "count",
            "bucket": bucket,
            "split": split,
        }
        for number in range(PROMPTS_EACH)
    ]
    return pa.Table.from_pylist(rows, PROMPTS)


def _rollouts(writer: str, bucket: int) -> pa.Table:
    """Every second sample is wrong; the first prompt's response is a script, as a hostile model would write it."""
    random = np.random.default_rng([bucket, len(writer), ord(writer[-1])])
    rows = []
    for number in range(PROMPTS_EACH):
        for sample in range(SAMPLES):
            text = "<script>alert" if number == sample == 1 else f"{number}+{bucket} = {number + bucket + sample}"
            ids = encode(text)
            rows.append(
                {
                    "rollout_id": hashing.digest(writer, str(bucket), str(number), str(sample)),
                    "prompt_id": f"{'sft' if writer == 'teacher' else 'opd'}-{bucket}-{number}",
                    "sample": sample,
                    "source": "teacher" if writer == "teacher" else "student",
                    "behaviour": f"checkpoint-before-{writer}",
                    "written_in": writer,
                    "prompt_ids": encode(f"{number}+{bucket}="),
                    "response_ids": ids,
                    "behaviour_logprobs": -random.exponential(0.3, len(ids)).astype(np.float32),
                    "finish_reason": "stop",
                    "text": text,
                }
            )
    columns = {name: [row.get(name) for row in rows] for name in ROLLOUTS.names}
    return pa.table({name: pa.array(columns[name], ROLLOUTS.field(name).type) for name in columns})


def _grades(rollouts: pa.Table, wrong: int) -> pa.Table:
    rows = [
        {"rollout_id": row["rollout_id"], "correct": row["sample"] != wrong, "reward": float(row["sample"] != wrong)}
        for row in rollouts.select(["rollout_id", "sample"]).to_pylist()
    ]
    return pa.Table.from_pylist(rows, GRADES)


def _answers(writer: str, bucket: int) -> pa.Table:
    """Responses to the evaluation prompts; greedy ones are one to each."""
    table = _rollouts(writer, bucket)
    asked = [name.replace("opd-", "evaluation-") for name in table.column("prompt_id").to_pylist()]
    table = table.set_column(ROLLOUTS.get_field_index("prompt_id"), ROLLOUTS.field("prompt_id"), pa.array(asked))
    if writer.endswith("sampled"):
        return table
    return table.filter(pa.array([sample == 0 for sample in table.column("sample").to_pylist()]))


def _grades_by_chance(rollouts: pa.Table) -> pa.Table:
    """Right, wrong, or in a few cases not graded."""
    rows = []
    for rollout_id in rollouts.column("rollout_id").to_pylist():
        draw = int(rollout_id[:4], 16) % 9
        correct = None if draw == 0 else draw < 5
        reward = None if correct is None else float(correct)
        rows.append({"rollout_id": rollout_id, "correct": correct, "reward": reward})
    return pa.Table.from_pylist(rows, GRADES)


def _scores(rollouts: pa.Table, seed: int, skip: int | None = None) -> pa.Table:
    """Random distributions over the alphabet at the top 3; row `skip` has no score."""
    tables = []
    for number, row in enumerate(rollouts.to_pylist()):
        if number == skip:
            tables.append(make_skipped_table([row["rollout_id"]], ["no hint"]))
            continue
        random = np.random.default_rng([seed, *row["response_ids"]])
        length = len(row["response_ids"])
        logits = random.normal(size=(length, EOS + 1)) * 1.5
        logits[np.arange(length), row["response_ids"]] += random.choice([7.0, 7.0, 7.0, 1.0], length)
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        order = np.argsort(-logprobs, axis=1)[:, :TOP_K]
        kept = np.take_along_axis(logprobs, order, axis=1)
        entries = np.full(length, TOP_K)
        scores = Scores(
            sampled_logprobs=logprobs[np.arange(length), row["response_ids"]],
            ids=Ragged.cut(order.ravel(), entries),
            logprobs=Ragged.cut(kept.ravel(), entries),
            own=np.full(length, TOP_K - 1),
            tail_logprobs=np.log1p(-np.exp(kept).sum(axis=1)),
            entropies=-(np.exp(logprobs) * logprobs).sum(axis=1),
        )
        tables.append(make_score_table([row["rollout_id"]], np.array([length]), scores, ["plain"]))
    return pa.concat_tables(tables)


def _measurements(data: Path) -> None:
    accuracy = {"teacher": (0.97, 0.95), "r0": (0.71, 0.48), "r1": (0.83, 0.74), "r2": (0.86, 0.79)}
    for checkpoint, (greedy, average) in accuracy.items():
        metrics = {
            "checkpoint": checkpoint, "greedy": greedy, "greedy_se": 0.012, "avg_at_k": average, "avg_at_k_se": 0.011,
            "pass_at_k": greedy + 0.02, "k": 4, "prompts": 1000, "graded": 1000, "mean_length": 31.5,
            "truncated": 0.002, "repetition": 0.013,
            "validation_kl": None if checkpoint == "teacher" else 0.4 * (1 - average),
        }  # fmt: skip
        write_json(data / "metrics" / f"{checkpoint}.json", metrics)
    for number, round_ in enumerate(("r1", "r2")):
        names = {
            f"{bucket:05d}.parquet": {
                "drift": None if number == 0 else 0.004 + 0.011 * bucket,
                "margin": None if number == 0 else 0.003,
                "responses": None if number == 0 else 32,
                "effective_sample_size": None if number == 0 else 0.97 - 0.03 * bucket,
                "written_in": "r1" if number == 0 or bucket == 0 else "r2",
                "kept": number == 1 and bucket == 0,
            }
            for bucket in range(BUCKETS)
        }
        drift = {"round": round_, "policy": "drift", "bound": 0.01, "floor": 0.0011, "shards": names}
        write_json(data / "drift" / f"{round_}.json", drift)
    for stage, tokens, size, seconds in (
        ("models", 0, 3_100_000, 151.2), ("teacher_rollouts", 126_000, 900_000, 22.9), ("sft", 0, 420_000, 31.0),
        ("refresh-r1", 121_000, 1_100_000, 14.5), ("score-r1", 121_000, 5_300_000, 6.1), ("train-r1", 0, 430_000, 48.7),
        ("refresh-r2", 119_000, 1_050_000, 9.7), ("score-r2", 119_000, 5_200_000, 4.2), ("train-r2", 0, 430_000, None),
    ):  # fmt: skip
        name, _, round_ = stage.partition("-")
        facts = {"stage": name, "round": round_, "files": 3, "tokens": tokens, "bytes": size, "seconds": seconds}
        write_json(data / "timings" / f"{stage}.json", facts)
    for number, checkpoint in enumerate(("r0", "r1", "r2")):
        _history(data / "models" / checkpoint, number)


def _history(folder: Path, number: int) -> None:
    random = np.random.default_rng(number)
    steps = np.arange(1, 241)
    shape = np.exp(-steps / 80)
    columns: dict[str, Any] = {
        "step": steps,
        "loss": (1.2 if number == 0 else 0.5 / number) * shape + 0.05 + 0.02 * random.normal(size=240),
        "learning_rate": np.full(240, 1e-3),
        "gradient_norm": 1 + shape,
    }
    if number:
        columns["kl"] = 0.5 / number * shape + 0.04 + 0.02 * random.normal(size=240)
        columns["support_mass"] = 1 - 0.06 / number * shape - 0.004 * random.random(240)
        columns["target_mass"] = np.full(240, 0.996)
        kl = [(step, 0.3 / number * np.exp(-step / 80) + 0.05, 0.98) for step in (0, 60, 120, 180, 240)]
        _table(folder / "validation.csv", ["step", "validation_kl", "validation_mass"], kl)
    _table(folder / "history.csv", list(columns), list(zip(*columns.values(), strict=True)))


def _table(path: Path, columns: list[str], rows: list[tuple[Any, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
