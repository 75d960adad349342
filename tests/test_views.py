"""What a view shows its model: each context against the text written out here, and every row that has none.

One bucket is written by hand: five responses to three prompts, two of them of one domain. The model is a bigram model
with a tokenizer of single letters, so that ids are read back as text.
"""

import json
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engines.open import open_engine
from pipeline.errors import EngineError, SettingsError, ShardError
from pipeline.models.record import Model, record_model
from pipeline.models.templates import render_prompt
from pipeline.scoring.checks import check_lengths, check_rows, check_views, check_writers
from pipeline.scoring.contexts import choose_siblings, identify_context
from pipeline.scoring.plan import ScorePlan, identify_scores, plan_scores
from pipeline.scoring.reading import read_bucket
from pipeline.scoring.write import write_scores
from pipeline.settings import params
from pipeline.settings.machine import Machine
from pipeline.settings.views import View
from pipeline.storage import hashing
from pipeline.storage.bucket import Bucket
from pipeline.storage.grades import GRADES
from pipeline.storage.prompts import Prompt, write_prompts
from pipeline.storage.ragged import from_lists
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.scores import SCORES
from pipeline.storage.shards import ShardReader, Writer, read_shard
from tests import tiny_models

SYSTEM = {"role": "system", "content": "be kind"}
PROMPTS = [
    Prompt("p0", "sums", (SYSTEM, {"role": "user", "content": "1+2"}), "3", "add one", 0, "opd"),
    Prompt("p1", "sums", ({"role": "user", "content": "2+2"},), "4", None, 0, "opd"),
    Prompt("p2", "talk", ({"role": "user", "content": "hi"},), None, "no", 0, "opd"),
]
ROWS = [
    # prompt, response, correct, reward, feedback
    ("p0", "3", True, 1.0, "good"),
    ("p0", "4", False, 0.0, "bad"),
    ("p1", "4", True, 1.0, None),
    ("p1", "4.", True, 1.0, ""),
    ("p2", "hi", None, None, "killed after 10 s"),
]
IDS = [f"r{number}" for number in range(len(ROWS))]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return record_model(str(tiny_models.bigram(tmp_path_factory.mktemp("model"))))


@pytest.fixture
def bucket(tmp_path, model) -> Bucket:
    return write(tmp_path, model)


def write(folder, model, rows=ROWS, asked=PROMPTS) -> Bucket:
    """The three shards of a bucket."""
    prompts, grades = folder / "prompts.parquet", folder / "grades.parquet"
    bucket = Bucket(folder / "rollouts.parquet", prompts, grades)
    tokenizer = model.load_tokenizer()
    by_id = {prompt.prompt_id: prompt for prompt in asked}
    written = [
        {
            "rollout_id": rollout_id, "prompt_id": prompt_id, "sample": 0, "source": "student", "behaviour": "b",
            "written_in": "r1", "prompt_ids": render_prompt(tokenizer, by_id[prompt_id].messages),
            "response_ids": [*tokenizer.encode(text), 0], "behaviour_logprobs": [-1.0] * (len(text) + 1),
            "finish_reason": "stop", "text": text, "sampling_logprobs": None, "behaviour_topk_ids": None,
            "segments": None,
        }
        for rollout_id, (prompt_id, text, *_) in zip(IDS, rows, strict=True)
    ]  # fmt: skip
    graded = [
        {"rollout_id": rollout_id, "correct": correct, "reward": reward, "feedback": feedback}
        for rollout_id, (_, _, correct, reward, feedback) in zip(IDS, rows, strict=True)
    ]
    write_prompts(prompts, {}, {}, asked)
    about = {"model": {"weights": "the student's"}, "sft_teacher": model.weights_hash}
    for path, schema, table in (
        (bucket.rollouts, ROLLOUTS, written),
        (grades, GRADES, graded),
    ):
        with Writer(path, schema, about, {"sft_teacher": model.name}) as writer:
            writer.write(pa.Table.from_pylist(table, schema))
    return bucket


def view(context: Any = "plain", support: Any = None, **more: Any) -> View:
    return View.model_validate_json(json.dumps({"context": context, "support": support or {"top_k": 4}, **more}))


def plan(bucket, model, of_view) -> ScorePlan:
    """A plan of one view of one bucket."""
    settings = params.Score(engine="fake", views={"teacher": view(), "one": of_view})
    return plan_scores(settings, {"one": model}, ["one"], [bucket])


