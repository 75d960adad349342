"""Grading: each grader against responses whose grade is known, and graders that hang, crash and raise.

A grader of one's own is a module in the current directory, as a user has it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.errors import GradeError
from pipeline.grading.graders import identify_grader, open_grader
from pipeline.grading.write import Grading
from pipeline.settings import params
from pipeline.storage.grades import GRADES, Grade, make_grade_table
from pipeline.storage.store import Store

GSM8K = Path("../shared/data/gsm8k_train_500.jsonl")
NOTHING = Grade(None, None, None)

OWN = """
import os, signal, stat, struct, subprocess, sys, time
from pathlib import Path
import numpy as np

def is_socket(fd):
    try: return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError: return False

def grade(response, answer):
    match response:
        case "hang":
            child = subprocess.Popen(["sleep", "600"])
            Path("child").write_text(str(child.pid))
            while True: pass
        case "daemon":
            leave = "import os, time; os.fork() and os._exit(0); "
            tell = "open('child', 'w').write(str(os.getpid())); time.sleep(600)"
            subprocess.run([sys.executable, "-c", leave + tell], start_new_session=True)
            while True: pass
        case "segfault": os.kill(os.getpid(), signal.SIGSEGV)
        case "exit": os._exit(3)
        case "sys.exit": sys.exit("no")
        case "raise": raise KeyError("x")
        case "process": return float(os.getpid())
        case "answer": return {"feedback": repr(answer)}
        case "print": print("a grader's own words", flush=True); return True
        case "forged" | "large":
            (pipe,) = [fd for fd in range(3, 64) if is_socket(fd)]
            message = b"[true" if response == "forged" else b"9" * 10**7
            os.write(pipe, struct.pack("!i", len(message)) + message)
            time.sleep(600)
        case _: return eval(response)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> params.GradeSettings:
    """A grader that does what the response says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    return params.GradeSettings(grader="mine:grade", timeout_s=1.0)


def graded(settings: params.GradeSettings, responses: Sequence[str], answer: str | None = "x") -> list[Grade]:
    with open_grader(settings, workers=1) as grader:
        return grader.grade(responses, [answer] * len(responses))


def exists(pid: int) -> bool:
    """Whether a process runs; one that waits for its parent's notice does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    ends = time.monotonic() + 10
    while exists(pid) and time.monotonic() < ends:
        time.sleep(0.02)
    return not exists(pid)


@pytest.mark.parametrize(
    ("response", "answer", "correct"),
    [
        ("so\n#### 72", "72", True),
        ("#### 71\nno:\n#### 72 ", " 72", True),
        ("#### 72\nno:\n#### 71", "72", False),
        ("#### 1,234", "1234", True),
        ("1234567.50", "1,234,567.5", True),
        ("#### 72.", "72", True),
        ("#### -.5", "-0.5", True),
        ("1e3", "1000", True),
        ("#### 1,2", "12", False),  # a pair, no number
        ("#### 1/2", "0.5", False),  # `exact` does no mathematics
        ("72", "720", False),
        ("The answer is 72", "72", False),
        ("Paris", "Paris", True),
        ("paris", "Paris", False),
        ("####", "72", False),
        ("9007199254740993", "9007199254740992", False),  # equal as floats
    ],
)
def test_exact_compares_the_final_answer_as_text_or_number(response: str, answer: str, correct: bool) -> None:
    assert graded(params.GradeSettings(grader="exact"), [response], answer) == [Grade(correct, float(correct), None)]


def test_without_an_answer_exact_says_nothing() -> None:
    assert graded(params.GradeSettings(grader="exact"), ["72", ""], None) == [NOTHING, NOTHING]


