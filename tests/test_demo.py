"""The demo's sums against arithmetic and the grader; its tokenizers and models against what is asked of any model."""

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.demo import task
from pipeline.demo.models import BPE_TOKENS, CONTEXT, make_character_tokenizer, make_model, make_tokenizer
from pipeline.errors import ModelError, PromptError, SettingsError
from pipeline.grading.graders import open_grader
from pipeline.models.record import Model, check_pair, read_model, record_model
from pipeline.models.templates import render_prompt
from pipeline.settings import params
from pipeline.settings.machine import Machine
from pipeline.settings.models import Demo, Models, TinyModel, Training
from pipeline.storage.bucket import Bucket
from pipeline.storage.manifest import MANIFEST, verify_folder
from pipeline.storage.rollouts import TOKEN_COLUMNS
from pipeline.storage.shards import open_parquet, read_group
from pipeline.storage.store import Store
from pipeline.training.rows import Rows
from stages import models as stage

SIZE = TinyModel(layers=1, hidden=16, heads=2)
QUESTION = "17+48+25=?"
Kind = Literal["characters", "bpe"]
Architecture = Literal["qwen3", "llama"]
kinds = pytest.mark.parametrize("kind", ["characters", "bpe"])
architectures = pytest.mark.parametrize("architecture", ["qwen3", "llama"])


def saved(folder: Path, kind: Kind = "characters", architecture: Architecture = "qwen3", seed: int = 0) -> Model:
    tokenizer = make_tokenizer(kind)
    make_model(SIZE, architecture, tokenizer, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return record_model(str(folder))


def examples(**changes: object) -> Demo:
    training = Training(steps=3, batch=8, learning_rate=1e-3)
    return Demo(teacher=SIZE, student=SIZE, examples=64, training=training).model_copy(update=changes)


def test_answer_and_hint_are_what_arithmetic_says():
    for row in task.draw_sums(3, 200):
        first, second, third = map(int, row["question"].removesuffix("=?").split("+"))
        assert row["answer"] == str(first + second + third)
        assert row["hint"] == f"{first}+{second}={first + second}"
        assert all(10 <= number <= 99 for number in (first, second, third))


def test_sums_are_distinct_and_follow_from_the_seed():
    drawn = list(task.draw_sums(1, 5000))
    assert len({row["question"] for row in drawn}) == 5000
    assert drawn == list(task.draw_sums(1, 5000))
    assert drawn != list(task.draw_sums(2, 5000))


def test_a_larger_count_adds_sums_and_changes_none():
    assert list(task.draw_sums(1, 10)) == list(task.draw_sums(1, 11))[:10]


def test_every_number_occurs_at_every_place():
    questions = [row["question"].removesuffix("=?").split("+") for row in task.draw_sums(1, 5000)]
    for place in range(3):
        assert {int(question[place]) for question in questions} == set(range(10, 100))


def test_more_sums_than_there_are_is_an_error_before_the_first():
    with pytest.raises(PromptError, match=r"at most 729000 .*limit: 729001"):
        task.draw_sums(0, 729_001)


def test_a_solution_shows_its_working_and_is_graded_as_right():
    assert task.write_solution(QUESTION) == "17+48=65\n65+25=90\n#### 90"
    rows = list(task.draw_sums(5, 50))
    with open_grader(params.GradeSettings(grader="exact")) as grader:
        right = grader.grade([task.write_solution(row["question"]) for row in rows], [row["answer"] for row in rows])
        wrong = grader.grade([task.write_solution(QUESTION)], ["91"])
    assert [grade.correct for grade in right] == [True] * 50
    assert wrong[0].correct is False


def test_a_hint_is_the_first_line_of_the_solution():
    for row in task.draw_sums(5, 50):
        assert task.write_solution(row["question"]).startswith(row["hint"] + "\n")


@kinds
def test_a_saved_tokenizer_gives_back_every_printable_character(kind: Kind, tmp_path: Path):
    tokenizer = saved(tmp_path, kind).load_tokenizer()
    text = "\n".join(["".join(map(chr, range(32, 127))), " two  spaces , and a comma", task.write_solution(QUESTION)])
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_characters_are_tokens_and_unknown_ones_are_seen_to_be():
    tokenizer = make_character_tokenizer()
    assert len(tokenizer.encode(task.write_solution(QUESTION))) == len(task.write_solution(QUESTION))
    assert tokenizer.decode(tokenizer.encode("aé b")) == "a<|unknown|> b"


def test_byte_pairs_shorten_sums_and_know_every_text():
    tokenizer = make_tokenizer("bpe")
    assert len(tokenizer) == BPE_TOKENS
    assert len(tokenizer.encode(task.write_solution(QUESTION))) < len(task.write_solution(QUESTION))
    assert tokenizer.decode(tokenizer.encode("aé b 漢")) == "aé b 漢"


@kinds
def test_a_prompt_costs_one_token_for_each_mark(kind: Kind, tmp_path: Path):
    tokenizer = saved(tmp_path, kind).load_tokenizer()
    ids = render_prompt(tokenizer, [{"role": "user", "content": QUESTION}])
    assert tokenizer.decode(ids) == f"<|user|>{QUESTION}<|assistant|>"
    assert len(ids) == len(tokenizer.encode(QUESTION)) + 2


@kinds
def test_system_messages_hints_and_earlier_turns_are_rendered(kind: Kind):
    tokenizer = make_tokenizer(kind)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "#### 90"},
        {"role": "user", "content": "Again!\n\nHint: 17+48=65"},
    ]
    assert tokenizer.decode(render_prompt(tokenizer, messages)) == (
        f"<|system|>Be brief.<|user|>{QUESTION}<|assistant|>#### 90<|end|><|user|>Again!\n\nHint: 17+48=65<|assistant|>"
    )