def contexts(bucket, model, of_view) -> list:
    """What each row of the bucket sees, or why it sees nothing."""
    made = plan(bucket, model, of_view).views["one"][0].contexts
    assert made is not None
    return made.of_rows(0, from_lists(read_shard(bucket.rollouts, ROLLOUTS).column("prompt_ids")))


def shown(bucket, model, of_view) -> list[str]:
    """Each row's context as text, or in brackets why there is none."""
    tokenizer = model.load_tokenizer()
    made = contexts(bucket, model, of_view)
    return [f"[{context}]" if isinstance(context, str) else tokenizer.decode(list(context)) for context in made]


def chat(user: str, system: str = "") -> str:
    return f"{f'<system>{system}<end>' if system else ''}<user>{user}<end><assistant>"


PLAIN = [chat("1+2", "be kind")] * 2 + [chat("2+2")] * 2 + [chat("hi")]
NO_HINT = ["[no hint]"] * 2
EXPECTED = {
    "plain": ("plain", PLAIN),
    "hint": (
        {"kind": "hint", "template": "{hint}: {prompt}"},
        [chat("add one: 1+2", "be kind")] * 2 + NO_HINT + [chat("no: hi")],
    ),
    "half of the hint": (
        {"kind": "prefix", "share": 0.5, "template": "{prompt};{prefix}"},
        [chat("1+2;add ", "be kind")] * 2 + NO_HINT + [chat("hi;n")],
    ),
    "half of the answer": (
        {"kind": "prefix", "of": "answer", "share": 0.5, "template": "{prompt};{prefix}"},
        [chat("1+2;3", "be kind")] * 2 + [chat("2+2;4")] * 2 + ["[no answer]"],
    ),
    "a correct sibling": (
        {"kind": "sibling", "template": "{prompt};{sibling}"},
        ["[no correct sibling]", chat("1+2;3", "be kind"), chat("2+2;4."), chat("2+2;4"), "[no correct sibling]"],
    ),
    "feedback": (
        {"kind": "feedback", "template": "{prompt};{feedback}"},
        [chat("1+2;good", "be kind"), chat("1+2;bad", "be kind"), "[no feedback]", chat("2+2;"), "[no feedback]"],
    ),
    "an instruction": (
        {"kind": "instruction", "template": "{prompt}?"},
        [chat("1+2?", "be kind")] * 2 + [chat("2+2?")] * 2 + [chat("hi?")],
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_context_shows_what_it_says_and_says_what_is_missing(name, bucket, model):
    context, expected = EXPECTED[name]
    assert shown(bucket, model, view(context)) == expected


@pytest.mark.parametrize("context", ["plain", {"kind": "hint", "template": "{prompt} {hint}"}])
def test_a_view_of_some_domains_leaves_the_others_out(context, bucket, model):
    everywhere, of_talk = (shown(bucket, model, view(context, domains=domains)) for domains in ((), ("talk",)))
    assert of_talk == ["[other domain]"] * 4 + everywhere[4:]


def test_a_skipped_row_keeps_its_place_and_the_others_their_scores(bucket, model, tmp_path):
    of_view = view({"kind": "hint", "template": "{prompt} {hint}"})
    rows = score(tmp_path / "scores.parquet", bucket, model, of_view)
    assert [row["rollout_id"] for row in rows] == IDS
    assert [row["skipped"] for row in rows] == [None, None, "no hint", "no hint", None]
    assert [row["sampled_logprobs"] is None for row in rows] == [False, False, True, True, False]
    assert len({row["context_hash"] for row in rows}) == 3  # two prompts, and none


def score(path, bucket, model, of_view) -> list[dict]:
    settings = params.Score(engine="fake", views={"teacher": of_view})
    job = plan_scores(settings, {"teacher": model}, ["teacher"], [bucket]).views["teacher"][0]
    with open_engine(model, settings, Machine()) as engine, ShardReader(bucket.rollouts) as rollouts:
        write_scores(path, job, lambda: engine, rollouts)
    return read_shard(path, SCORES).to_pylist()


def test_given_ids_are_scored_at_every_position_and_never_cut(bucket, model, tmp_path):
    few = score(tmp_path / "few.parquet", bucket, model, view(support={"top_k": 2, "ids": [9, 1]}))
    all_ids = score(tmp_path / "all.parquet", bucket, model, view(support={"top_k": model.vocabulary}))
    for row, whole in zip(few, all_ids, strict=True):
        for place, (ids, logprobs) in enumerate(zip(row["support_ids"], row["support_logprobs"], strict=True)):
            known = dict(zip(whole["support_ids"][place], whole["support_logprobs"][place], strict=True))
            assert set(ids) == {*whole["support_ids"][place][:2], 1, 9}
            assert logprobs == [known[id_] for id_ in ids]
            assert row["own"][place] == 2


def test_given_ids_alone_are_a_support(bucket, model, tmp_path):
    rows = score(tmp_path / "scores.parquet", bucket, model, view(support={"ids": [5]}))
    assert {id_ for row in rows for ids in row["support_ids"] for id_ in ids} == {5}


@st.composite
def groups(draw):
    prompt_ids = draw(st.lists(st.sampled_from("abc"), max_size=12))
    correct = [draw(st.sampled_from([True, False, None])) for _ in prompt_ids]
    return [f"r{number}" for number in range(len(prompt_ids))], prompt_ids, correct


@given(groups(), st.randoms(use_true_random=False))
def test_a_sibling_is_another_correct_one_of_the_prompt_in_whichever_order(group, random):
    ids, prompt_ids, correct = group
    chosen = dict(zip(ids, choose_siblings(ids, prompt_ids, correct), strict=True))
    for row, own in enumerate(ids):
        others = [o for o in range(len(ids)) if o != row and prompt_ids[o] == prompt_ids[row] and correct[o] is True]
        assert chosen[own] in (others or [None])
    order = list(range(len(ids)))
    random.shuffle(order)
    moved = choose_siblings(*([column[place] for place in order] for column in group))
    assert [None if place is None else ids[order[place]] for place in moved] == [
        None if chosen[ids[place]] is None else ids[chosen[ids[place]]] for place in order
    ]


def test_the_rows_of_a_prompt_are_not_all_shown_the_same_sibling():
    ids = [f"r{number}" for number in range(40)]
    chosen = choose_siblings(ids, ["p"] * 40, [True] * 40)
    assert len(set(chosen)) > 10


CHANGES = {
    "hint": lambda prompts, rows: (replaced(prompts, hint="add two"), rows),
    "answer": lambda prompts, rows: (replaced(prompts, answer="33"), rows),
    "domain": lambda prompts, rows: (replaced(prompts, domain="more"), rows),
    "correct": lambda prompts, rows: (prompts, [("p0", "3", None, *rows[0][3:]), *rows[1:]]),
    "feedback": lambda prompts, rows: (prompts, [(*rows[0][:4], "well done"), *rows[1:]]),
    "text": lambda prompts, rows: (prompts, [("p0", "3 ", *rows[0][2:]), *rows[1:]]),
}
READ_BY = {
    "plain": set(),
    "hint": {"hint"},
    "prefix": {"hint"},
    "prefix of the answer": {"answer"},
    "sibling": {"correct", "text"},
    "feedback": {"correct", "feedback"},
    "instruction": set(),
    "plain, of a domain": {"domain"},
}
VIEWS = {
    "plain": view(),
    "hint": view("hint"),
    "prefix": view({"kind": "prefix", "share": 0.5}),
    "prefix of the answer": view({"kind": "prefix", "share": 0.5, "of": "answer"}),
    "sibling": view("sibling"),
    "feedback": view("feedback"),
    "instruction": view({"kind": "instruction", "template": "{prompt}"}),
    "plain, of a domain": view(domains=("sums",)),
}


def replaced(asked, **changes):
    return [replace(asked[0], **changes), *asked[1:]]


@pytest.mark.parametrize("name", VIEWS)
def test_a_contexts_identity_holds_the_columns_it_reads_and_no_other(name, model, tmp_path):
    def fingerprint(folder, asked, rows):
        folder.mkdir()
        made = write(folder, model, rows, asked)
        return hashing.fingerprint(identify_context(read_bucket(made, [VIEWS[name]]), VIEWS[name], model))

    known = fingerprint(tmp_path / "known", PROMPTS, ROWS)
    changed = {
        what for what, change in CHANGES.items() if fingerprint(tmp_path / what, *change(PROMPTS, ROWS)) != known
    }
    assert changed == READ_BY[name]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (view("hint"), view({"kind": "hint", "template": "{hint} {prompt}"})),
        (view({"kind": "prefix", "share": 0.5}), view({"kind": "prefix", "share": 0.25})),
        (view({"kind": "prefix", "share": 0.5}), view({"kind": "prefix", "share": 0.5, "of": "answer"})),
        (view(domains=("sums",)), view(domains=("talk",))),
        (view(), view(domains=("talk",))),
        (view(support={"ids": [1]}), view(support={"ids": [2]})),
    ],
)
def test_two_settings_of_a_view_are_two_identities(one, other, bucket, model):
    settings = params.Score(engine="fake", views={"teacher": one})
    first, second = (identify_scores(read_bucket(bucket, [each]), each, model, settings) for each in (one, other))
    assert hashing.fingerprint(first) != hashing.fingerprint(second)


