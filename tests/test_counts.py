"""What a change makes again: a finished project is changed, everything runs, and what the store made is counted.

The project (tests/dag.py) has 4 shards of opd prompts, two views and two rounds, of which the second renews the
stalest half of the shards: 2. So where round 1 gives another student, round 2 writes 2 shards, whatever the change was.
"""

import contextlib
import importlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.grading import graders
from pipeline.grading.graders import _Exact, exact
from pipeline.report.sql import Database
from pipeline.settings import params
from pipeline.storage import made_with
from pipeline.storage.prompts import PROMPTS
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.shards import list_shards, read_shard
from pipeline.storage.whole import read_json
from tests import dag, tiny_models
from tests.dag import Stage

ALL, STALE, SFT, EVALUATION = 4, 2, 4, 3
"""Shards of the opd prompts, those of them that are stale in a later round, and shards of the two other splits."""

Change = Callable[[Path, pytest.MonkeyPatch], Any]
Counts = Mapping[str, int]


@dataclass(frozen=True)
class Row:
    """A change to a finished project, and what it makes again.

    Attributes:
        change: applied before everything runs again.
        made: all that the store makes then.
        before: what distinguishes the finished project from the usual one.
        version: the file whose VERSION the change raises.
        only: the stages that run; None for all.
    """

    change: Change
    made: Counts
    before: Change | None = None
    version: str | None = None
    only: tuple[str, ...] | None = None


def added(*counts: Counts) -> dict[str, int]:
    return {key: sum(each.get(key, 0) for each in counts) for each in counts for key in each}


def written(round_: str, shards: int) -> dict[str, int]:
    """A round's student writes so many shards, which are graded and scored."""
    scored = {f"score@{round_} {view}": shards for view in ("teacher", "hinted")}
    return {f"refresh@{round_}": shards, "grade": shards, **scored}


def trained(round_: str) -> dict[str, int]:
    """A round's student is new, and answers the evaluation prompts greedily and by sampling."""
    return added({f"train@{round_}": 1}, evaluated(2))


def evaluated(times: int) -> dict[str, int]:
    return {"evaluate": times * EVALUATION, "grade": times * EVALUATION}


FROM_TRAIN_2 = trained("r2")
FROM_TRAIN_1 = added(trained("r1"), {"drift": ALL}, written("r2", STALE), FROM_TRAIN_2)
FROM_SFT = added({"sft": 1}, evaluated(2), written("r1", ALL), FROM_TRAIN_1)
ROUND_3 = added({"drift": ALL}, written("r3", STALE), trained("r3"))
GRADES = {"grade": SFT + ALL + STALE + 8 * EVALUATION}
SCORES = {"score@r1 teacher": ALL, "score@r1 hinted": ALL, "score@r2 teacher": STALE, "score@r2 hinted": STALE}
ROLLOUTS_AGAIN = {"teacher_rollouts": SFT, "evaluate": 8 * EVALUATION, "refresh@r1": ALL, "refresh@r2": STALE}


def setting(**changes: Any) -> Change:
    return lambda project, _: dag.change(project, **changes)