@architectures
@kinds
def test_a_made_model_can_be_recorded_and_fits_another_of_its_tokenizer(
    kind: Kind, architecture: Architecture, tmp_path: Path
):
    teacher = saved(tmp_path / "teacher", kind, architecture)
    student = saved(tmp_path / "student", kind, "qwen3", seed=1)
    check_pair(teacher, student)
    tokenizer = teacher.load_tokenizer()
    assert teacher.vocabulary == teacher.tokens == len(tokenizer)
    assert teacher.eos_ids == (tokenizer.eos_token_id,)
    assert teacher.context == CONTEXT
    assert teacher.weights_hash != student.weights_hash


@architectures
def test_weights_follow_from_the_seed_alone(architecture: Architecture):
    tokenizer = make_character_tokenizer()
    state = torch.get_rng_state()
    one, same, other = (make_model(SIZE, architecture, tokenizer, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert all(weight.dtype == torch.float32 for weight in one.values())


def test_models_of_different_tokenizers_are_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"models\.teacher \(.*different tokenizers"):
        check_pair(saved(tmp_path / "a", "characters"), saved(tmp_path / "b", "bpe"))


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path):
    make_model(SIZE, "qwen3", make_character_tokenizer(), 0).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no tokenizer"):
        record_model(str(tmp_path))


def test_examples_are_worked_sums_that_training_can_read(tmp_path: Path):
    tokenizer, path = make_character_tokenizer(), tmp_path / "examples.parquet"
    task.write_examples(path, tokenizer, examples(seed=7, examples=100))
    rows = Rows([Bucket(path)])
    assert rows.count == 100
    question = next(task.draw_sums(7, 1))["question"]
    table = read_group(path, open_parquet(path), 0, TOKEN_COLUMNS)
    assert tokenizer.decode(table["prompt_ids"][0].as_py()) == f"<|user|>{question}<|assistant|>"
    assert tokenizer.decode(table["response_ids"][0].as_py()) == f"{task.write_solution(question)}<|end|>"
    packs = rows.batch(rows.sequential()[:4], 1000)
    total = sum(inputs.shares["token_mean"].sum() for _, inputs in packs)
    np.testing.assert_allclose(total, 1.0, rtol=1e-6)


def test_a_share_of_the_examples_shows_its_own_hint(tmp_path: Path):
    tokenizer = make_character_tokenizer()
    task.write_examples(tmp_path / "examples.parquet", tokenizer, examples(hinted=0.25, examples=400))
    rows = pq.read_table(tmp_path / "examples.parquet").column("prompt_ids").to_pylist()
    shown = 0
    for row, ids in zip(task.draw_sums(0, 400), rows, strict=True):
        asked = tokenizer.decode(ids)
        assert asked in (f"<|user|>{row['question']}<|assistant|>", f"<|user|>{task.show_hint(row)}<|assistant|>")
        shown += row["hint"] in asked
    np.testing.assert_allclose(shown / 400, 0.25, atol=0.08)


def test_so_many_computed_digits_slip_and_each_to_every_other_digit():
    written = task.make_slips(0.25, seed=1)
    drawn = [written(55) for _ in range(4000)]
    np.testing.assert_allclose(np.mean([number != 55 for number in drawn]), 1 - 0.75**2, atol=0.03)
    assert {number % 10 for number in drawn} == set(range(10))
    assert task.make_slips(0.0, seed=1)(55) == 55


def test_working_goes_on_from_a_slip():
    assert task.write_solution(QUESTION, lambda number: number + 1) == "17+48=66\n66+25=92\n#### 92"


def test_slips_change_the_responses_and_not_the_prompts(tmp_path: Path):
    tokenizer, columns = make_character_tokenizer(), ["prompt_ids", "response_ids"]
    tables = []
    for name, slips in (("right", 0.0), ("slips", 0.5)):
        task.write_examples(tmp_path / name, tokenizer, examples(slips=slips))
        tables.append(read_group(tmp_path / name, open_parquet(tmp_path / name), 0, columns))
    right, slipped = tables
    assert right["prompt_ids"] == slipped["prompt_ids"]
    pairs = zip(right["response_ids"].to_pylist(), slipped["response_ids"].to_pylist(), strict=True)
    changed = [one != other for one, other in pairs]
    assert np.mean(changed) > 0.9  # of 4 to 6 computed digits each slips or not as a coin falls