def test_the_order_of_domains_and_ids_is_no_difference(bucket, model):
    settings = params.Score(engine="fake", views={"teacher": view()})
    views = [
        view(support={"ids": ids}, domains=domains)
        for ids, domains in (([1, 2], ("sums", "talk")), ([2, 1], ("talk", "sums")))
    ]
    one, other = (identify_scores(read_bucket(bucket, views), each, model, settings) for each in views)
    assert hashing.fingerprint(one) == hashing.fingerprint(other)


def check_planned_rows(name, of_one: ScorePlan) -> None:
    check_rows(name, of_one.views["one"], of_one.buckets)


def test_a_domain_that_does_not_occur_is_refused(bucket, model):
    with pytest.raises(
        SettingsError, match=r"score\.views\.few\.domains names sum; the prompts' domains are sums, talk"
    ):
        check_planned_rows("few", plan(bucket, model, view(domains=("sum", "talk"))))


def test_a_view_of_which_no_row_would_be_scored_is_refused(model, tmp_path):
    bucket = write(tmp_path, model, asked=[replace(prompt, hint=None) for prompt in PROMPTS])
    with pytest.raises(ShardError, match=r"score\.views\.hinted: none of the 5 responses .* \(4 no hint, 1 other dom"):
        check_planned_rows("hinted", plan(bucket, model, view("hint", domains=("sums",))))


