"""What benchmarks find again: a clone against the commit it was made of, stages beside the DAG against the store."""

import json
import subprocess
from pathlib import Path

from benchmarks import demo, runs
from tests import dag


def test_a_clone_follows_the_commit_and_keeps_what_was_made_in_it(tmp_path, monkeypatch):
    repository, project = tmp_path / "repository", tmp_path / "project"
    repository.mkdir()
    monkeypatch.chdir(repository)
    subprocess.run(["git", "init", "--quiet"], check=True)
    for text in ("first", "second"):
        Path("code").write_text(text)
        subprocess.run(["git", "add", "code"], check=True)
        author = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *author, "commit", "--quiet", "--message", text], check=True)
        runs.clone(project)
        assert (project / "code").read_text() == text
        (project / "code").write_text("edited in the clone")
        (project / "made").touch()
    assert (project / "made").exists()


def test_a_comparison_beside_the_dag_is_found_in_the_store_and_its_metrics_are_written_anew(tmp_path, monkeypatch):
    project = dag.new_project(tmp_path / "project")
    monkeypatch.chdir(project)
    monkeypatch.setattr(
        demo, "_stage", lambda _, name, *rest: dag.Stage(name, ("python", "-m", f"stages.{name}", *rest), (), ()).run()
    )
    dag.run(project, ["models", "prompts", "teacher_rollouts", "sft"])
    metrics, made = project / "beside/control/metrics.json", []
    for _ in range(2):
        with dag.counting("beside") as counted:
            demo.fine_tune(project, "control", "data/models/r0", "data/prompts/opd", "params.yaml")
        made.append(counted)
        assert json.loads(metrics.read_text())["checkpoint"] == "control"
        metrics.write_text("{}")
    assert made[0]["beside"] > 0
    assert not made[1]
