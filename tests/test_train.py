"""The stage `train` on bigram models: what it reads of the held-out shard, and whose scores it learns from."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConsistencyError
from pipeline.storage.scores import SCORES
from pipeline.storage.shards import read_shard
from tests import dag

TO_SCORES = ["models", "prompts", "teacher_rollouts", "sft", "refresh@r1", "score@r1", "score_teacher@r1"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that has run nothing."""
    made = dag.new_project(tmp_path / "project")
    monkeypatch.chdir(made)
    return made


def gated(view: str) -> dict[str, Any]:
    """An objective that leaves out the rows that a view has no score of."""
    term = {"estimator": "analytic", "divergence": "reverse_kl", "view": view, "support": "view"}
    return {"terms": [term | {"weights": [{"kind": "has_view", "view": view}]}]}


def away_from(reference: str) -> dict[str, Any]:
    """An objective that extrapolates from a reference past the teacher."""
    target = {"kind": "extrapolate", "view": "teacher", "reference": reference, "factor": 1.5}
    term = {"estimator": "policy_gradient", "divergence": "reverse_kl", "view": None, "support": "sampled"}
    return {"terms": [term | {"target": target, "fixed_point": "stated(past the teacher)"}]}


def test_a_held_out_row_may_lack_the_views_that_validation_does_not_read(project):
    rows = dag.read_prompts(project, "opd")
    dag.write_prompts(project, "opd", [row | {"hint": None} if n % 2 else row for n, row in enumerate(rows)])
    dag.change(project, train__objective=gated("hinted"))
    made = dag.run(project, [*TO_SCORES, "train@r1"])
    held_out = read_shard(Path("data/scores/r1/views/hinted/00000.parquet"), SCORES, ["skipped"])
    assert 0 < held_out.column("skipped").null_count < held_out.num_rows
    assert made["train@r1"] == {"train@r1": 1}
    assert Path("data/models/r1/validation.csv").exists()


def test_a_reference_may_be_a_model_that_is_neither_teacher_nor_student(project):
    """In round 2 the student is r1."""
    reference = {"model": "data/models/r0", "target": False, "support": {"top_k": 4}}
    dag.change(project, score__views__reference=reference, train__objective=away_from("reference"))
    assert dag.run(project)["train@r2"] == {"train@r2": 1}


def test_a_view_that_is_learned_from_is_by_the_teacher(project):
    """Also where `score` took it for a reference."""
    reference = {"model": "data/models/r0", "target": False, "support": {"top_k": 4}}
    learned = {"estimator": "analytic", "divergence": "reverse_kl", "view": "reference", "support": "view"}
    dag.change(project, score__views__reference=reference, train__objective={"terms": [learned]})
    with pytest.raises(ConsistencyError, match="its scores are by data/models/r0"):
        dag.run(project)
    assert Path("data/models/r1").exists()