MATHEMATICS = [
    ("#### 72", "72", True),
    ("The answer is 0.5.", "1/2", True),
    (r"So \boxed{\frac{1}{2}}.", "0.5", True),
    (r"So $x^2+2x+1$", "(x+1)^2", True),
    (r"So $x^2+2x$", "(x+1)^2", False),
    (r"So $(1, 2]$", "(1, 2]", True),
    ("So 2", "(1, 2]", False),
    (r"So \boxed{1{,}234}", "1,234", True),
    ("I do not know.", "72", False),
    ("", "72", False),
    ("for 3 friends 48\n#### 71", "72", False),
]


def test_math_grades_by_value_and_gsm8ks_solutions_are_right_and_other_numbers_wrong() -> None:
    rows = [json.loads(line) for line in GSM8K.read_text().splitlines()] if GSM8K.exists() else []
    solutions = [row["answer"] for row in rows]
    gold = [solution.rpartition("#### ")[2] for solution in solutions]
    wrong = [str(int(answer.replace(",", "")) + 1) for answer in gold]
    responses, answers, correct = (list(column) for column in zip(*MATHEMATICS, strict=True))
    with open_grader(params.GradeSettings(grader="math", timeout_s=60.0), workers=1) as grader:
        assert grader.grade(responses, answers) == [Grade(told, float(told), None) for told in correct]
        assert grader.grade(["72"], [None]) == [NOTHING]
        (unread,) = grader.grade(["72"], ["$$"])
        assert unread == Grade(None, None, "grader raised ValueError: math-verify cannot read the answer '$$'")
        if not rows:
            pytest.skip(f"{GSM8K} is missing: its solutions were not graded")
        assert set(grader.grade(solutions, gold)) == {Grade(True, 1.0, None)}
        assert set(grader.grade(solutions, wrong)) == {Grade(False, 0.0, None)}
    with open_grader(params.GradeSettings(grader="exact")) as grader:
        assert set(grader.grade(solutions, gold)) == {Grade(True, 1.0, None)}
        assert set(grader.grade(solutions, wrong)) == {Grade(False, 0.0, None)}


@pytest.mark.slow
def test_math_that_takes_for_ever_has_no_grade_rather_than_a_wrong_one() -> None:
    endless, fine = graded(
        params.GradeSettings(grader="math", timeout_s=3.0), [r"\boxed{7^{7^{7^{7}}}}", "#### 3"], "3"
    )
    assert endless == Grade(None, None, "grader timed out after 3 s")
    assert fine == Grade(True, 1.0, None)


def test_a_function_of_ones_own_may_return_a_bool_a_number_or_a_dictionary(own: params.GradeSettings) -> None:
    told = {
        "True": Grade(True, 1.0, None),
        "np.bool_(False)": Grade(False, 0.0, None),
        "0.25": Grade(None, 0.25, None),
        "np.float32(-2)": Grade(None, -2.0, None),
        "1": Grade(None, 1.0, None),
        "{'correct': True}": Grade(True, 1.0, None),
        "{'correct': False, 'reward': 0.5, 'feedback': 'close'}": Grade(False, 0.5, "close"),
        "{'correct': None, 'reward': np.float64(3)}": Grade(None, 3.0, None),
        "answer": Grade(None, None, "None"),
    }
    assert dict(zip(told, graded(own, list(told), None), strict=True)) == told


def test_what_is_no_grade_is_an_error_of_that_row(own: params.GradeSettings) -> None:
    told = {
        "None": "returned None, which is no grade: a bool, a number, or a dictionary",
        "'yes'": "returned 'yes', which is no grade: a bool",
        "{}": "returned {}, which is no grade",
        "{'score': 1}": "returned {'score': 1}, which is no grade: a bool, a number, or a dictionary of correct",
        "{'correct': 1}": "returned {'correct': 1}, which is no grade: `correct` is neither bool nor None",
        "{'reward': '1'}": "returned {'reward': '1'}, which is no grade: `reward` is neither a number nor None",
        "{'feedback': 1}": "returned {'feedback': 1}, which is no grade: `feedback` is neither text nor None",
        "{'feedback': '\\ud800'}": "returned {'feedback': '\\ud800'}, which is no grade",
        "float('nan')": "returned nan, which is no grade: the reward is not a finite number of fp32",
        "{'feedback': 100_001 * 'a'}": "returned {'feedback': 'aaa",
        "1e39": "returned 1e+39, which is no grade: the reward is not a finite number of fp32",
    }
    for grade, expected in zip(graded(own, list(told)), told.values(), strict=True):
        assert (grade.correct, grade.reward) == (None, None)
        assert grade.feedback is not None
        assert grade.feedback.startswith(f"grader {expected}")


