"""Settings against what a user may write: every shipped file loads, every mistake is named where it stands."""

import re
from pathlib import Path

import pytest

from pipeline.errors import SettingsError
from pipeline.settings import params
from pipeline.settings.machine import Machine, VllmMachine, load_machine

ROOT = Path(__file__).parent.parent
SHIPPED = [ROOT / "params.yaml", *sorted((ROOT / "presets").glob("*.yaml"))]


TEXT = """
models: {teacher: a, student: b, demo: {teacher: {layers: 3, hidden: 8, heads: 2},
  student: {layers: 2, hidden: 8, heads: 2}, examples: 9, training: {steps: 1, batch: 2, learning_rate: 2e-3}}}
prompts:
  sources:
    - {split: sft, sums: 1, limit: 4000}
  buckets: 16
  held_out: 0
teacher_rollouts: {sampling: {max_tokens: 48}}
sft: {steps: 600, batch: 64, learning_rate: 3e-3}
refresh: {sampling: {max_tokens: 48}, policy: all}
grade: {grader: exact}
score: {views: {teacher: {support: {top_k: 8}}}}
train: {steps: 400, batch: 32, learning_rate: 3e-4, objective: topk_reverse_kl}
evaluate: {samples: 4, sampling: {max_tokens: 48}}
report: {title: Sums}
rounds:
  r1: {prev: r0}
  r2: {prev: r1}
"""


@pytest.fixture
def edited(tmp_path):
    """Loads the settings above with some texts replaced by others."""

    def load(*changes: tuple[str, str]) -> params.Params:
        text = TEXT
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "params.yaml"
        path.write_text(text)
        return params.load_params(path)

    return load


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_file_loads(path):
    settings = params.load_params(path)
    assert settings.rounds


def test_every_mistake_is_named_at_once_with_its_place(edited):
    with pytest.raises(SettingsError) as caught:
        edited(
            ("steps: 600", "steps: many"),
            ("split: sft", "split: sfd"),
            ("top_k: 8", "topk: 8"),
            ("samples: 4", "samples: -4"),
        )
    text = str(caught.value)
    assert re.match(r".*/params\.yaml has \d mistakes:\n", text)
    for told in (
        "sft.steps: expected integer, found 'many'",
        "prompts.sources.0.split: expected 'sft', 'opd' or 'evaluation', found 'sfd'",
        "score.views.teacher.support.topk: no such setting; did you mean `top_k`?",
        "evaluate.samples: expected greater than 0, found -4",
    ):
        assert f"  {told}" in text


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("batch: 64", "bath: 64", "sft.bath: no such setting; did you mean `batch`?"),
        ("layers: 3", "layer: 3", "models.demo.teacher.layer: no such setting; did you mean `layers`?"),
        ("limit: 4000", "limt: 4000", "prompts.sources.0.limt: no such setting; did you mean `limit`?"),
        ("{prev: r0}", "{previous: r0}", "rounds.r1.previous: no such setting; did you mean `prev`?"),
        ("grader: exact", "xyz: exact", "grade.xyz: no such setting; known here: grader, timeout_s"),
        ("report:", "reports:", "reports: no such setting; did you mean `report`?"),
        ("grader: exact", "timeout_s: 1.0", "grade.grader: is missing"),
    ],
)
def test_an_unknown_or_missing_setting_is_told_with_what_was_meant(edited, old, new, told):
    with pytest.raises(SettingsError, match=re.escape(told)):
        edited((old, new))


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        ("warmup: 0.1, warmup_steps: 60", "sft: `warmup` (0.1) and `warmup_steps` (60) say the same thing"),
        (
            "schedule: wsd",
            "sft: `decay` goes with `schedule: wsd` and is needed there; found schedule: wsd",
        ),
        ("schedule: cosine, decay: 0.1", "sft: `decay` goes with `schedule: wsd`"),
        ("minimum_rate: 0.1", "sft: `minimum_rate` is what the rate falls to, and with `schedule: constant` it"),
        ("minimum_rate: 1.0, schedule: cosine", "sft.minimum_rate: expected less than 1, found 1.0"),
        ("warmup_steps: 601", "sft: the warm-up takes 601 steps and the decay 0, more than the 600 there are"),
        ("schedule: wsd, warmup: 0.5, decay: 0.6", "sft: the warm-up takes 300 steps and the decay 360, more than"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(edited, schedule, told):
    with pytest.raises(SettingsError, match=re.escape(told)):
        edited(("learning_rate: 3e-3", f"learning_rate: 3e-3, {schedule}"))


def test_1e_4_is_a_number(edited):
    assert edited(("learning_rate: 3e-3", "learning_rate: 1e-4")).sft.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("batch: 64", 'batch: "64"', "sft.batch: expected integer, found '64'"),
        ("batch: 64", "batch: 64.5", "sft.batch: expected integer, found 64.5"),
        ("batch: 64", "batch: true", "sft.batch: expected integer, found True"),
        ("learning_rate: 3e-3", 'learning_rate: "3e-3"', "sft.learning_rate: expected number, found '3e-3'"),
        ("learning_rate: 3e-3", "learning_rate: .inf", "sft.learning_rate: expected a finite number, found inf"),
        ("learning_rate: 3e-3", "learning_rate: 0", "sft.learning_rate: expected greater than 0, found 0"),
        ("objective: topk_reverse_kl", "objective: 5", "train.objective: expected a recipe's name, or a recipe"),
    ],
)
def test_nothing_is_converted(edited, old, new, told):
    with pytest.raises(SettingsError, match=re.escape(told)):
        edited((old, new))


