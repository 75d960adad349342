"""Pairs of the teacher's response and the student's against the prompts in the files, and `soda` through the stages.

What the first step of `soda` costs is known: the student is still its own reference, so every pair costs ln 2.
"""

import csv
import math
from collections import defaultdict
from pathlib import Path

import pytest

from pipeline.engines.fake import BigramEngine
from pipeline.errors import SettingsError, ShardError
from pipeline.models.record import record_model
from pipeline.settings.models import EngineSettings, Training
from pipeline.settings.recipe import load_recipe
from pipeline.storage.bucket import Bucket
from pipeline.storage.manifest import MANIFEST
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.shards import read_shard
from pipeline.training.preference_pairs import find_partners
from pipeline.training.requirements import _check_pairs
from pipeline.training.rows import Rows
from tests import dag, tiny_models, tiny_shards

SODA = load_recipe("soda")
RESPONSES = {"student": [9, 5], "teacher": [6, 3]}
"""Rows of each shard; the prompts of every shard are p0, p1, …"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Bucket]:
    root = tmp_path_factory.mktemp("pairs")
    engine = BigramEngine(record_model(str(tiny_models.bigram(root / "bigram"))), EngineSettings(engine="fake"))
    found = []
    for seed, (source, rows) in enumerate(RESPONSES.items()):
        writer = BigramEngine(
            record_model(str(tiny_models.bigram(root / source, seed + 5))), EngineSettings(engine="fake")
        )
        shards_of = tiny_shards.write(root / f"of-{source}", writer, engine, rows)
        found += [
            Bucket(shard.rollouts, scores={"reference": shard.scores["teacher"]}, source=source) for shard in shards_of
        ]
    return found


def stored(sources: list[Bucket]) -> list[tuple[str, str, tuple[int, ...]]]:
    """Source, prompt and response of every row."""
    return [
        (source.source, row["prompt_id"], tuple(row["response_ids"]))
        for source in sources
        for row in read_shard(source.rollouts, ROLLOUTS).to_pylist()
    ]


def test_a_response_is_paired_with_the_teachers_to_its_own_prompt(sources):
    rows = stored(sources)
    found = find_partners(sources, "soda")
    assert len(found) == len(rows)
    samples: dict[str, list[int]] = defaultdict(list)
    for number, (source, prompt, _) in enumerate(rows):
        of_teacher = [other for other, row in enumerate(rows) if row[:2] == ("teacher", prompt)]
        if source == "teacher" or not of_teacher:
            assert found[number] == -1
        else:
            samples[prompt].append(number)
            assert found[number] == of_teacher[(len(samples[prompt]) - 1) % len(of_teacher)]
    assert sum(found >= 0) == 6 + 5


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("tokens", [1, 40, 1000])
def test_a_pair_is_never_torn_apart(sources, tokens, devices):
    """However small the packs: the teacher's response, and behind it the student's to the same prompt."""
    rows = Rows(sources, SODA)
    prompts = defaultdict(set)
    for source, prompt, response in stored(sources):
        prompts[source, response].add(prompt)
    loader, seen = tiny_shards.loader(rows, 3, 8, tokens, 0, devices), 0
    for packs in loader:
        assert len(packs) % devices == 0
        for pack, inputs in packs:
            assert inputs.sampled_ids is pack.sampled_ids
            told = [tuple(part.tolist()) for part in inputs.sampled_ids.split(inputs.lengths.tolist())]
            starts = inputs.lengths.cumsum(0) - inputs.lengths
            assert inputs.facts["source=teacher"][starts].tolist() == [1.0, 0.0] * (len(told) // 2)
            for chosen, rejected in zip(told[0::2], told[1::2], strict=True):
                assert prompts["teacher", chosen] & prompts["student", rejected]
                seen += 1
    assert seen == 3 * 4


def test_an_epoch_has_every_pair_once(sources):
    rows = Rows(sources, SODA)
    order = rows.order(0, 0)
    assert len(order) == rows.count == 2 * (6 + 5)
    assert len(set(order[1::2])) == len(order[1::2])
    assert order != rows.order(1, 0)


def test_without_a_common_prompt_there_is_nothing_to_compare(sources):
    of_student = [source for source in sources if source.source == "student"]
    with pytest.raises(ShardError, match=r"`soda` learns from pairs of them\. Name some prompts .* `split: sft`"):
        find_partners(of_student, "soda")


def test_half_a_pair_is_refused(sources):
    with pytest.raises(SettingsError, match=r"train\.batch is 7, .* `soda` trains on pairs .* Make it even"):
        _check_pairs(SODA, sources, Training(steps=1, batch=7, learning_rate=1.0))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose sft prompts are some of its opd prompts, with the reference that soda needs."""
    reference = {"model": "student", "target": False, "support": {"top_k": 1}, "teacher_rollouts": True}
    train = {"objective": "soda", "steps": 30, "batch": 8, "learning_rate": 0.05}
    made = dag.new_project(
        tmp_path / "project",
        score={"engine": "fake", "views": {"teacher": {"support": {"top_k": 4}}, "reference": reference}},
        train=train,
        rounds={"r1": {"prev": "r0"}},
    )
    dag.write_prompts(made, "sft", dag.read_prompts(made, "opd")[:16])
    monkeypatch.chdir(made)
    return made


TO_SCORES = ["models", "prompts", "teacher_rollouts", "sft", "refresh@r1", "score@r1"]


def test_soda_trains_from_what_the_stages_made(project):
    made = dag.run(project, [*TO_SCORES, "score_teacher@r1", "train@r1"])
    assert made["score_teacher@r1"] == {"score_teacher@r1 reference": 4}
    assert {path.name for path in Path("data/scores/r1/of_teacher").iterdir()} == {MANIFEST, "reference"}
    with Path("data/models/r1/history.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[0] == pytest.approx(math.log(2), rel=1e-5)
    assert sum(losses[-5:]) / 5 < 0.9 * math.log(2)


def test_a_view_that_has_not_scored_the_teachers_responses_is_named(project):
    dag.change(project, score__views__reference__teacher_rollouts=False, train__objective="topk_reverse_kl")
    dag.run(project, [*TO_SCORES, "score_teacher@r1"])
    dag.change(project, score__views__reference__teacher_rollouts=True, train__objective="soda")
    told = r"of_teacher/reference/0000.\.parquet is missing: .* Set `score\.views\.reference\.teacher_rollouts: true`"
    with pytest.raises(ShardError, match=told):
        dag.run(project, ["train@r1"])
