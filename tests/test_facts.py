"""The facts of a pack against the files: each token has those of its own row and position, whatever the packing."""

import itertools
import math
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.engines.fake import BigramEngine
from pipeline.errors import SettingsError, ShardError
from pipeline.models.record import record_model
from pipeline.objectives.objective import Objective
from pipeline.objectives.targets import find_target
from pipeline.settings.models import EngineSettings, Sampling, Training
from pipeline.settings.recipe import load_recipe
from pipeline.storage.bucket import Bucket
from pipeline.storage.grades import GRADES, Grade, make_grade_table
from pipeline.storage.prompts import PROMPTS, Prompt, write_prompts
from pipeline.storage.ragged import from_lists
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.scores import SCORES, make_skipped_table
from pipeline.storage.shards import Writer, read_about, read_shard
from pipeline.training.checkpoints import hash_shard
from pipeline.training.facts import Facts
from pipeline.training.requirements import check_requirements
from pipeline.training.rows import Rows
from tests import tiny_models, tiny_shards

ROWS = [9, 5]
SAMPLED = {"estimator": "policy_gradient", "divergence": "reverse_kl", "support": "sampled"}
REWARD = {"estimator": "policy_gradient", "view": None, "support": "sampled", "bonus": "advantage",
          "fixed_point": "none: reward"}  # fmt: skip
ROUTE = {"kind": "route", "views": {"sums": "teacher", "words": "teacher_b"}}
OBJECTIVE = {
    "terms": [
        {**SAMPLED, "view": None, "target": ROUTE, "ratio": {"kind": "importance", "high": 2.0},
         "weights": [{"kind": "not_special"}, {"kind": "where", "fact": "correct"},
                     {"kind": "where", "fact": "finished"}, {"kind": "first_segments", "every": 1, "most": 9}]},
        REWARD,
        {**SAMPLED, "view": "hinted",
         "weights": [{"kind": "has_view", "view": "hinted"}, {"kind": "earliness", "highest": 2.0}]},
        {"estimator": "nll", "view": None, "support": "sampled", "source": "teacher", "fixed_point": "none: nll"},
    ],
    "derived": {"advantage": {"kind": "group_advantage", "of": "reward"}},
}  # fmt: skip
"""Reads every kind of fact."""


