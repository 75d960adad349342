"""What progress writes into a log file, on a clock of the tests' own, and what it leaves to a terminal.

Speeds and times left are compared with those of the work that the test itself does on that clock.
"""

import sys

import pytest

from pipeline.engines import open as engines_open
from pipeline.engines.fake import BigramEngine
from pipeline.engines.open import OnDemand
from pipeline.models.open import open_student
from pipeline.models.record import record_model
from pipeline.progress import Bar, Meter
from pipeline.settings.machine import Machine
from pipeline.settings.models import EngineSettings, Training
from pipeline.settings.recipe import load_recipe
from pipeline.training import callbacks
from pipeline.training.fit import fit_student
from pipeline.training.rows import Rows
from pipeline.training.run import Run
from tests import tiny_models, tiny_shards


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def _work(clock: Clock, bar: Bar, responses: int, seconds_each: float) -> None:
    for _ in range(responses):
        clock.now += seconds_each
        bar(1, 30)


@pytest.mark.parametrize(
    ("seconds_each", "lines"),
    [
        (0.001, 1),  # 4 s in all: the last line alone
        (0.01, 4),  # 40 s: ten seconds apart, and the last
        (0.1, 10),  # 400 s: ten per cent apart
        (1.0, 67),  # 4,000 s: a minute apart, and the last
    ],
)
def test_a_log_file_gets_a_line_for_ten_per_cent_ten_seconds_to_a_minute_apart(
    clock: Clock, capsys: pytest.CaptureFixture[str], seconds_each: float, lines: int
):
    with Bar(4000, "refresh") as bar:
        bar.start()
        _work(clock, bar, 4000, seconds_each)
    out, told = capsys.readouterr()
    assert out == ""
    assert "\r" not in told
    assert len(told.splitlines()) == lines
    assert all(line.startswith("refresh: ") and " of 4,000 responses (" in line for line in told.splitlines())
    speed = f"{30 / seconds_each:,.0f} tokens/s"
    assert told.splitlines()[-1].startswith(f"refresh: 4,000 of 4,000 responses (100%), {speed}, took ")


def test_a_line_says_what_is_left(clock: Clock, capsys: pytest.CaptureFixture[str]):
    with Bar(100, "score teacher") as bar:
        bar.start()
        _work(clock, bar, 10, 3.0)
        assert capsys.readouterr().err == "score teacher: 10 of 100 responses (10%), 10 tokens/s, 04:30 left\n"


def test_work_that_was_done_before_says_nothing_of_the_speed(clock: Clock, capsys: pytest.CaptureFixture[str]):
    meter = Meter(1000, "train", "step")
    meter.start(done=900)
    clock.now += 70.0
    meter.advance(70)
    assert capsys.readouterr().err == "train: 970 of 1,000 steps (97%), 00:30 left\n"


def test_nothing_to_do_is_told_by_no_line(clock: Clock, capsys: pytest.CaptureFixture[str]):
    with Bar(0, "refresh") as bar:
        bar.start()
    with Bar(10, "refresh") as bar:
        bar.start()
        clock.now += 1e6
    assert capsys.readouterr().err == ""


def test_what_was_stopped_says_how_far_it_came(clock: Clock, capsys: pytest.CaptureFixture[str]):
    def stopped() -> None:
        with Bar(100, "refresh") as bar:
            bar.start()
            _work(clock, bar, 3, 2.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert capsys.readouterr().err == "refresh: 3 of 100 responses (3%), 15 tokens/s, 03:14 left\n"


def test_a_terminal_gets_a_bar(clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Bar(4, "refresh") as bar:
        assert capsys.readouterr().err == ""
        bar.start()
        _work(clock, bar, 4, 1.0)
    told = capsys.readouterr().err
    assert "\r" in told
    assert "4/4" in told
    assert "30 tokens/s" in told


def test_opening_a_model_is_told_before_and_does_not_count(
    clock: Clock,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path,
):
    def open_slowly(model, settings, *_):
        assert caplog.messages == [f"opening {model.name} with `fake`"]
        assert capsys.readouterr().err == "", "a bar began before the model was open"
        clock.now += 300.0
        return BigramEngine(model, settings)

    caplog.set_level("INFO", "engine")
    monkeypatch.setattr(engines_open, "open_engine", open_slowly)
    model = record_model(str(tiny_models.bigram(tmp_path / "model")))
    capsys.readouterr()
    with OnDemand(model, EngineSettings(engine="fake"), Machine()) as engine, engine.make_bar(100, "refresh") as bar:
        engine.open()
        _work(clock, bar, 10, 2.0)
        assert capsys.readouterr().err == "refresh: 10 of 100 responses (10%), 15 tokens/s, 03:00 left\n"
        assert caplog.messages[1:] == [f"{model.name} is open after 300.0 s"]
        with engine.make_bar(10, "again") as another:
            clock.now += 5.0
            _work(clock, another, 10, 1.0)
        last = capsys.readouterr().err.splitlines()[-1]
        assert last == "again: 10 of 10 responses (100%), 20 tokens/s, took 00:15"


def test_training_writes_lines_and_no_bar_of_lightnings(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path
):
    student = record_model(str(tiny_models.bigram(tmp_path / "student", 2)))
    teacher = record_model(str(tiny_models.bigram(tmp_path / "teacher", 1)))
    writer, scorer = (BigramEngine(each, EngineSettings(engine="fake")) for each in (student, teacher))
    rows = Rows(tiny_shards.write(tmp_path / "shards", writer, scorer, [24]))
    settings = Training(steps=3, batch=8, learning_rate=1e-2)
    capfd.readouterr()
    fitted = fit_student(
        open_student(student),
        Run(load_recipe("topk_reverse_kl"), rows, settings, Machine(device="cpu", train_tokens=64), tmp_path / "state"),
    )
    last = fitted.history[-1]
    out, told = capfd.readouterr()
    assert out == ""
    assert told.startswith(f"train: 3 of 3 steps (100%), loss {last['loss']:.4f}, kl {last['kl']:.4f}, took 00:0")
    assert told.count("\n") == 1
    assert "\r" not in told
    assert not hasattr(callbacks, "TQDMProgressBar")
