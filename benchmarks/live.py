"""Against TRL's live `DistillationTrainer`: a training step alone, and all that n passes over the data take.

    uv pip install -e ".[bench]" && python -m benchmarks.live --check

Both distil one Qwen3 (2 layers × 64, vocabulary 151,936, random weights) into another of the same size, by reverse KL,
on the same prompts, in fp32, with AdamW and clipping; transformers writes the responses. As many ids end a response as
make it `MEAN` tokens long on average: a live batch, like any, is as wide as the longest of its responses.

- TRL's step writes responses, runs the teacher over them and compares all of both vocabularies; it also logs the
  student's entropy. Its time without the writing is the step alone. Checkpointing of activations is off, as with us.
- Ours are the pipeline's own stages: rollouts are written once and scored once (top 32 and the tail), as files, and
  trained on n times by `training.fit`, reading included. Opening models and packages is left out on both sides.

Tokens are response tokens. TRL is no requirement of this project, but of its extra `bench` alone.
"""

import importlib.util
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks import measure, qwen3
from benchmarks.rows import Bar, Check, JsonFile, Row, conclude
from pipeline.engines.open import OnDemand
from pipeline.models.open import open_student
from pipeline.models.record import Model, record_model
from pipeline.rollouts.write import Author, Writing, identify_rollouts, write_rollouts
from pipeline.scoring.plan import plan_scores
from pipeline.scoring.write import write_scores
from pipeline.settings import params
from pipeline.settings.machine import Machine
from pipeline.settings.models import EngineSettings, Sampling, Training
from pipeline.settings.recipe import load_recipe
from pipeline.settings.views import SupportSettings, View
from pipeline.storage.bucket import Bucket
from pipeline.storage.prompts import Prompt, read_prompts, write_prompts
from pipeline.storage.shards import ShardReader, count_rows_and_tokens
from pipeline.training.fit import fit_student
from pipeline.training.rows import Rows
from pipeline.training.run import Run

PROMPT, MEAN, LONGEST = 16, 32, 128
"""Tokens of a prompt and of a response."""
K, BATCH = 32, 8
PASSES = (1, 2, 4)

Seconds = dict[str, float]
"""To write a token, to score it, to train on it."""


def main(
    steps: Annotated[int, typer.Option(help="Batches that are timed, behind one that is not.")] = 3,
    vocabulary: Annotated[int, typer.Option(help="Of both models.")] = qwen3.VOCABULARY,
    results: JsonFile = None,
    check: Check = False,
) -> None:
    """Time both, each in a process of its own."""
    if importlib.util.find_spec("trl") is None:
        sys.exit('benchmarks.live measures TRL, which is not installed here: run `uv pip install -e ".[bench]"`.')
    with tempfile.TemporaryDirectory() as scratch:
        for seed, role in enumerate(("student", "teacher")):
            torch.manual_seed(seed)
            made = qwen3.model(layers=2, hidden=64, vocabulary=vocabulary)
            assert made.generation_config is not None
            made.generation_config.eos_token_id = list(range(0, vocabulary, MEAN))
            qwen3.save(made, Path(scratch) / role)
        theirs, their_peak = measure.in_child(live, Path(scratch), texts(steps, vocabulary))
        ours, our_peak = measure.in_child(offline, Path(scratch), texts(steps, vocabulary))

    def passes(n: int) -> Row:
        mine, other = ours["write"] + ours["score"] + n * ours["train"], n * (theirs["write"] + theirs["train"])
        return Row(f"n = {n}, writing and scoring included: TRL", "tokens/s", n / mine, n / other)

    rows = [
        *map(passes, PASSES),
        Row("training step alone: TRL", "tokens/s", 1 / ours["train"], 1 / theirs["train"], Bar("≥", 10)),
        Row("writing responses: TRL", "tokens/s", 1 / ours["write"], 1 / theirs["write"]),
        Row("scoring", "tokens/s", 1 / ours["score"]),
        Row("peak memory: TRL", "MiB", our_peak / 2**20, their_peak / 2**20),
    ]
    print(f"batches of {BATCH} responses of {MEAN} tokens on average, K = {K}, {torch.get_num_threads()} threads\n")
    conclude(rows, results, check)


def texts(steps: int, vocabulary: int) -> list[str]:
    """A prompt for each response, of as many words, which are as many tokens."""
    drawn = np.random.default_rng(0).integers(1, vocabulary, ((steps + 1) * BATCH, PROMPT))
    return [" ".join(f"word{number}" for number in row) for row in drawn]