OBJECTIVE = "objective: topk_reverse_kl"


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        ("topk_reverse_lk", "train.objective: no recipe `topk_reverse_lk`; did you mean `topk_reverse_kl`?"),
        ("{terms: [{estimator: nll, suport: own}]}", "train.objective: recipe `own` has 2 mistakes:\n    terms.0."),
        ("sft", "train.objective: `sft` has no term on the student's own responses"),
        ("{terms: [{estimator: nll, view: null, support: sampled}, {estimator: nll, view: null, support: sampled, "
         "source: gold}]}", "terms.1.source: `gold` is refused: the pipeline has no gold responses. Take"),
        ("sdpo", "train.objective `sdpo` needs the view `hinted` (the student itself shown what went right"),
    ],
)  # fmt: skip
def test_an_objective_that_cannot_be_trained_is_refused_by_every_stage(edited, objective, told):
    with pytest.raises(SettingsError, match=re.escape(told)):
        edited((OBJECTIVE, f"objective: {objective}"))


def test_a_view_of_the_teachers_responses_has_to_score_them(edited):
    reference = "reference: {target: false, model: student, support: {top_k: 1}}"
    soda = (OBJECTIVE, "objective: soda"), ("teacher: {support", f"{reference}, teacher: {{support")
    with pytest.raises(SettingsError, match=r"set `score\.views\.reference\.teacher_rollouts: true`"):
        edited(*soda)
    scores_them = ("target: false", "target: false, teacher_rollouts: true")
    assert edited(*soda, scores_them).train.recipe.teacher_views == ("reference",)


def test_a_title_that_looks_like_a_date_is_a_title(edited):
    assert edited(("title: Sums", "title: 2026-01-02")).report.title == "2026-01-02"


STEPS = "steps: 600"
POLICY = "policy: all"
SUMS = "{split: sft, sums: 1, limit: 4000}"
TEACHER_VIEW = "teacher: {support: {top_k: 8}}"
VIEWS = f"views: {{{TEACHER_VIEW}"
BY_PROMPT_LOGPROBS, ALSO = f"engine: vllm, hidden_states: false, {VIEWS}", "same: {support: {same_as: [teacher]}}"