class TestStage:
    """`stages.models`, with models so small that training them takes a moment."""

    def settings(self, folder: Path, steps: int = 3, **changes: object) -> Models:
        training = Training(steps=steps, batch=8, learning_rate=1e-3, save_every=2)
        own = examples(**{"training": training, **changes})
        return Models(teacher=str(folder / "demo/teacher"), student=str(folder / "demo/student"), demo=own)

    def run(self, folder: Path, settings: Models) -> tuple[stage.StageSummary, Model, Model]:
        records = (folder / "teacher.json", folder / "student.json")
        folders = stage.ModelFolders(*records, folder / "demo", folder / "state")
        made = stage.run(settings, Machine(device="cpu"), Store(folder / "store"), folders)
        return made, read_model(records[0]), read_model(records[1])

    def test_both_are_made_once_and_then_found(self, tmp_path: Path):
        first, teacher, student = self.run(tmp_path, self.settings(tmp_path))
        again, *same = self.run(tmp_path, self.settings(tmp_path))
        assert (first.made, first.found, again.made, again.found) == (2, 0, 0, 2)
        assert [teacher, student] == same
        assert not list((tmp_path / "state").glob("*"))

    def test_training_settings_make_another_teacher_but_no_other_student(self, tmp_path: Path):
        _, teacher, student = self.run(tmp_path, self.settings(tmp_path))
        made, other, same = self.run(tmp_path, self.settings(tmp_path, steps=4))
        assert made.made == 1
        assert (teacher.weights_hash != other.weights_hash, student) == (True, same)

    def test_slips_make_another_teacher_but_no_other_student(self, tmp_path: Path):
        _, teacher, student = self.run(tmp_path, self.settings(tmp_path))
        made, other, same = self.run(tmp_path, self.settings(tmp_path, slips=0.5))
        assert made.made == 1
        assert (teacher.weights_hash != other.weights_hash, student) == (True, same)

    def test_how_often_a_state_is_saved_makes_no_other_teacher(self, tmp_path: Path):
        self.run(tmp_path, self.settings(tmp_path))
        settings = self.settings(tmp_path)
        assert settings.demo is not None
        often = settings.demo.training.model_copy(update={"save_every": 1})
        made, *_ = self.run(tmp_path, self.settings(tmp_path, training=often))
        assert made.made == 0

    def test_a_warmup_says_in_the_teachers_identity_who_computes_its_rates(self, tmp_path: Path):
        demo = self.settings(tmp_path, steps=4).demo
        assert demo is not None
        rising = demo.model_copy(update={"training": demo.training.model_copy(update={"warmup": 0.5})})
        assert "schedule_by" not in stage.identify_demo_model(demo, "teacher")["demo"]["training"]
        named = stage.identify_demo_model(rising, "teacher")["demo"]["training"]
        assert (named["warmup"], named["schedule_by"]) == (0.5, "transformers")
        assert stage.identify_demo_model(rising, "student") == stage.identify_demo_model(demo, "student")

    def test_other_names_than_the_made_models_are_refused(self, tmp_path: Path):
        settings = self.settings(tmp_path).model_copy(update={"student": "Qwen/Qwen3-4B@main"})
        with pytest.raises(
            SettingsError, match=r"models\.student: .*demo/student; expected that, found `Qwen/Qwen3-4B"
        ):
            self.run(tmp_path, settings)

    def test_models_of_ones_own_are_recorded_and_the_demo_folder_has_none(self, tmp_path: Path):
        saved(tmp_path / "a")
        saved(tmp_path / "b", seed=1)
        (tmp_path / "demo/teacher").mkdir(parents=True)  # an earlier demo's
        settings = Models(teacher=str(tmp_path / "a"), student=str(tmp_path / "b"))
        made, teacher, student = self.run(tmp_path, settings)
        assert made.made == 0
        # A manifest of nothing: DVC warns of an empty folder at every stage that depends on it.
        assert [path.name for path in (tmp_path / "demo").iterdir()] == [MANIFEST]
        assert verify_folder(tmp_path / "demo") == []
        assert (teacher.name, student.name) == (settings.teacher, settings.student)

    def test_nothing_is_recorded_of_two_that_do_not_fit(self, tmp_path: Path):
        saved(tmp_path / "a")
        saved(tmp_path / "b", "bpe")
        with pytest.raises(ModelError, match="different tokenizers"):
            self.run(tmp_path, Models(teacher=str(tmp_path / "a"), student=str(tmp_path / "b")))
        assert not (tmp_path / "teacher.json").exists()