def live(folder: Path, asked: list[str]) -> Seconds:
    """TRL's trainer: its writing, and the rest of its step."""
    warnings.filterwarnings("ignore", module="trl")  # of the version of vLLM, which it is not asked to use
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import DistillationConfig, DistillationTrainer  # pyright: ignore[reportMissingImports, reportPrivateImportUsage, reportAttributeAccessIssue]

    tokens: list[int] = []
    writing: list[float] = []
    taken: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            taken.append(time.perf_counter() - self.started)

    class Timed(DistillationTrainer):
        def _generate(self, prompts: list[Any]) -> Any:
            with clocked(writing):
                written = super()._generate(prompts)
            tokens.append(sum(map(len, written[1])))
            return written

    settings = DistillationConfig(
        str(folder / "trl"), max_steps=len(asked) // BATCH, per_device_train_batch_size=BATCH,
        max_completion_length=LONGEST, bf16=False, gradient_checkpointing=False, lr_scheduler_type="constant",
        report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder / role, dtype=torch.float32) for role in ("student", "teacher")
    )
    trainer = Timed(
        student, teacher, settings, Dataset.from_dict({"prompt": asked}),
        processing_class=AutoTokenizer.from_pretrained(folder / "student"), callbacks=[Clock()],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    timed = sum(tokens[1:])
    return {"write": sum(writing[1:]) / timed, "train": (sum(taken[1:]) - sum(writing[1:])) / timed}


def offline(folder: Path, asked: list[str]) -> Seconds:
    """The pipeline: write and score a first batch, which warms up, then all others; train on all of them."""
    student, teacher = (record_model(str(folder / role)) for role in ("student", "teacher"))
    view = View(support=SupportSettings(top_k=K))
    settings, machine = params.Score(views={"teacher": view}, entropies=False), Machine()
    sources: list[Bucket] = []
    writing: list[float] = []
    scoring_: list[float] = []
    with OnDemand(student, EngineSettings(), machine) as writer, OnDemand(teacher, settings, machine) as scorer:
        writer.open()
        scorer.open()
        for number, part in enumerate((asked[:BATCH], asked[BATCH:])):
            wanted, written, scored = (
                folder / f"{name}-{number}.parquet" for name in ("prompts", "rollouts", "scores")
            )
            _write_prompts(wanted, part)
            drawn = Writing(student, EngineSettings(), Sampling(max_tokens=LONGEST), samples=1, seed=0)
            identity = identify_rollouts("refresh", 1, wanted, drawn)
            with clocked(writing):
                write_rollouts(written, identity, read_prompts(wanted), Author(writer, "student"))
            with clocked(scoring_):
                plan = plan_scores(settings, {"teacher": teacher}, ["teacher"], [Bucket(written, wanted)])
                with ShardReader(written) as rollouts:
                    write_scores(scored, plan.views["teacher"][0], scorer.open, rollouts)
            sources.append(Bucket(written, scores={"teacher": scored}))
    timed = count_rows_and_tokens(sources[1].rollouts)[1]
    return {
        "write": writing[1] / timed,
        "score": scoring_[1] / timed,
        "train": _train(folder, sources, student, 2 * len(asked) // BATCH),
    }


def _write_prompts(path: Path, part: list[str]) -> None:
    made = [
        Prompt(text, "all", ({"role": "user", "content": text},), answer=None, hint=None, bucket=0, split="opd")
        for text in part
    ]
    write_prompts(path, {}, {}, made)


def _train(folder: Path, sources: list[Bucket], student: Model, steps: int) -> float:
    """Seconds for a token of `training.fit`, from one reading to the next, behind the first step."""
    logging.getLogger("train").setLevel(logging.ERROR)  # random models look like a collapse
    started: list[float] = []
    trained: list[int] = []

    class Clocked(Rows):
        def batch(self, *arguments: Any, **named: Any) -> Any:
            started.append(time.perf_counter())
            packs = super().batch(*arguments, **named)
            trained.append(sum(len(pack.sampled_ids) for pack, _ in packs))
            return packs

    recipe, settings = load_recipe("topk_reverse_kl"), Training(steps=steps, batch=BATCH, learning_rate=1e-6)
    run = Run(recipe, Clocked(sources, recipe), settings, Machine(), folder / "state")
    fit_student(open_student(student), run)
    return (started[-1] - started[1]) / sum(trained[1:-1])


@contextmanager
def clocked(seconds: list[float]) -> Iterator[None]:
    """Note how long something takes."""
    start = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - start)


if __name__ == "__main__":
    typer.run(main)
