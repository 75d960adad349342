"""The report against the data folder that it is made from: what it says, what it escapes, what it says is missing."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import plotly.graph_objects as go
import pytest

from pipeline.errors import PotstillError
from pipeline.models.seal import write_sealed
from pipeline.report import page as page_module
from pipeline.report import plots
from pipeline.report.page import PageData, gather_page, list_alarms, render_page, write_tip, write_verdict
from pipeline.report.sql import Database
from pipeline.report.transcript import choose_telling
from pipeline.settings import params
from pipeline.storage.whole import read_json, write_json
from stages import report as stage
from tests import example_data

ROUNDS = ["r1", "r2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = example_data.make(tmp_path_factory.mktemp("project"))
    example_data.tokenizer(made)
    return made


@pytest.fixture(scope="module")
def facts(data: Path) -> PageData:
    return gather_page(data, ROUNDS, 5)


@pytest.fixture(scope="module")
def page(facts: PageData) -> str:
    """The page without plotly's own source."""
    return _without_library(render_page(facts, "A <run> of mine"))


def _without_library(page: str) -> str:
    library = page_module.get_plotlyjs()
    assert page.count(library) == 1
    return page.replace(library, "")


def _figures(page: str) -> dict[str, str]:
    return dict(re.findall(r'<script type="application/json" data-chart="chart-(\w+)">(.*?)</script>', page, re.DOTALL))


def _lines(figure: go.Figure | None) -> dict[str, dict]:
    assert figure is not None
    return {line["name"]: line for line in figure.to_dict()["data"]}


def test_what_a_model_wrote_is_text(page: str):
    """A hostile response (<script>alert), a title and the tips with the tokens in them."""
    assert "A &lt;run&gt; of mine" in page
    assert "A <run>" not in page
    assert page.count("&lt;") > 4
    tags = {tag.split()[0] for tag in re.findall(r"<([a-z][^>]*)>", page)}
    assert "eos" not in tags
    hostile = re.findall(r'data-tip="([^"]*)">([^<]*)</span>', page)
    assert any(shown == "&lt;" and tip.startswith("“&lt;”") for tip, shown in hostile)
    assert page.count("<script") == 2 + page.count("<script type=")


def test_a_name_cannot_end_the_script_that_holds_a_figure(facts: PageData):
    history = {"step": [1.0, 2.0], "loss": [1.0, 0.5]}
    hostile = dataclasses.replace(facts, histories={"</script><img>": history})
    page = _without_library(render_page(hostile, "t"))
    assert "</script><img>" not in page
    assert "/script><img>" in "".join(_figures(page).values()).encode().decode("unicode_escape")


