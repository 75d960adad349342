"""The league on bigram models: what it trains without a teacher, what it finds again, and what its table says."""

import math
import re
import xml.dom.minidom
from pathlib import Path

import pytest

from benchmarks import league, league_plot, runs
from benchmarks.runs import Run
from pipeline.settings.recipe import list_recipes, load_recipe
from tests import dag

TO_SCORES = ["models", "prompts", "teacher_rollouts", "sft", "refresh@r1", "score@r1", "score_teacher@r1"]


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project up to its scores, whose teacher is gone."""
    project = dag.new_project(tmp_path / "project", rounds={"r1": {"prev": "r0"}})
    monkeypatch.chdir(project)
    dag.run(project, TO_SCORES)
    (project / "models/teacher").rename(tmp_path / "teacher")
    return project


def wanted(name: str, seed: int = 0, **changes: object) -> Run:
    return Run(name, name, seed, changes)


def test_recipes_are_trained_without_a_teacher_and_found_again(scored):
    with dag.counting("league") as made:
        first, other, control = (runs.outcome(wanted(*run)) for run in (("gkd", 0), ("gkd", 1), ("sft", 0)))
    assert made["league"] == 3
    assert first["validation_kl"] != other["validation_kl"]
    assert first["start_kl"] == other["start_kl"] > first["validation_kl"]
    assert (control["validation_kl"], control["start_kl"]) == (None, None)
    assert first["checkpoint"] == first["name"] == "gkd"
    with dag.counting("league") as again:
        assert runs.outcome(wanted("gkd")) == first
    assert not again
    assert runs.outcome(wanted("gkd", steps=1))["validation_kl"] != first["validation_kl"]


def test_what_cannot_be_trained_says_why_and_stops_no_other(scored, monkeypatch):
    facts = runs.outcome(wanted("mopd"))
    assert set(facts) == {"name", "seed", "refused"}
    assert "needs the view `teacher_b`" in facts["refused"]
    cut = {"estimator": "analytic", "divergence": "reverse_kl", "support": "view", "tail": "truncate"}
    assert "`truncate` is refused" in runs.outcome(Run("cut", {"terms": [cut]}, 0, {}))["refused"]
    monkeypatch.setattr("stages.train.run", lambda *_: 1 / 0)
    assert runs.outcome(wanted("gkd", 2))["failed"] == "ZeroDivisionError: division by zero"


def facts(name: str, seed: int, share: float) -> runs.Facts:
    of_all = {"avg_at_k": share, "greedy": share, "pass_at_k": share, "validation_kl": 0.1, "mean_length": 20.0}
    return {"name": name, "seed": seed, "train_seconds": 9.0, **of_all}


def test_the_table_is_ranked_and_names_what_is_not_in_it():
    done = [facts(name, seed, share + seed / 100) for name, share in (("gkd", 0.5), ("vopd", 0.7)) for seed in (0, 1)]
    refused = [{"name": "mopd", "seed": seed, "refused": "no\nview"} for seed in (0, 1)]
    failed = [facts("tip", 0, 0.9), {"name": "tip", "seed": 1, "failed": "ValueError: x"}]
    lines = league.report([facts("r0", 0, 0.4) | {"train_seconds": None}], [*done, *refused, *failed]).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| *r0*", "| `vopd`", "| `gkd`"]
    assert lines[2].startswith("| *r0* | 40.0 | 40.0 |")
    assert lines[2].endswith("| – |")
    assert lines[3].startswith("| `vopd` | 70.5 ± 6.4 | 70.5 ± 6.4 |")
    assert lines[-3:] == [
        "Means over 2 seeds with 95 % intervals.", "- `mopd` refused: no view", "- `tip` failed: ValueError: x"
    ]  # fmt: skip


def test_the_picture_has_a_dot_where_the_table_has_a_number():
    """Placed by the mean, in the order of the table; an interval is cut at what a share can be."""
    done = [facts(name, seed, share) for name, share in (("gkd", 0.5), ("a<b", 0.75)) for seed in (0, 1)]
    failed = {"name": "tip", "seed": 0, "failed": "ValueError: x"}
    drawn = league_plot.svg([facts("r0", 0, 0.25)], [*done, failed, facts("kat", 0, 0.99), facts("kat", 1, 0.01)])
    assert re.findall(r'text-anchor="end">([^<]*)<', drawn) == ["a&lt;b", "gkd", "kat"]
    centres = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawn)]
    expected = [league_plot.LEFT + league_plot.WIDTH * share for share in (0.75, 0.75, 0.5, 0.5, 0.5, 0.5)]
    assert centres == pytest.approx(expected)
    ends = [float(x) for x in re.findall(r'x[12]="([\d.]+)"', drawn)]
    assert min(ends) == league_plot.LEFT
    assert max(ends) == league_plot.LEFT + league_plot.WIDTH
    xml.dom.minidom.parseString(drawn)


def test_the_page_has_the_picture_and_the_whole_table():
    done = [facts(name, seed, 0.5) for name in ("gkd", "vopd") for seed in (0, 1)]
    start, refused = [facts("r0", 0, 0.25)], {"name": "mopd", "seed": 0, "refused": "no <view>"}
    drawn = league_plot.page(start, [*done, refused])
    assert league_plot.svg(start, done) in drawn
    assert [*re.findall(r"<tr><t.>([^<]*)<", drawn)] == ["recipe", "r0", "gkd", "vopd"]
    assert all(f"<th>{name}</th>" in drawn for name, *_ in league.COLUMNS)
    assert "mopd` refused: no &lt;view&gt;" in drawn


def test_an_interval_is_students():
    middle, half = runs.mean([1.0, 2.0, 3.0]) or (0.0, 0.0)
    assert (middle, half) == (2.0, pytest.approx(4.30 / math.sqrt(3)))
    assert runs.mean([None, 2.0]) == (2.0, pytest.approx(math.nan, nan_ok=True))
    assert runs.mean([None]) is None


def test_the_preset_has_every_view_that_a_recipe_needs():
    views = runs.read_settings(league.PRESET)["score"]["views"]
    for name in list_recipes():
        recipe = load_recipe(name)
        assert set(recipe.views) <= set(views), name
        assert all(views[view].get("teacher_rollouts") for view in recipe.teacher_views), name