def test_rows_without_a_score_are_counted_in_the_log(bucket, model, caplog):
    with caplog.at_level("INFO"):
        check_planned_rows("hinted", plan(bucket, model, view("hint", domains=("sums",))))
    assert "view hinted: 3 of 5 responses have no score: 2 no hint, 1 other domain" in caplog.text


def test_what_does_not_fit_the_models_context_is_refused_with_its_row_and_lengths(bucket, model):
    of_view = view("hint")
    responses = read_shard(bucket.rollouts, ROLLOUTS).column("response_ids").to_pylist()
    both = zip(contexts(bucket, model, of_view), responses, strict=True)
    lengths = [len(ids) + len(response) for ids, response in both if not isinstance(ids, str)]
    (job,) = plan(bucket, model, of_view).views["one"]
    check_lengths("hinted", job, max(lengths))
    check_lengths("hinted", job, None)
    says = r"score\.views\.hinted: response r0 in .*rollouts\.parquet has 2 tokens, the `hint` context before it \d+: "
    with pytest.raises(EngineError, match=says + rf"together {max(lengths)}, and .* takes {max(lengths) - 1}"):
        check_lengths("hinted", job, max(lengths) - 1)


def check(bucket, by_view, **views) -> None:
    settings = params.Score(views={"teacher": view(), **views})
    check_views(settings, by_view)
    check_writers(settings, by_view, plan_scores(settings, by_view, ["teacher"], [bucket]).buckets)


def test_a_target_that_is_the_student_on_the_plain_prompt_is_refused(bucket, model):
    student = model.model_copy(update={"weights_hash": "the student's", "name": "data/models/r0"})
    models_of = {"teacher": model, "own": student}
    for name in ("student", "data/models/r0"):
        with pytest.raises(SettingsError, match=r"score\.views\.own: data/models/r0 is the student itself"):
            check(bucket, models_of, own=view(model=name))
    check(bucket, models_of, own=view(model="student", target=False))
    check(bucket, models_of, own=view("hint", model="student"))


def test_a_model_as_its_own_reference_is_refused(bucket, model):
    with pytest.raises(
        SettingsError, match=r"score\.views\.base \(`target: false`\) and score\.views\.teacher are one"
    ):
        check(bucket, {"teacher": model, "base": model}, base=view(model="copy", target=False))
    check(bucket, {"teacher": model, "wide": model}, wide=view(support={"top_k": 8}))
    check(bucket, {"teacher": model, "base": model}, base=view("hint", target=False))
    other = model.model_copy(update={"weights_hash": "another's"})
    check(bucket, {"teacher": model, "base": other}, base=view(model="other", target=False))


def test_ids_outside_the_vocabulary_are_refused(bucket, model):
    last = model.vocabulary - 1
    check(bucket, {"teacher": model, "few": model}, few=view(support={"ids": [last]}))
    with pytest.raises(SettingsError, match=rf"few\.support\.ids has {last + 1}; the token ids of .* 0 to {last}\."):
        check(bucket, {"teacher": model, "few": model}, few=view(support={"ids": [3, last + 1]}))
