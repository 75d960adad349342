"""What a score shard costs, in bytes per token, and what it loses, in nats: over K, mass and rounding.

    python -m benchmarks.shards --check

The teacher is synthetic, with Qwen3's vocabulary: at each token the probability of rank r falls as (r + 1)^−s, where
s = 1.5 + Gamma(0.8, 5), so that most tokens are nearly certain and some are wide open; the table gives its mass curve.
Students are the teacher with Gaussian noise on every logit. What a view loses is the KL over the whole vocabulary less
the KL over the ids that it keeps and the tail, which is never negative. Bytes are those of the whole score file, as
`shards.Writer` writes it, without entropies. Where the demo was run, its teacher's shards are measured as well.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from benchmarks import measure, qwen3
from benchmarks.rows import Bar, Check, JsonFile, Row, conclude
from pipeline.storage.ragged import Ragged, from_lists, from_nested_lists
from pipeline.storage.rounding import normalise, round_to_half
from pipeline.storage.scores import SCORES, Scores, make_score_table
from pipeline.storage.shards import Writer, count_rows_and_tokens, read_group, read_shard
from pipeline.training.targets import TARGET_COLUMNS

NOISES = (0.1, 0.5)
"""Standard deviation of the noise on a student's logits: how far it is from the teacher."""
PER_ROW = 256
"""Response tokens of each row."""
HEAD = 1024
"""Ranks whose probabilities are summed one by one."""
DEMO = Path("data/scores/r1/teacher")


@dataclass(frozen=True)
class Kept:
    """What a view keeps, as `view_settings.SupportSettings` says it."""

    top_k: int
    mass: float | None = None
    min_k: int = 4

    def __str__(self) -> str:
        return f"K = {self.top_k}" + ("" if self.mass is None else f" cut at {self.mass}")

    def counts(self, probabilities: np.ndarray) -> np.ndarray:
        """How many ids are kept of each row of falling probabilities."""
        if self.mass is None:
            return np.full(len(probabilities), self.top_k)
        before = probabilities[:, : self.top_k].cumsum(axis=1) - probabilities[:, : self.top_k]
        return np.maximum((before < self.mass).sum(axis=1), self.min_k)


GRID = [Kept(k, mass) for k in (16, 32, 64, 128) for mass in (None, 0.99, 0.999)]


def main(
    rows: Annotated[int, typer.Option(help=f"Rows of {PER_ROW} tokens in the written shard.")] = 256,
    sample: Annotated[int, typer.Option(help="Tokens whose whole distribution is compared.")] = 200,
    results: JsonFile = None,
    check: Check = False,
) -> None:
    """Measure bytes and losses, then speeds."""
    logprobs = teacher(sample, np.random.default_rng(0))
    curve = np.exp(logprobs).cumsum(axis=1).mean(axis=0)
    print("mean mass of the top " + ", ".join(f"{k}: {curve[k - 1]:.4f}" for k in (1, 2, 4, 8, 16, 32, 64, 128, 1024)))
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        tokens = rows * PER_ROW
        columns = drawn(tokens)
        paths = {str(kept): write(Path(folder) / str(number), kept, columns) for number, kept in enumerate(GRID)}
        for kept in GRID:
            bar = Bar("≤", 95) if kept == Kept(64, 0.999) else None
            found.append(Row(f"{kept}: size", "bytes/token", paths[str(kept)].stat().st_size / tokens, bar=bar))
        exact = write(Path(folder) / "exact", Kept(64), columns, rounded=False)
        found.append(Row("K = 64, fp32 not rounded: size", "bytes/token", exact.stat().st_size / tokens))
        found += losses(logprobs)
        for kept in (Kept(64), Kept(64, 0.999)):
            found += speeds(paths[str(kept)], kept, tokens)
    if DEMO.exists():
        found += demo(sorted(DEMO.glob("*.parquet")))
    conclude(found, results, check)