def test_a_grader_that_fails_loses_that_grade_alone(
    own: params.GradeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    responses = ["True", "raise", "True", "segfault", "True", "exit", "True", "sys.exit", "True", "hang", "True"]
    grades = graded(own, responses)
    assert grades[::2] == [Grade(True, 1.0, None)] * 6
    assert [grade.feedback for grade in grades[1::2]] == [
        "grader raised KeyError: 'x'",
        "grader crashed (SIGSEGV)",
        "grader ended with exit code 3",
        "grader raised SystemExit: no",
        "grader timed out after 1 s",
    ]
    assert all((grade.correct, grade.reward) == (None, None) for grade in grades[1::2])
    assert "5 of 11 responses have no grade; the first: grader raised KeyError: 'x'" in caplog.messages
    assert gone(int(Path("child").read_text())), "what a stopped grader started is stopped with it"


def test_what_a_graders_process_sends_is_not_run_and_has_a_limit(own: params.GradeSettings) -> None:
    grades = graded(own, ["forged", "True", "large", "True"])
    assert grades[::2] == [
        Grade(None, None, "grader sent something else than an outcome"),
        Grade(None, None, "grader closed its connection, or sent too much"),
    ]
    assert grades[1::2] == [Grade(True, 1.0, None)] * 2


def test_what_a_grader_prints_is_no_grade(own: params.GradeSettings, capfd: pytest.CaptureFixture[str]) -> None:
    assert graded(own, ["print"] * 2) == [Grade(True, 1.0, None)] * 2
    assert capfd.readouterr().out == "a grader's own words\n" * 2


def test_a_process_is_kept_and_ends_with_the_block(own: params.GradeSettings) -> None:
    grades = graded(own, ["process"] * 5)
    (process,) = {grade.reward for grade in grades}
    assert process is not None
    assert gone(int(process))


def test_the_order_of_the_grades_is_the_responses_whatever_is_slow(own: params.GradeSettings) -> None:
    responses = ["__import__('time').sleep(0.3) or 0.0", *(f"{number}.0" for number in range(1, 50))]
    with open_grader(own, workers=2) as grader:
        assert [grade.reward for grade in grader.grade(responses, ["x"] * 50)] == [float(each) for each in range(50)]


def test_time_is_counted_for_each_response_and_not_for_the_import(own: params.GradeSettings) -> None:
    Path("late.py").write_text("import time\ntime.sleep(1.2)\n" + OWN)
    settings = own.model_copy(update={"grader": "late:grade"})
    assert graded(settings, ["__import__('time').sleep(0.3) or True"] * 5) == [Grade(True, 1.0, None)] * 5


def test_what_a_grader_starts_ends_with_it_in_a_session_of_its_own_too(own: params.GradeSettings) -> None:
    (grade,) = graded(own.model_copy(update={"timeout_s": 3.0}), ["daemon"])
    assert grade.feedback == "grader timed out after 3 s"
    assert gone(int(Path("child").read_text()))


@pytest.mark.slow
def test_a_grader_does_not_outlive_a_killed_owner(own: params.GradeSettings) -> None:
    script = Path("owner.py")
    script.write_text(
        "from pipeline.grading.graders import open_grader\n"
        "from pipeline.settings.params import GradeSettings\n"
        "if __name__ == '__main__':\n"
        "    with open_grader(GradeSettings(grader='mine:grade', timeout_s=600.0), workers=1) as grader:\n"
        "        print(int(grader.grade(['process'], ['x'])[0].reward), flush=True)\n"
        "        grader.grade(['hang'], ['x'])\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        process = int(owner.stdout.readline())
        while not Path("child").exists():
            time.sleep(0.02)
        assert exists(process)
        os.kill(owner.pid, signal.SIGKILL)
        assert gone(process)


@pytest.mark.parametrize(
    ("grader", "told"),
    [
        ("absent:grade", r"grade\.grader: `absent:grade` is in no module that can be imported from"),
        ("mine.deep:grade", r"grade\.grader: `mine\.deep:grade` is in no module"),
        (":grade", r"grade\.grader: `:grade` is in no module"),
        ("mine:absent", r"`mine:absent` cannot be imported: AttributeError: module 'mine' has no attribute 'absent'"),
        ("mine:OWN", r"`mine:OWN` cannot be imported: `OWN` is no function"),
        ("broken:grade", r"`broken:grade` cannot be imported: ModuleNotFoundError: No module named 'absent'"),
        ("dead:grade", r"`dead:grade` cannot be imported: its process ended with exit code 4"),
    ],
)
def test_a_grader_that_cannot_be_imported_is_told_before_anything_is_graded(
    own: params.GradeSettings, grader: str, told: str
) -> None:
    Path("mine.py").write_text(OWN + "OWN = 1\n")
    Path("broken.py").write_text("import absent\n")
    Path("dead.py").write_text("import os\nos._exit(4)\n")
    with pytest.raises(GradeError, match=told), open_grader(params.GradeSettings(grader=grader), workers=1):
        pass


def test_a_grade_is_named_by_what_decides_it(own: params.GradeSettings) -> None:
    usual = own.model_copy(update={"timeout_s": 10.0})
    assert identify_grader(params.GradeSettings(grader="exact", timeout_s=3.0)) == {"grader": "exact", "version": 2}
    assert set(identify_grader(params.GradeSettings(grader="math"))) == {"grader", "version", "math_verify"}
    before = identify_grader(usual)
    assert set(before) == {"grader", "version", "source"}
    assert identify_grader(own) == before | {"timeout_s": 1.0}
    with Path("mine.py").open("a") as file:
        file.write("# corrected\n")
    assert identify_grader(usual)["source"] != before["source"]
    with pytest.raises(GradeError, match="`absent:grade` is in no module"):
        identify_grader(params.GradeSettings(grader="absent:grade"))


def test_naming_a_grader_runs_none_of_it(own: params.GradeSettings) -> None:
    Path("package").mkdir()
    Path("package/__init__.py").write_text("raise RuntimeError('was imported')\n")
    Path("package/inside.py").write_text("")
    assert "source" in identify_grader(params.GradeSettings(grader="package.inside:grade"))


def test_grades_become_the_rows_of_a_shard() -> None:
    grades = [Grade(True, 1.0, None), Grade(None, 0.25, "close"), NOTHING]
    rows = make_grade_table(["a", "b", "c"], grades, ["one", "two", None]).to_pylist()
    assert [row.pop("rollout_id") for row in rows] == ["a", "b", "c"]
    assert [row.pop("answer_hash") for row in rows] == ["one", "two", None]
    assert [Grade(**row) for row in rows] == grades
    assert make_grade_table([], [], []).schema == GRADES


@pytest.mark.parametrize(("failing", "asked", "ends"), [(3, 3, True), (3, 40, False), (5, 40, True), (2, 4, False)])
def test_a_grader_that_fails_too_often_ends_the_stage(tmp_path, failing, asked, ends):
    grading = Grading(params.GradeSettings(grader="own:grade"), Store(tmp_path))
    grades = [Grade(None, None, "KeyError: 'x'")] * failing + [Grade(True, 1.0, None)] * (asked - failing)
    if not ends:
        grading._check_failures(grades)
        return
    with pytest.raises(
        GradeError, match=rf"own:grade` failed on {failing} of {asked} .*max_failed_share \(0\.1\).*KeyError"
    ):
        grading._check_failures(grades)