def context(written: str, *more: str) -> str:
    """The view with a context, and further settings."""
    return f"teacher: {{{', '.join([f'context: {written}', *more, 'support: {top_k: 8}'])}}}"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (STEPS, "steps: 0", "`teacher` says whose data an already trained student learned from"),
        (STEPS, "steps: 1, teacher: me", "found steps: 1, teacher: me"),
        (f"{STEPS}, batch: 64", STEPS, "sft: `batch` is needed for 600 steps, found none"),
        (SUMS, SUMS.replace("sft", "opd"), "prompts.sources: none has `split: sft`"),
        (POLICY, "policy: drift", "`bound` goes with `policy: drift` and is needed there"),
        (POLICY, "fraction: 0.5", "`fraction` goes with `policy: fraction`"),
        (POLICY, "quantization: fp8", "refresh: quantization needs `engine: vllm`, found `engine: hf`"),
        (SUMS, "{split: sft, sums: 1}", "prompts.sources.0: `sums` needs `limit`"),
        (f"\n    - {SUMS}", " []", "prompts.sources: should have 1 or more items, found []"),
        ("  r1:", "  r 1:", "rounds.r 1: should match pattern '^[A-Za-z0-9_-][A-Za-z0-9_.-]*$', found 'r 1'"),
        (SUMS, "{split: sft}", "exactly one of `path`, `dataset` and `sums` is expected, found none"),
        (SUMS, "{split: sft, path: a, sums: 1, limit: 1}", "is expected, found ['path', 'sums']"),
        (SUMS, "{split: sft, sums: 1, limit: 1, fields: {prompt: q}}", "`fields` does nothing with `sums`"),
        (SUMS, "{split: sft, path: a.jsonl, subset: main}", "`subset` does nothing with `path`"),
        (SUMS, "{split: sft, path: a, hinted: true}", "`hinted` does nothing with `path`"),
        (SUMS, "{split: sft, sums: 1, limit: 1, dataset_split: test}", "`dataset_split` does nothing with `sums`"),
        ("held_out: 0", "held_out: 16", "held_out is bucket 16, there are 16 (0 to 15)"),
        ("grader: exact", "grader: exacct", "`exact`, `math` or `module:function` is expected, found `exacct`"),
        (TEACHER_VIEW, "other: {support: {top_k: 8}}", "a view named `teacher` is expected, found ['other']"),
        (TEACHER_VIEW, "teacher: {support: {}}", "`top_k`, `same_as`, `behaviour` or `ids` is needed"),
        (TEACHER_VIEW, "teacher: {support: {top_k: 2, min_k: 3}}", "min_k is 3, over top_k (2)"),
        (TEACHER_VIEW, "teacher: {support: {mass: 0.9, behaviour: true}}", "`mass` cuts the top k: it needs `top_k`"),
        (TEACHER_VIEW, "teacher: {support: {top_k: 2, behaviour: true}}", "set refresh.behaviour_top_k"),
        (TEACHER_VIEW, "teacher: {support: {same_as: [teacher]}}", "view `teacher` takes ids from `teacher`"),
        (TEACHER_VIEW, "teacher: {support: {same_as: [you]}}", "view `teacher` takes ids from `you`"),
        (VIEWS, f"hidden_states: false, {VIEWS}", "`hidden_states: false` needs `engine: vllm`, found `engine: hf`"),
        (f"{VIEWS}}}", f"{BY_PROMPT_LOGPROBS}, {ALSO}}}", "view `same` takes ids from elsewhere"),
        (VIEWS, f"{BY_PROMPT_LOGPROBS}, few: {{support: {{ids: [1]}}}}", "view `few` takes ids from elsewhere"),
        (TEACHER_VIEW, "teacher: {support: {ids: [3, 5, 3]}}", "`ids` names 3 more than once"),
        (TEACHER_VIEW, "teacher: {support: {ids: [-1]}}", "support.ids.0: expected greater than or equal to 0"),
        (TEACHER_VIEW, context("{kind: hint, template: '{prompt}'}"), "template: the template lacks {hint}"),
        (TEACHER_VIEW, context("hint", "hint_template: '{prompt} {hint}'"), "teacher.hint_template: no such setting"),
        (TEACHER_VIEW, context("hints"), "teacher.context: expected one of 'plain', 'hint', 'prefix', 'sibling'"),
        (TEACHER_VIEW, context("{template: '{prompt}'}"), "score.views.teacher.context.kind: is missing"),
        (TEACHER_VIEW, context("{kind: prefix, share: 0.0}"), "share: expected greater than 0, found 0.0"),
        (TEACHER_VIEW, context("{kind: prefix, shar: 0.5}"), "context.shar: no such setting; did you mean `share`?"),
        (TEACHER_VIEW, context("instruction"), "context.template: is missing"),
        (TEACHER_VIEW, context("{kind: feedback, template: '{prompt} {hint}'}"), "the template lacks {feedback}"),
        (TEACHER_VIEW, context("{kind: instruction, template: '{prompt} {hint}'}"), "the template has {hint}, where"),
        (TEACHER_VIEW, context(r"{kind: instruction, template: '{prompt} \boxed{}'}"), "write {{ and }} for braces"),
        (TEACHER_VIEW, context("{kind: instruction, template: '{prompt} {'}"), "the template is malformed"),
        (TEACHER_VIEW, context("sibling"), "score.views.teacher.context shows another response to the same prompt"),
        (POLICY, "adapter: lora", "refresh.adapter would be put on every student as well"),
        ("samples: 4", "samples: 4, adapter: lora", "evaluate.adapter would be put on every student as well"),
        (VIEWS, f"adapter: lora, {VIEWS}", "teacher_rollouts.adapter is None, score.adapter lora: these are two"),
        (
            "{prev: r0}",
            "{prev: r2}",
            "rounds.r1.prev: `r0` or a round above it is expected, found `r2`; known",
        ),
        ("{prev: r0}", "{prev: r1}", "rounds.r1.prev: `r0` or a round above it is expected, found `r1`"),
        ("  r1: {prev: r0}", "  r0: {prev: r0}", "rounds.r0: `r0` is the SFT student"),
    ],
)
def test_what_cannot_go_together_is_refused(edited, old, new, told):
    with pytest.raises(SettingsError, match=re.escape(told)):
        edited((old, new))