def rewritten(path, schema, identity, **columns):
    """A shard again, with other values in some columns."""
    rows = read_shard(path, schema).to_pylist()
    rows = [row | {name: values[number] for name, values in columns.items()} for number, row in enumerate(rows)]
    with Writer(path, schema, identity, {}) as writer:
        writer.write(pa.Table.from_pylist(rows, schema))
    return rows


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two shards of the student's responses and one of the teacher's, with all that belongs to them, and their rows."""
    root = tmp_path_factory.mktemp("facts")
    engine = BigramEngine(record_model(str(tiny_models.bigram(root / "bigram"))), EngineSettings(engine="fake"))
    plain = tiny_shards.write(root / "shards", engine, engine, [*ROWS, 4])
    random, sources, stored = np.random.default_rng(0), [], []
    for number, shard in enumerate(plain):
        rows = read_shard(shard.rollouts, ROLLOUTS).to_pylist()
        lengths = [len(row["response_ids"]) for row in rows]
        count = len(rows)
        columns = {
            "prompt_id": [f"p{number}-{row // 3}" for row in range(count)],
            "behaviour_logprobs": [(-random.exponential(1, length)).tolist() for length in lengths],
            "sampling_logprobs": [
                None if row % 2 else (-random.exponential(1, n)).tolist() for row, n in enumerate(lengths)
            ],
            "segments": [None if row % 3 else list(range(n)) for row, n in enumerate(lengths)],
            "finish_reason": ["length" if row % 4 == 1 else "stop" for row in range(count)],
        }
        sampling = Sampling(max_tokens=16).model_dump()
        rows = rewritten(shard.rollouts, ROLLOUTS, {"sampling": sampling, "rows": {"samples": 3}}, **columns)
        rewards = random.normal(size=count).tolist()
        graded = [Grade([True, False, None][row % 3], rewards[row], None) for row in range(count)]
        grades, asked = root / f"grades-{number}.parquet", root / f"prompts-{number}.parquet"
        with Writer(grades, GRADES, {}, {}) as writer:
            writer.write(make_grade_table([row["rollout_id"] for row in rows], graded, [None] * count))
        known = sorted({row["prompt_id"] for row in rows})
        told = [{"role": "user", "content": "?"}]
        of_domain = {prompt: "words" if prompt.endswith("1") else "sums" for prompt in known}
        write_prompts(asked, {}, {}, [Prompt(p, of_domain[p], tuple(told), "1", None, 0, "opd") for p in known])
        scores = {}
        for view in ("teacher", "teacher_b", "hinted"):
            scores[view] = root / f"{view}-{number}.parquet"
            table = read_shard(shard.scores["teacher"], SCORES)
            if view == "hinted":
                skipped = make_skipped_table(table.column("rollout_id").to_pylist(), ["no hint"] * count)
                rows_of = [(table if row % 2 else skipped).slice(row, 1) for row in range(count)]
                table = pa.concat_tables(rows_of)
            support = {"top_k": 4, "mass": None, "min_k": 1}
            identity = {"tail": "exact", "entropies": True, "support": support, "rows": {"asked": []}}
            with Writer(scores[view], SCORES, identity, {}) as writer:
                writer.write(table)
        of_teacher = number == 2
        sources.append(
            Bucket(shard.rollouts, scores={} if of_teacher else scores, grades=grades, prompts=asked,
                  source="teacher" if of_teacher else "student")
        )  # fmt: skip
        in_group = {p: [rewards[row] for row in range(count) if rows[row]["prompt_id"] == p] for p in known}
        for row, (rollout, grade) in enumerate(zip(rows, graded, strict=True)):
            drawn = rollout["sampling_logprobs"] or rollout["behaviour_logprobs"]
            prompt = rollout["prompt_id"]
            stored.append(
                rollout
                | {
                    "drawn": drawn,
                    "steps": rollout["segments"] or [0] * lengths[row],
                    "row": {
                        "correct": math.nan if grade.correct is None else float(grade.correct),
                        "domain=sums": float(of_domain[prompt] == "sums"),
                        "domain=words": float(of_domain[prompt] == "words"),
                        "finished": float(rollout["finish_reason"] == "stop"),
                        "has=hinted": 0.0 if of_teacher else float(row % 2),
                        "source=teacher": float(of_teacher),
                        "source=student": float(not of_teacher),
                        "advantage": (rewards[row] - np.mean(in_group[prompt])) / (np.std(in_group[prompt]) + 1e-4),
                    },
                }
            )
    return sources, stored


def responses(pack) -> list[tuple[int, ...]]:
    starts = [0, *(np.flatnonzero(np.diff(pack.predicts.numpy()) != 1) + 1), len(pack.predicts)]
    return [tuple(pack.sampled_ids[a:b].tolist()) for a, b in itertools.pairwise(starts)]


SPECIAL = (0, 5)


@pytest.mark.parametrize("tokens", [60, 10_000])
def test_each_token_has_the_facts_of_its_own_row_and_position(made, tokens):
    sources, stored = made
    rows = Rows(sources, load_recipe(OBJECTIVE), SPECIAL)
    by_ids = {(tuple(row["prompt_ids"]), tuple(row["response_ids"])): row for row in stored}
    assert len(by_ids) == len(stored)
    seen = 0
    for pack, inputs in rows.batch(rows.order(0, 0), tokens):
        assert torch.equal(inputs.sampled_ids, pack.sampled_ids)
        start = 0
        for number, response in enumerate(responses(pack)):
            length = len(response)
            assert inputs.lengths[number] == length
            row = next(r for (_, ids), r in by_ids.items() if ids == response and matches(r, inputs, start))
            mine = {name: values[start : start + length].tolist() for name, values in inputs.facts.items()}
            assert mine["sampling_logprobs"] == pytest.approx(row["drawn"])
            assert mine["behaviour_logprobs"] == pytest.approx(row["behaviour_logprobs"])
            assert mine["segments"] == row["steps"]
            assert mine["special"] == [float(id_ in SPECIAL) for id_ in response]
            for name, value in row["row"].items():
                assert mine[name] == pytest.approx([value] * length, nan_ok=True, rel=1e-5), name
            if row["row"]["has=hinted"] == 0:
                target = inputs.targets["hinted"]
                assert (target.ids[start : start + length] == -1).all()
                assert not target.outcomes.tail[start : start + length].any()
            start, seen = start + length, seen + 1
    assert seen == len(stored)


def matches(row, inputs, start: int) -> bool:
    """Short responses may be alike: the log-probability of the first token tells them apart."""
    return inputs.facts["sampling_logprobs"][start].item() == pytest.approx(row["drawn"][0])


def test_a_term_divides_by_the_tokens_of_its_own_source(made):
    sources, stored = made
    recipe = load_recipe(OBJECTIVE)
    rows = Rows(sources, recipe, SPECIAL)
    packs = tiny_shards.loader(rows, 1, len(stored), 60).step(0)
    assert len(packs) > 1
    for place, term in enumerate(recipe.terms):
        factors = torch.cat([inputs.factors[place] for _, inputs in packs])
        source = torch.cat([inputs.facts[f"source={term.source}"] for _, inputs in packs])
        assert not factors[source == 0].any()
        if not term.weights:
            assert factors.sum().item() == pytest.approx(1, abs=1e-6)
            assert len(set(factors[source == 1].tolist())) == 1


def test_what_a_recipe_reads_enters_the_content_and_nothing_else(made, tmp_path):
    sources, _ = made
    shard = sources[0]
    plain, reading = load_recipe("lightning"), load_recipe(OBJECTIVE)
    alone = Bucket(shard.rollouts, scores={"teacher": shard.scores["teacher"]})
    assert hash_shard(alone, plain) == hash_shard(alone)
    assert set(hash_shard(shard, reading)) == {"rollouts", "views", "grades", "prompts"}
    assert hash_shard(shard, reading)["rollouts"] != hash_shard(shard)["rollouts"]


HOW = Training(steps=1, batch=4, learning_rate=1.0)
SCORE = {"tail": "exact", "entropies": True, "support": {"top_k": 4, "mass": None, "min_k": 1}, "rows": {"asked": []}}


def with_identity(made, tmp_path, scores=SCORE, sampling=None, samples=3):
    """The first shard, its footers changed."""
    shard = made[0][0]
    changed = tmp_path / "rollouts.parquet"
    identity = {"sampling": Sampling(max_tokens=16, **(sampling or {})).model_dump(), "rows": {"samples": samples}}
    with Writer(changed, ROLLOUTS, identity, {}) as writer:
        writer.write(read_shard(shard.rollouts, ROLLOUTS))
    view = tmp_path / "teacher.parquet"
    with Writer(view, SCORES, scores, {}) as writer:
        writer.write(read_shard(shard.scores["teacher"], SCORES))
    return [Bucket(changed, scores={"teacher": view}, grades=shard.grades, prompts=shard.prompts)]


def support(**more):
    return SCORE | {"support": SCORE["support"] | more}


@pytest.mark.parametrize(
    ("recipe", "change", "told"),
    [
        ("topk_reverse_kl", {"scores": SCORE | {"tail": "derived"}}, "derived tails.*score.hidden_states: true"),
        ("eopd", {"scores": SCORE | {"entropies": False}}, "no entropies.*score.entropies: true.*dvc repro score"),
        ("revisiting", {"scores": support(mass=0.99)}, "cut to a mass of 0.99.*support.mass: null"),
        ("revisiting", {"scores": support(top_k=1)}, "probability is 1 whatever.*support.top_k: 2"),
        ("revisiting", {"scores": support(top_k=None)}, "keeps no ids of its own"),
        ("iw_opd", {"sampling": {"top_p": 0.9}}, "rows without sampling_logprobs.*dvc repro refresh"),
        ("dgrpo", {"samples": 1}, "has one response to each prompt.*refresh.samples: 4"),
    ],
)
def test_shards_that_lack_what_a_recipe_reads_are_refused(made, tmp_path, recipe, change, told):
    check_requirements(load_recipe(recipe), with_identity(made, tmp_path), HOW)
    with pytest.raises(ShardError, match=told) as refused:
        check_requirements(load_recipe(recipe), with_identity(made, tmp_path, **change), HOW)
    assert f"train.objective `{recipe}`" in str(refused.value)


@pytest.mark.parametrize(("far", "is_told"), [(40.0, True), (5.5, False)])
def test_a_few_far_tokens_that_lead_the_gradient_are_told_before_training(made, tmp_path, caplog, far, is_told):
    """Every token a nat from the view, and the first of each row `far` nats."""
    (shard,) = with_identity(made, tmp_path)
    of_view = [row["sampled_logprobs"] for row in read_shard(shard.scores["teacher"], SCORES).to_pylist()]
    written = [[row[0] - far, *(value - 1 for value in row[1:])] for row in of_view]
    identity = read_about(shard.rollouts)["identity"]
    rewritten(shard.rollouts, ROLLOUTS, identity, behaviour_logprobs=written)
    near = sum(len(row) - 1 for row in of_view)
    share = far**2 * len(of_view) / (far**2 * len(of_view) + near)
    assert (share > 0.9) == is_told
    check_requirements(load_recipe("lightning"), [shard], HOW)
    check_requirements(load_recipe("lightning_ratio"), [shard], HOW)
    told = [f"{share:.0%} of the squared log-ratios are of tokens over 5 nats apart"] if is_told else []
    assert [record.message.split(":")[0] for record in caplog.records] == told


def test_a_view_that_keeps_fewer_ids_than_a_recipe_takes_is_told_of(made, tmp_path, caplog):
    check_requirements(load_recipe("eopd"), with_identity(made, tmp_path), HOW)
    assert "`eopd` takes the 16 likeliest ids of view `teacher`, which keeps 4" in caplog.text
    caplog.clear()
    check_requirements(load_recipe("eopd"), with_identity(made, tmp_path, support(top_k=16)), HOW)
    assert not caplog.records


def test_log_probabilities_that_are_not_finite_are_refused_with_what_removes_them(made, tmp_path):
    rollouts = tmp_path / "rollouts.parquet"
    shutil.copy(made[0][0].rollouts, rollouts)
    lengths = [len(row["response_ids"]) for row in read_shard(rollouts, ROLLOUTS).to_pylist()]
    infinite = [[-math.inf] * length for length in lengths]
    rewritten(rollouts, ROLLOUTS, {}, behaviour_logprobs=infinite, sampling_logprobs=[None] * len(lengths))
    table = read_shard(rollouts, ROLLOUTS)
    facts = Facts(load_recipe("iw_opd"), np.empty(0, np.int64))
    with pytest.raises(ShardError, match=r"not finite.*`find \. -samefile .*/rollouts\.parquet -delete`"):
        facts.read_group(table, from_lists(table.column("response_ids")), rollouts)


def test_domains_without_a_view_are_refused(made):
    shard = made[0][0]
    with pytest.raises(
        ShardError, match=r"prompts of sums, words, for which train\.objective `mopd` routes to no view"
    ):
        check_requirements(load_recipe("mopd"), [Bucket(shard.rollouts, prompts=shard.prompts)], HOW)


def of_one_domain(shard, domain, tmp_path):
    """A copy of the shard, whose view `teacher_b` has scored the rows of this domain alone."""
    known = read_shard(shard.prompts, PROMPTS, ["prompt_id", "domain"]).to_pylist()
    by_prompt = {row["prompt_id"]: row["domain"] for row in known}
    rows = read_shard(shard.rollouts, ROLLOUTS, ["rollout_id", "prompt_id"]).to_pylist()
    table = read_shard(shard.scores["teacher_b"], SCORES)
    skipped = make_skipped_table([row["rollout_id"] for row in rows], ["other domain"] * len(rows))
    is_of = [by_prompt[row["prompt_id"]] == domain for row in rows]
    path = tmp_path / "teacher_b.parquet"
    with Writer(path, SCORES, read_about(shard.scores["teacher_b"])["identity"], {}) as writer:
        writer.write(pa.concat_tables((table if is_of[row] else skipped).slice(row, 1) for row in range(len(rows))))
    return replace(shard, scores={"teacher": shard.scores["teacher"], "teacher_b": path}), is_of


def test_a_view_need_score_only_the_domain_that_is_routed_to_it(made, tmp_path):
    recipe = load_recipe({"terms": [{**SAMPLED, "view": None, "target": ROUTE}]})
    whole = replace(made[0][0], scores={view: made[0][0].scores[view] for view in ("teacher", "teacher_b")})
    limited, is_of = of_one_domain(whole, "words", tmp_path)
    assert 0 < sum(is_of) < len(is_of)
    check_requirements(recipe, [limited], HOW)
    sampled = []
    for shard in (whole, limited):
        rows, objective = Rows([shard], recipe), Objective(recipe)
        ((_, inputs),) = objective.weigh(rows.batch(rows.sequential(), 10_000), 0)
        target = find_target(recipe.terms[0], inputs)
        assert target is not None
        sampled.append(target.sampled)
    assert torch.equal(*sampled)


def test_a_gate_is_known_where_the_view_may_lack_no_row(made):
    """Another term looks at every row of the view."""
    plain = {**SAMPLED, "view": "teacher"}
    gated = plain | {"weights": [{"kind": "has_view", "view": "teacher"}]}
    shard = replace(made[0][0], scores={"teacher": made[0][0].scores["teacher"]})
    rows = Rows([shard], load_recipe({"terms": [plain, gated]}))
    ((_, inputs),) = rows.batch(rows.sequential(), 10_000)
    assert bool((inputs.facts["has=teacher"] == 1).all())


def test_a_row_without_a_score_by_the_view_of_its_own_domain_is_refused(made, tmp_path):
    recipe = load_recipe({"terms": [{**SAMPLED, "view": None, "target": ROUTE}]})
    limited, _ = of_one_domain(made[0][0], "sums", tmp_path)
    told = (
        r"teacher_b\.parquet has rows of domain `words` without a score \(other domain\).*teacher_b\.domains: \[words\]"
    )
    with pytest.raises(ShardError, match=told):
        check_requirements(recipe, [limited], HOW)


def test_a_stored_advantage_bears_one_pass_unless_its_ratio_is_clipped(made, tmp_path):
    shards_ = with_identity(made, tmp_path)
    more = HOW.model_copy(update={"steps": 4})
    plain = {**SAMPLED, "advantage": "stored", "ratio": {"kind": "importance"}, "fixed_point": "none: a linear reward"}
    check_requirements(load_recipe({"terms": [plain]}), shards_, HOW)
    with pytest.raises(SettingsError, match="16 sequences, more than one pass over 9 rollouts"):
        check_requirements(load_recipe({"terms": [plain]}), shards_, more)
    clipped = plain | {"ratio": {"kind": "proximal", "low": 0.2, "high": 0.2}}
    check_requirements(load_recipe({"terms": [clipped]}), shards_, more)