def teacher(tokens: int, random: np.random.Generator, ranks: int = qwen3.VOCABULARY) -> np.ndarray:
    """Log-probabilities of the first ranks, float64 [tokens, ranks], normalised over the whole vocabulary."""
    exponents = 1.5 + random.gamma(0.8, 5.0, (tokens, 1))
    logits = -exponents * np.log(np.arange(1, max(ranks, HEAD) + 1))
    # Behind the head the sum is its integral, by the midpoint rule.
    first, last = (np.power(end + 0.5, 1 - exponents[:, 0]) for end in (HEAD, qwen3.VOCABULARY))
    total = np.exp(logits[:, :HEAD]).sum(axis=1) + (first - last) / (exponents[:, 0] - 1)
    return logits[:, :ranks] - np.log(total)[:, None]


def losses(teacher_logprobs: np.ndarray) -> list[Row]:
    """For each student and direction: the whole KL, what K = 64 loses of it, and what the cut and the rounding add."""
    found = []
    for noise in NOISES:
        random = np.random.default_rng(1)
        student = teacher_logprobs + noise * random.standard_normal(teacher_logprobs.shape)
        student -= np.log(np.exp(student).sum(axis=1, keepdims=True))
        for direction in ("reverse", "forward"):
            pair = (student, teacher_logprobs) if direction == "reverse" else (teacher_logprobs, student)
            whole = (np.exp(pair[0]) * (pair[0] - pair[1])).sum(axis=1).mean()
            name = f"{direction} KL, noise {noise}"
            kept = {view: _kept_kl(*pair, view.counts(np.exp(teacher_logprobs))) for view in GRID}
            uncut = Kept(64)
            found += [
                Row(f"{name}: whole vocabulary", "nats/token", whole),
                *(Row(f"{name}: {view} loses", "nats/token", whole - kept[view]) for view in GRID if not view.mass),
                *(
                    Row(
                        f"{name}: {view} adds to {uncut}", "nats/token", kept[uncut] - kept[view],
                        bar=Bar("≤", 1e-4) if view.mass == 0.999 else None,
                    )
                    for view in GRID
                    if view.mass and view.top_k == uncut.top_k
                ),
            ]  # fmt: skip
            rounded = _rounded(teacher_logprobs, uncut.top_k)
            other = (student, rounded) if direction == "reverse" else (rounded, student)
            moved = abs(_kept_kl(*other, uncut.counts(np.exp(teacher_logprobs))) - kept[uncut])
            found.append(Row(f"{name}: fp16 precision moves {uncut} by", "nats/token", moved))
    return found


def _kept_kl(own: np.ndarray, other: np.ndarray, counts: np.ndarray) -> float:
    """Mean KL over each row's first `counts` ids and the tail outside them."""
    total = 0.0
    for left, right, count in zip(own, other, counts, strict=True):
        first, second = (np.append(one[:count], np.log(np.exp(one[count:]).sum())) for one in (left, right))
        total += float((np.exp(first) * (first - second)).sum())
    return total / len(counts)


def _rounded(logprobs: np.ndarray, top_k: int) -> np.ndarray:
    """The top K as a shard stores and a reader normalises them, ahead of the rest."""
    kept = round_to_half(logprobs[:, :top_k].astype(np.float32)).astype(np.float64)
    both = np.concatenate([kept, logprobs[:, top_k:]], axis=1)
    return both - np.log(np.exp(both).sum(axis=1, keepdims=True))