def test_the_page_asks_nothing_of_the_network(page: str):
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)\s*=|url\(|@import|fetch\(|https?:", page.replace("default-src", ""))


def test_equal_data_gives_an_equal_page(data: Path, facts: PageData):
    again = gather_page(data, ROUNDS, 5)
    assert render_page(again, "t") == render_page(facts, "t")


def test_every_figure_is_there(page: str):
    figures = _figures(page)
    assert list(figures) == ["accuracy", "loss", "kl", "mass", "validation", "sft", "drift", "costs"]
    assert all(json.loads(text)["data"] for text in figures.values())
    assert 'class="missing"' not in page


def test_an_empty_folder_gives_sentences(tmp_path: Path):
    page = _without_library(render_page(gather_page(tmp_path, ROUNDS, 5), "t"))
    assert "There is no verdict yet" in page
    assert page.count('class="missing"') == 9
    assert "<script type=" not in page
    assert "Not there yet: r1, r2." in page


def test_a_run_without_rounds_gives_a_page(data: Path):
    page = render_page(gather_page(data, [], 5), "t")
    assert "There is no verdict yet" in page
    assert "No round has rollouts" in page


def test_what_one_round_lacks_is_said(data: Path, tmp_path: Path):
    copy = shutil.copytree(data, tmp_path / "data")
    (copy / "metrics/r2.json").unlink()
    (copy / "models/r1/history.csv").unlink()
    (copy / "models/r2/validation.csv").unlink()
    page = render_page(gather_page(copy, ROUNDS, 5), "t")
    assert "From r0 to r1, the student" in page
    assert "Not there yet: r2." in page
    assert "Not there yet: r1." in page


def test_a_removed_round_is_not_shown(data: Path):
    facts = gather_page(data, ["r1"], 5)
    assert set(facts.metrics) == {"teacher", "r0", "r1"}
    assert set(facts.histories) == {"r0", "r1"}
    assert set(facts.drifts) == {"r1"}
    assert {timing.round for timing in facts.timings} == {"", "r1"}
    assert {rollout.round for rollout in facts.rollouts} == {"r1"}


def test_the_verdict_says_what_the_metrics_say(facts: PageData):
    told = write_verdict(facts)
    assert "avg@4 accuracy rose from 48.0 % to 79.0 % (+27.9 to +34.0 points)" in told
    assert "greedy accuracy rose from 71.0 % to 86.0 % (+11.6 to +18.3 points)" in told
    assert "in 2 rounds" in told
    assert "The teacher has 95.0 % avg@4 and 97.0 % greedy." in told


@pytest.mark.parametrize(("after", "verb"), [(0.55, "rose"), (0.5, "did not change measurably"), (0.4, "fell")])
def test_a_change_whose_interval_holds_zero_is_none(facts: PageData, after: float, verb: str):
    metrics = facts.metrics | {"r2": facts.metrics["r2"] | {"avg_at_k": after}}
    assert f"avg@4 accuracy {verb}" in write_verdict(dataclasses.replace(facts, metrics=metrics))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_was_and_is_the_same_to_the_last_prompt_did_not_change(facts: PageData, share: float):
    same = {"greedy": share, "greedy_se": 0.0, "avg_at_k": share, "avg_at_k_se": 0.0}
    metrics = {name: each | same for name, each in facts.metrics.items()}
    told = write_verdict(dataclasses.replace(facts, metrics=metrics))
    assert told.count("did not change measurably") == 2


def test_a_run_without_a_sign_of_a_collapse_says_so(facts: PageData, page: str):
    assert list_alarms(facts) == []
    assert "No alarm: no sign of a known collapse" in page
    assert 'class="alarms"' not in page


def test_every_alarm_is_on_the_page_with_its_checkpoint(data: Path, tmp_path: Path):
    """One of the training log, one of validation, one of the responses."""
    copy = shutil.copytree(data, tmp_path / "data")
    logged = {"alarms": [{"step": 12, "name": "mass", "text": "probability <leaves> them."}]}
    write_sealed(copy / "models/r1", logged)
    (copy / "models/r2/validation.csv").write_text("step,validation_kl,validation_mass\n0,0.1,0.9\n9,0.3,0.9\n")
    metrics = read_json(copy / "metrics/r2.json")
    write_json(copy / "metrics/r2.json", metrics | {"truncated": 0.4})
    found = gather_page(copy, ROUNDS, 0)
    assert list_alarms(found) == [
        ("r1", "step 12: probability <leaves> them."),
        ("r2", "validation KL rose from 0.1000 to 0.3000 nats per token (alarm above a tenth)."),
        ("r2", "40% of the responses are cut off, 0% before (alarm above 10 points more)."),
    ]
    page = render_page(found, "t")
    assert "<li><strong>r1</strong> step 12: probability &lt;leaves&gt; them.</li>" in page
    assert page.count("<li><strong>") == 3
    assert "No alarm" not in page


def test_timings_stand_in_the_order_of_the_pipeline(facts: PageData):
    names = [timing.name for timing in facts.timings]
    assert names == [
        "models", "teacher_rollouts", "sft", "refresh r1", "score r1", "train r1", "refresh r2", "score r2", "train r2",
    ]  # fmt: skip


def test_rollouts_are_mostly_wrong_ones_of_different_prompts(data: Path, facts: PageData):
    assert [rollout.correct for rollout in facts.rollouts] == [False, False, False, True, True]
    assert len({rollout.prompt_id for rollout in facts.rollouts}) == 5
    with Database(data) as database:
        means = database.ask(
            "select rollout_id, avg(abs(behaviour_logprob - sampled_logprob)) as mean from all_tokens "
            "join all_grades using (rollout_id, round) where round = 'r2' and not correct group by all order by mean"
        )
    assert [rollout.rollout_id for rollout in facts.rollouts[:3]] == [row["rollout_id"] for row in means[:-4:-1]]


def test_right_rollouts_fill_up_where_wrong_ones_are_too_few(data: Path):
    with Database(data) as database:
        every = len(choose_telling(database, "r2", 100))
        assert every == example_data.BUCKETS * example_data.PROMPTS_EACH
        assert choose_telling(database, "r0", 5) == []
        assert choose_telling(database, "r2", 0) == []


def test_a_token_shows_both_models_and_the_likeliest_alternatives(data: Path, facts: PageData):
    rollout = facts.rollouts[0]
    with Database(data) as database:
        rows = database.ask(
            "select * from all_tokens where rollout_id = ? and round = 'r2' order by pos", [rollout.rollout_id]
        )
        first = database.ask(
            "select id, exp(logprob) as chance from all_support where rollout_id = ? and round = 'r2' and own "
            "and view = 'teacher' and pos = 0 order by rank",
            [rollout.rollout_id],
        )
    assert [(token.student, token.teacher) for token in rollout.tokens] == [
        (row["behaviour_logprob"], row["sampled_logprob"]) for row in rows
    ]
    assert "".join(token.text for token in rollout.tokens).endswith("<eos>")
    assert [text for text, _ in rollout.tokens[0].alternatives] == [example_data.LETTERS[row["id"]] for row in first]
    assert [chance for _, chance in rollout.tokens[0].alternatives] == pytest.approx([row["chance"] for row in first])
    assert f"{rollout.tokens[0].disagreement:+.2f} nats" in write_tip(rollout.tokens[0])


def test_without_a_tokenizer_tokens_are_ids(data: Path, tmp_path: Path):
    copy = shutil.copytree(data, tmp_path / "data")
    (copy / "models/student.json").unlink()
    facts = gather_page(copy, ROUNDS, 5)
    assert facts.rollouts[0].tokens[-1].text == f"{example_data.EOS} "
    assert "Tokens are shown as ids" in render_page(facts, "t")


def test_a_long_rollout_is_cut_and_says_so(data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(page_module, "TOKENS_SHOWN", 3)
    facts = gather_page(data, ROUNDS, 5)
    assert {len(rollout.tokens) for rollout in facts.rollouts} == {3}
    assert f"The first 3 of {facts.rollouts[0].length} tokens." in render_page(facts, "t")


def test_a_damaged_file_is_named(data: Path, tmp_path: Path):
    for name, text, told in (
        ("metrics/r1.json", "{", r"is cut off or damaged \(no JSON"),
        ("models/r1/history.csv", "step,loss\n1,two\n", r"is damaged \(no table of numbers"),
        ("models/r1/history.csv", "step,loss\n1\n", r"is damaged \(no table of numbers"),
    ):
        copy = shutil.copytree(data, tmp_path / "data", dirs_exist_ok=True)
        (copy / name).write_text(text)
        with pytest.raises(PotstillError, match=rf"{name} {told}"):
            gather_page(copy, ROUNDS, 5)
        shutil.rmtree(copy)


def test_the_stage_shows_the_rounds_and_rollouts_of_its_settings(data: Path, tmp_path: Path):
    settings = params.Params.model_construct(
        rounds={"r1": params.Round(prev="r0")}, report=params.Report(rollouts=2, title="Two & two")
    )
    made = stage.run(settings, data=data, out=tmp_path / "new" / "index.html")
    page = (tmp_path / "new" / "index.html").read_text()
    assert made.bytes == len(page.encode())
    assert "<title>Two &amp; two</title>" in page
    assert "Of r1: 2 wrong" in page


def test_accuracy_is_in_percent_with_its_error_and_the_teacher_across(facts: PageData):
    lines = _lines(plots.plot_accuracy(facts.metrics))
    assert lines["avg@4"]["y"] == pytest.approx((48.0, 74.0, 79.0))
    assert lines["avg@4"]["error_y"]["array"] == pytest.approx((1.1, 1.1, 1.1))
    assert lines["teacher, greedy"]["y"] == pytest.approx((97.0, 97.0, 97.0))
    assert "error_y" not in lines["pass@4"]


def test_drift_shows_each_measured_shard_between_its_bound_and_floor(facts: PageData):
    lines = _lines(plots.plot_drift(facts.drifts))
    assert lines["shard kept"]["y"] == pytest.approx((0.004,))
    assert lines["shard written anew"]["y"] == pytest.approx((0.015, 0.026))
    assert all(0.5 < across < 1.5 for across in lines["shard written anew"]["x"])
    assert list(lines["bound"]["y"]) == [0.01, 0.01, None] * 2
    assert list(lines["floor"]["y"]) == [0.0011, 0.0011, None] * 2


def test_a_line_of_many_steps_keeps_its_mean():
    steps = list(range(1, 1001))
    thin_steps, thin = plots.thin_to_means(steps, [float(step) for step in steps])
    assert len(thin) <= plots.POINTS
    assert thin == thin_steps
    assert thin[0] == 5.0, "the mean of steps 1 to 9"
    assert plots.thin_to_means([1, 2, 3], [3.0, 1.0, 2.0]) == ([1, 2, 3], [3.0, 1.0, 2.0])


def test_steps_without_a_value_are_left_out():
    figure = plots.plot_by_step(
        {"r1": {"step": [1, 2, 3], "kl": [0.3, None, 0.1]}, "r2": {"step": [1], "kl": [None]}}, "kl", ""
    )
    lines = _lines(figure)
    assert list(lines) == ["r1"]
    assert list(lines["r1"]["x"]) == [1, 3]
    assert plots.plot_by_step({"r1": {"step": [1], "loss": [0.3]}}, "kl", "") is None