def test_an_adapter_is_the_teachers_and_on_no_other_model(edited):
    wrote = ("teacher_rollouts: {", "teacher_rollouts: {adapter: lora, ")
    scores = (VIEWS, f"adapter: lora, {VIEWS}")
    assert edited(wrote, scores).score.adapter == "lora"
    for model in ("student", "owner/name@main"):
        other = (f"{VIEWS}}}", f"{VIEWS}, other: {{model: {model}, context: hint, support: {{top_k: 8}}}}}}")
        with pytest.raises(SettingsError, match=r"on the model of score\.views\.other as well"):
            edited(wrote, other, scores)


@pytest.mark.parametrize(
    "source",
    [
        "{split: sft, path: a.jsonl, fields: {prompt: q}}",
        "{split: sft, dataset: owner/name@main, subset: main, dataset_split: test, fields: {prompt: q}}",
    ],
)
def test_settings_of_a_source_that_do_something_are_welcome(edited, source):
    assert edited((SUMS, source)).prompts.sources[0].split == "sft"


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (context("hint"), context(r'{kind: hint, template: "{prompt}\n\nHint: {hint}"}')),
        (context("feedback"), context("{kind: feedback}")),
    ],
)
def test_a_context_has_a_short_form(edited, short, long):
    one, other = (edited((TEACHER_VIEW, written)).score.views["teacher"].context for written in (short, long))
    assert one == other


def test_a_template_may_have_braces(edited):
    view = edited((TEACHER_VIEW, context("{kind: instruction, template: '{prompt} in {{}}'}"))).score.views["teacher"]
    assert view.context.template.format(prompt="one") == "one in {}"


def test_settings_do_not_change_after_loading(edited):
    with pytest.raises(ValueError, match="frozen"):
        edited().sft.steps = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_a_missing_file_and_one_that_is_no_yaml_are_named(tmp_path):
    with pytest.raises(SettingsError, match=r"params\.yaml is missing\. `presets/` has some"):
        params.load_params(tmp_path / "params.yaml")
    with pytest.raises(SettingsError, match="cannot be read as a file of settings: Is a directory"):
        params.load_params(tmp_path)
    (tmp_path / "bad.yaml").write_text("a: [1,\nb: 2")
    with pytest.raises(SettingsError, match=r"bad\.yaml is not YAML"):
        params.load_params(tmp_path / "bad.yaml")
    (tmp_path / "twice.yaml").write_text("a: 1\na: 2\n")
    with pytest.raises(SettingsError, match=r"twice\.yaml is not YAML[\s\S]*duplicate key"):
        params.load_params(tmp_path / "twice.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(SettingsError, match="the file as a whole: expected an object, found None"):
        params.load_params(tmp_path / "empty.yaml")


def test_machine_has_a_default_for_every_key(tmp_path):
    assert load_machine(tmp_path / "machine.yaml") == Machine()
    (tmp_path / "machine.yaml").write_text("# all defaults\n")
    assert load_machine(tmp_path / "machine.yaml") == Machine()
    (tmp_path / "machine.yaml").write_text("device: cpu\nvllm: {tensor_parallel_size: 2}\n")
    machine = load_machine(tmp_path / "machine.yaml")
    assert (machine.device, machine.vllm.tensor_parallel_size) == ("cpu", 2)
    assert machine.vllm.gpu_memory_utilization == VllmMachine().gpu_memory_utilization


def test_an_unknown_key_of_the_machine_is_an_error(tmp_path):
    (tmp_path / "machine.yaml").write_text("devise: cpu\nvllm: {tensor_parallel: 2}\n")
    with pytest.raises(SettingsError) as caught:
        load_machine(tmp_path / "machine.yaml")
    assert "devise: no such setting; did you mean `device`?" in str(caught.value)
    assert "vllm.tensor_parallel: no such setting; did you mean `tensor_parallel_size`?" in str(caught.value)