def drawn(tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probabilities of the likeliest, [tokens, K]; ids log-uniform, as frequent tokens have small ones."""
    random, most = np.random.default_rng(2), max(kept.top_k for kept in GRID)
    logprobs = teacher(tokens, random, most)
    many = np.exp(random.random((tokens, 4 * most)) * np.log(qwen3.VOCABULARY)).astype(np.int32)
    ids = np.array([list(dict.fromkeys(row.tolist()))[:most] for row in many], np.int32)
    return ids, logprobs


def write(path: Path, kept: Kept, tokens: tuple[np.ndarray, np.ndarray], rounded: bool = True) -> Path:
    """A score shard as a stage writes it; or with the log-probabilities as they came, which no stage does."""
    ids, logprobs = (column[:, : kept.top_k] for column in tokens)
    counts = kept.counts(np.exp(logprobs))
    is_kept = np.arange(kept.top_k) < counts[:, None]
    tails = np.log(np.maximum(1 - np.where(is_kept, np.exp(logprobs), 0).sum(axis=1), 1e-12))
    single = logprobs.astype(np.float32)
    made = Scores(
        single[:, 0], Ragged.cut(ids[is_kept], counts), Ragged.cut(single[is_kept], counts),
        counts.astype(np.uint16), tails.astype(np.float32), None,
    )  # fmt: skip
    rows = len(ids) // PER_ROW
    table = make_score_table([str(row) for row in range(rows)], np.full(rows, PER_ROW), made, ["context"] * rows)
    if not rounded:
        place = table.schema.get_field_index("support_logprobs")
        of_rows = table.column(place).chunk(0)
        of_tokens = pa.ListArray.from_arrays(of_rows.values.offsets, pa.array(made.logprobs.values))
        table = table.set_column(place, table.schema.field(place), pa.ListArray.from_arrays(of_rows.offsets, of_tokens))
    _copy(path, table)
    return path


def _copy(path: Path, table: pa.Table) -> None:
    with Writer(path, SCORES, {"stage": "benchmark"}, {}) as writer:
        writer.write(table)


def speeds(path: Path, kept: Kept, tokens: int) -> list[Row]:
    """Tokens per second, written and read; reading ends in a training target's arrays, decoding in Arrow.

    The bar is for one thread each, as beside a trainer; what comes behind pyarrow's decoding is one thread always.
    """
    columns = list(TARGET_COLUMNS)

    def groups() -> Iterator[pa.Table]:
        with pq.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                yield read_group(path, file, number, columns)

    def read() -> None:
        for table in groups():
            from_nested_lists(table.column("support_ids"))
            _, logprobs = from_nested_lists(table.column("support_logprobs"))
            normalise(logprobs, from_lists(table.column("tail_logprobs")).values, path)
            from_lists(table.column("sampled_logprobs"))

    table = read_shard(path, SCORES)
    with tempfile.TemporaryDirectory() as folder:
        ways = {"read": read, "decode": lambda: list(groups()), "write": lambda: _copy(Path(folder) / "w", table)}
        seconds = measure.seconds(ways, rounds=15)
        threads = pa.cpu_count()
        pa.set_cpu_count(1)
        alone = measure.seconds({name: ways[name] for name in ("read", "decode")}, rounds=15)
        pa.set_cpu_count(threads)
    speed, single = ({name: tokens / taken for name, taken in found.items()} for found in (seconds, alone))
    return [
        Row(f"{kept}: reading, pyarrow's decoding", "tokens/s", single["read"], single["decode"], Bar("≥", 0.8)),
        Row(f"{kept}: reading, pyarrow's decoding on {threads} threads", "tokens/s", speed["read"], speed["decode"]),
        Row(f"{kept}: writing", "tokens/s", speed["write"]),
    ]


def demo(paths: list[Path]) -> list[Row]:
    """The demo's teacher: bytes per token of its shards, and the mass that they keep."""
    tokens = sum(count_rows_and_tokens(path)[1] for path in paths)
    size = sum(path.stat().st_size for path in paths)
    columns = [read_shard(path, SCORES, ["own", "tail_logprobs"]) for path in paths]
    kept = np.concatenate([from_lists(table.column("own")).values for table in columns])
    tails = np.concatenate([from_lists(table.column("tail_logprobs")).values for table in columns])
    return [
        Row(f"demo teacher, {kept.mean():.1f} ids per token on average: size", "bytes/token", size / tokens),
        Row("demo teacher: mass outside its support", "probability", float(np.exp(tails).mean())),
    ]


if __name__ == "__main__":
    typer.run(main)