def both(*changes: Change) -> Change:
    def apply(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for each in changes:
            each(project, monkeypatch)

    return apply


def version(module: str) -> Change:
    def apply(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        loaded = importlib.import_module(module)
        monkeypatch.setattr(loaded, "VERSION", loaded.VERSION + 1)

    return apply


def raised(module: str, made: Counts, and_more: Change | None = None) -> Row:
    change = version(module) if and_more is None else both(version(module), and_more)
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Row(change, made, version=Path(spec.origin).relative_to(dag.ROOT).as_posix())


def learn_from(view: str) -> dict[str, Any]:
    return {"terms": [{"estimator": "analytic", "divergence": "reverse_kl", "view": view, "support": "view"}]}


def prompt_field(name: str, value: str, *, kept: bool) -> Change:
    """Change a field of one opd prompt, in a shard that round 2 keeps or in one that it renews."""

    def apply(project: Path, _: pytest.MonkeyPatch) -> None:
        measured = json.loads((project / "data/drift/r2.json").read_text())["shards"]
        held_out = "00000.parquet"  # of which the checkpoint does not depend, only its identity
        shard = next(shard for shard, facts in measured.items() if facts["kept"] == kept and shard != held_out)
        table = read_shard(project / "data/prompts/opd" / shard, PROMPTS, ["messages"])
        text = table.column("messages")[0].as_py()[-1]["content"]
        edit(project, "opd", lambda row: row | {name: value} if row["prompt"] == text else row)

    return apply


def edit(project: Path, split: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    dag.write_prompts(project, split, [change(row) for row in dag.read_prompts(project, split)])


def one_prompt_added(project: Path, _: pytest.MonkeyPatch) -> None:
    rows = dag.read_prompts(project, "opd")
    dag.write_prompts(project, "opd", [*rows, {"prompt": "one more: 9", "answer": "9", "hint": "none"}])


def some_answers_right(project: Path, _: pytest.MonkeyPatch) -> None:
    """What the teacher wrote becomes the answer of all SFT prompts but the first; SFT learns from them alone."""
    folder = project / "data/teacher_rollouts/rollouts"
    texts: dict[str, str] = {}
    for path in list_shards(folder, "teacher_rollouts"):
        prompts = read_shard(project / "data/prompts/sft" / path.name, PROMPTS, ["messages"])
        asked = [messages[-1]["content"] for messages in prompts.column("messages").to_pylist()]
        written = read_shard(path, ROLLOUTS, ["text"]).column("text").to_pylist()
        texts |= dict(zip(asked, written, strict=True))
    first, *others = dag.read_prompts(project, "sft")
    right = [row | {"answer": texts[row["prompt"]].strip() or "none"} for row in others]
    dag.write_prompts(project, "sft", [first, *right])
    dag.change(project, sft__keep="correct")


def one_answer_wrong(project: Path, _: pytest.MonkeyPatch) -> None:
    *others, last = dag.read_prompts(project, "sft")
    dag.write_prompts(project, "sft", [*others, last | {"answer": "none of these"}])


def own_grader(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Which grader it is decides what is graded again; its processes, which take seconds, are test_grading's.
    monkeypatch.setattr("pipeline.grading.graders.open_grader", lambda _: contextlib.nullcontext(_Exact()))
    (project / "lenient.py").write_text("def grade(response, answer):\n    return True\n")
    dag.change(project, grade__grader="lenient:grade")


def correct_siblings(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two responses to each prompt, both correct unless the answer is b, and a view that shows each the other."""
    monkeypatch.setattr("pipeline.grading.graders.VERSION", graders.VERSION + 1)
    monkeypatch.setattr("pipeline.grading.graders.exact", lambda _, answer: answer != "b")
    dag.change(project, refresh__samples=2, score__views__sibling={"context": "sibling", "support": {"top_k": 4}})


def corrected_grader(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = exact
    monkeypatch.setattr("pipeline.grading.graders.VERSION", graders.VERSION + 1)
    monkeypatch.setattr("pipeline.grading.graders.exact", lambda *pair: not wrong(*pair))


def machine(project: Path, _: pytest.MonkeyPatch) -> None:
    (project / ".potstill/machine.yaml").write_text(
        "{device: cpu, generate_rows: 1, score_tokens: 64, train_tokens: 64, vllm: {max_num_seqs: 2}}"
    )


def every_default_written_out(project: Path, _: pytest.MonkeyPatch) -> None:
    written = params.load_params(project / "params.yaml").model_dump(mode="json")
    # A source is refused what it does not use, even null; all else may be said though it is the default.
    written["prompts"]["sources"] = dag.read_settings(project)["prompts"]["sources"]
    dag.write_settings(project, written)


def other_libraries(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("engines.identity", "grading.write", "training.checkpoints", "storage.made_with"):
        monkeypatch.setattr(f"pipeline.{module}.find_versions", lambda *names: dict.fromkeys(names, "99"))
    assert made_with.find_versions("torch") == {"torch": "99"}


def models_elsewhere(project: Path, _: pytest.MonkeyPatch) -> None:
    (project / "models").rename(project / "elsewhere")
    dag.change(project, models={"teacher": "elsewhere/teacher", "student": "elsewhere/student"})


def student_replaced(project: Path, _: pytest.MonkeyPatch) -> None:
    shutil.rmtree(project / "models/student")  # a copy's models are links
    tiny_models.bigram(project / "models/student", 9)
    (project / "models/student/chat_template.jinja").write_text(dag.TEMPLATE)


def without_store(project: Path, _: pytest.MonkeyPatch) -> None:
    shutil.rmtree(project / ".potstill")


def other_numbers(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.rollouts.write.derive_seed", lambda *_: 7)


WIDE = {"support": {"top_k": 2}}
R3 = setting(rounds__r3={"prev": "r2"})
ROWS = {
    "nothing": Row(lambda *_: None, {}),
    "grader": Row(own_grader, GRADES),
    "grader, and SFT learns from correct responses": Row(
        corrected_grader, added(FROM_SFT, {"grade": SFT + 2 * EVALUATION}), before=some_answers_right
    ),
    "evaluation settings": Row(setting(evaluate__samples=3), evaluated(4)),
    "hint of a prompt": Row(prompt_field("hint", "b", kept=True), {"prompts": 1, "score@r1 hinted": 1}),
    "hint of a prompt whose shard is renewed": Row(
        prompt_field("hint", "b", kept=False), {"prompts": 1, "score@r1 hinted": 1, "score@r2 hinted": 1}
    ),
    "hint of a prompt, and its view is learned from": Row(
        prompt_field("hint", "b", kept=True),
        added({"prompts": 1, "score@r1 hinted": 1}, FROM_TRAIN_1),
        before=setting(train__objective=learn_from("hinted")),
    ),
    "answer of a prompt": Row(prompt_field("answer", "b", kept=True), {"prompts": 1, "grade": 1}),
    "answer of a prompt, and a view shows correct siblings": Row(
        prompt_field("answer", "b", kept=True),
        {"prompts": 1, "grade": 1, "score@r1 sibling": 1},
        before=correct_siblings,
    ),
    "answer of an SFT prompt, and SFT learns from correct responses": Row(
        one_answer_wrong, added({"prompts": 1, "grade": 1}, FROM_SFT), before=some_answers_right
    ),
    "a prompt added": Row(one_prompt_added, added({"prompts": 1}, written("r1", 1), FROM_TRAIN_1)),
    "the student's weights, replaced in their folder": Row(student_replaced, FROM_SFT),
    "machine.yaml": Row(machine, {}),
    "every default written out": Row(every_default_written_out, {}),
    "library versions": Row(other_libraries, {}),
    "models in another folder": Row(models_elsewhere, {}),
    "a view added": Row(setting(score__views__wide=WIDE), {"score@r1 wide": ALL, "score@r2 wide": STALE}),
    "a view added at given ids": Row(
        setting(score__views__wide={"support": {"ids": [1, 2]}}), {"score@r1 wide": ALL, "score@r2 wide": STALE}
    ),
    "a view's given ids": Row(
        setting(score__views__wide={"support": {"ids": [2, 3]}}),
        {"score@r1 wide": ALL, "score@r2 wide": STALE},
        before=setting(score__views__wide={"support": {"ids": [1, 2]}}),
    ),
    "a view added at the ids of another": Row(
        setting(score__views__wide={"support": {"same_as": ["hinted"]}}), {"score@r1 wide": ALL, "score@r2 wide": STALE}
    ),
    "a view added, and it is learned from": Row(
        setting(score__views__wide=WIDE, train__objective=learn_from("wide")),
        added({"score@r1 wide": ALL, "score@r2 wide": STALE}, FROM_TRAIN_1),
    ),
    "refresh renews all": Row(
        setting(refresh__policy="all", refresh__fraction=None), added(written("r2", ALL - STALE), FROM_TRAIN_2)
    ),
    "refresh renews a larger fraction": Row(setting(refresh__fraction=0.75), added(written("r2", 1), FROM_TRAIN_2)),
    "refresh renews what is past a bound": Row(
        setting(refresh__policy="drift", refresh__fraction=None, refresh__bound=1e3),
        added({"floor": 2, "drift": 2}, FROM_TRAIN_2),
        before=setting(refresh__policy="all", refresh__fraction=None),
    ),
    "refresh's bound": Row(
        setting(refresh__bound=1e-6),
        added(written("r2", ALL - STALE), FROM_TRAIN_2),  # the others were renewed at `fraction`, and are found
        before=setting(refresh__policy="drift", refresh__fraction=None, refresh__bound=1e3),
    ),
    "train.objective": Row(setting(train__objective="topk_forward_kl"), FROM_TRAIN_1),
    "a round added": Row(R3, ROUND_3),
    # A clone has no grades of the round before: `refresh` does not depend on them.
    "a round added in a clone without store": Row(
        both(without_store, R3),
        added(ROUND_3, {"grade": ALL - STALE}),
        only=("refresh@r3", "score@r3", "train@r3", "evaluate@r3"),
    ),
    "VERSION of prompts": raised("stages.prompts", {"prompts": SFT + ALL + EVALUATION}),
    "VERSION of teacher_rollouts": raised("stages.teacher_rollouts", {"teacher_rollouts": SFT}),
    "VERSION of teacher_rollouts, and they are others": raised(
        "stages.teacher_rollouts", added({"teacher_rollouts": SFT, "grade": SFT}, FROM_SFT), other_numbers
    ),
    "VERSION of sft": raised("stages.sft", {"sft": 1}),
    "VERSION of refresh": raised("stages.refresh", {"refresh@r1": ALL, "refresh@r2": STALE}),
    "VERSION of train": raised("stages.train", {"train@r1": 1, "train@r2": 1}),
    "VERSION of evaluate": raised("stages.evaluate", {"evaluate": 8 * EVALUATION}),
    "VERSION of the format of prompts": raised("pipeline.storage.prompts", {"prompts": SFT + ALL + EVALUATION}),
    "VERSION of the format of rollouts": raised("pipeline.storage.rollouts", ROLLOUTS_AGAIN),
    # A new column of grades costs no GPU hour: nothing is written, scored or trained again.
    "VERSION of the format of grades": raised("pipeline.storage.grades", GRADES),
    "VERSION of the format of scores": raised("pipeline.storage.scores", SCORES),
    "VERSION of head": raised(
        "pipeline.head",
        {
            "sft": 1, "score@r1 teacher": ALL, "score@r1 hinted": ALL, "train@r1": 1,
            "score@r2 teacher": STALE, "score@r2 hinted": STALE, "train@r2": 1, "drift": ALL,
        },
    ),
    "VERSION of scoring": raised("pipeline.scoring", SCORES),
    **{
        f"VERSION of {module}": raised(f"pipeline.{module}", {"sft": 1, "train@r1": 1, "train@r2": 1})
        for module in ("objectives", "training", "training.rows")
    },
    "VERSION of the divergences": raised("pipeline.objectives.divergences", {"train@r1": 1, "train@r2": 1}),
    "VERSION of supervised learning": raised("pipeline.objectives.supervised", {"sft": 1}),
    "VERSION of formulas that the recipe does not use": raised("pipeline.objectives.trust_regions", {}),
    "VERSION of drift": raised("pipeline.rollouts.drift", {"drift": ALL}),
    "VERSION of grading": raised("pipeline.grading.graders", GRADES),
    "VERSION of the engine": raised(
        "pipeline.engines.fake",
        {
            "teacher_rollouts": SFT, "refresh@r1": ALL, "refresh@r2": STALE, "evaluate": 8 * EVALUATION, "drift": ALL,
            "score@r1 teacher": ALL, "score@r1 hinted": ALL, "score@r2 teacher": STALE, "score@r2 hinted": STALE,
        },
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Stage], Counts]:
    """A project in which everything ran, its stages, and what they made."""
    project = dag.new_project(tmp_path_factory.mktemp("finished") / "project")
    order = dag.stages(project)
    with contextlib.chdir(project):
        made = dag.total(dag.run(project, order=order))
    return project, order, made


def test_a_first_run_makes_everything(finished):
    everything = added({"prompts": SFT + ALL + EVALUATION, "teacher_rollouts": SFT, "grade": SFT}, FROM_SFT)
    assert finished[2] == added(everything, evaluated(2))


def test_evaluations_hold_what_the_metrics_are_made_from(finished):
    project, *_ = finished
    with Database(project / "data") as database:
        for checkpoint in ("teacher", "r0", "r1", "r2"):
            metrics = read_json(project / f"data/metrics/{checkpoint}.json")
            rows = database.ask("select * from evaluations where checkpoint = ?", [checkpoint])
            greedy, sampled = ([row for row in rows if row["mode"] == mode] for mode in ("greedy", "sampled"))
            assert len(greedy) == metrics["prompts"]
            assert len(sampled) == metrics["prompts"] * metrics["k"]
            assert np.mean([row["correct"] for row in greedy]) == metrics["greedy"]
            assert np.mean([row["correct"] for row in sampled]) == pytest.approx(metrics["avg_at_k"])
            assert np.mean([row["tokens"] for row in sampled]) == metrics["mean_length"]
            assert np.mean([row["finish_reason"] == "length" for row in sampled]) == metrics["truncated"]


@pytest.mark.slow
@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in ROWS.items()])
def test_a_change_makes_again_only_what_depends_on_it(row, finished, tmp_path, monkeypatch):
    project, order = dag.copy(finished[0], tmp_path / "project"), finished[1]
    monkeypatch.chdir(project)
    if row.before is not None:
        row.before(project, monkeypatch)
        dag.run(project, order=order)
    row.change(project, monkeypatch)
    if dag.read_settings(project)["rounds"].keys() != dag.read_settings(finished[0])["rounds"].keys():
        order = dag.stages(project)
    made = dag.run(project, row.only, order)
    assert {key: count for key, count in sorted(dag.total(made).items()) if count} == dict(sorted(row.made.items()))
    if row.version is not None:
        assert_dvc_would_run(order, {name for name, counts in made.items() if counts}, row.version)


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("prompts", {"prompts": SFT + ALL + EVALUATION}),
        ("rollouts", ROLLOUTS_AGAIN),
        ("grades", GRADES),
        ("scores", SCORES),
    ],
)
def test_a_column_added_in_one_file_is_null_until_somebody_fills_it(kind, made, finished, tmp_path, monkeypatch):
    """Only shards of its kind are made again; all that reads them goes on."""
    project, order = dag.copy(finished[0], tmp_path / "project"), finished[1]
    monkeypatch.chdir(project)
    add_column(kind, monkeypatch)
    again = dag.total(dag.run(project, order=order))
    assert {key: count for key, count in again.items() if count} == made
    paths = [path for path in project.glob(f"data/**/{kind}/**/*.parquet") if "of_teacher" not in path.parts]
    assert len(paths) > ALL
    for path in paths:
        assert pq.read_table(path, columns=["noted"]).column("noted").null_count == pq.read_metadata(path).num_rows


def add_column(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a nullable column to a kind of shard as an edit of its module would: to the schema, with VERSION raised."""
    module = importlib.import_module(f"pipeline.storage.{kind}")
    schema = getattr(module, kind.upper())
    wide = schema.append(pa.field("noted", pa.list_(pa.float32())))
    for loaded in [loaded for name, loaded in sys.modules.items() if name.partition(".")[0] in ("pipeline", "stages")]:
        for name in [name for name, value in vars(loaded).items() if value is schema]:
            monkeypatch.setattr(loaded, name, wide)  # every room that took the schema by name
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)


def assert_dvc_would_run(order: list[Stage], makers: set[str], version_file: str) -> None:
    """A stage that makes something anew names the file in dvc.yaml, or reads what such a stage gave."""
    if version_file == "pipeline/engines/fake.py":  # for tests; dvc.yaml has the engines that people use
        return
    runs: list[Stage] = []
    for stage in order:
        if version_file in stage.deps or any(stage.reads(earlier) for earlier in runs):
            runs.append(stage)
    assert makers <= {stage.name for stage in runs}


@pytest.fixture(scope="module")
def forced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Counts, bool]]:
    """Of each stage run a second time before any later one: what it made, and whether its outputs were the same."""
    project = dag.new_project(tmp_path_factory.mktemp("forced") / "project")
    found = {}
    with contextlib.chdir(project):
        for stage in dag.stages(project):
            dag.run(project, [stage.name], [stage])
            first = {out: dag.contents(project / out) for out in stage.outs}
            again = dag.total(dag.run(project, [stage.name], [stage]))
            found[stage.name] = again, first == {out: dag.contents(project / out) for out in stage.outs}
    return found


STAGES = [
    "inputs", "models", "prompts", "teacher_rollouts", "sft", "refresh@r1", "score@r1", "score_teacher@r1", "train@r1",
    "refresh@r2", "score@r2", "score_teacher@r2", "train@r2", "evaluate@r1", "evaluate@r2", "evaluate_start@teacher",
    "evaluate_start@r0", "report",
]  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_forced_to_run_again_makes_nothing_and_gives_the_same_files(stage, forced):
    assert forced[stage] == ({}, True)


def test_every_stage_is_forced(forced):
    assert sorted(forced) == sorted(STAGES)
