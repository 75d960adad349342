"""Training against what must come of it: gradients from full logits, a stopped run's twin, and a known teacher.

The whole method is held against a known answer: a bigram student that learns from the shards of a bigram teacher must
become that teacher, and must not where the scores are one position off.
"""

import json
import math
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engines.fake import BigramEngine
from pipeline.models.open import open_student
from pipeline.models.record import read_checkpoint, read_model, record_model
from pipeline.models.student import Student
from pipeline.objectives.diagnostics import Alarm
from pipeline.objectives.objective import Objective
from pipeline.settings.machine import Machine
from pipeline.settings.models import EngineSettings, Training
from pipeline.settings.recipe import Recipe, list_recipes, load_recipe
from pipeline.training.checkpoints import Origin, save_checkpoint
from pipeline.training.fit import fit_student
from pipeline.training.loader import Loader
from pipeline.training.module import make_schedule
from pipeline.training.rows import Rows
from pipeline.training.run import Run
from pipeline.training.states import list_states, read_step
from pipeline.training.validation import measure_kl
from tests import reference, tiny_models, tiny_shards

MACHINE = Machine(device="cpu", train_tokens=64)
VOCABULARY = 37


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "teacher": tiny_models.bigram(root / "teacher", seed=1),
        "student": tiny_models.bigram(root / "student", seed=2, sharpness=0.5),
        "qwen3": tiny_models.qwen3(root / "qwen3"),
    }


@pytest.fixture(scope="module")
def engines(folders):
    settings = EngineSettings(engine="fake")
    return {name: BigramEngine(record_model(str(folders[name])), settings) for name in ("teacher", "student")}


@pytest.fixture(scope="module")
def sources(engines, tmp_path_factory):
    """Top 4 of the teacher on responses of the student: 90 rows, 2 shards."""
    return tiny_shards.write(tmp_path_factory.mktemp("shards"), engines["student"], engines["teacher"], [70, 20])


def settings(steps=6, **more) -> Training:
    return Training(**{"steps": steps, "batch": 16, "learning_rate": 1e-2, "schedule": "cosine", **more})


def opened(folders, name="student", dtype=torch.float32) -> Student:
    return open_student(record_model(str(folders[name])), dtype)


def fit(folders, state, rows, how, recipe="topk_reverse_kl", **more):
    return fit_student(opened(folders), Run(load_recipe(recipe), rows, how, MACHINE, state, **more))


def weights(student: Student) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in student.parameters()])


def learning_rates(how: Training) -> list[float]:
    """Of each step, as the optimiser has it."""
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=how.learning_rate)
    scheduler, found = make_schedule(optimizer, how), []
    for _ in range(how.steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def gradient(student: Student, loss: torch.Tensor) -> torch.Tensor:
    student.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in student.parameters() if parameter.grad is not None])


def written_out(name: str, reduction: str) -> Recipe:
    """A shipped recipe with another reduction."""
    (term,) = load_recipe(name).terms
    return load_recipe({"terms": [{**term.model_dump(), "reduction": reduction}]})


def from_full_logits(student: Student, rows, recipe: Recipe) -> torch.Tensor:
    """The loss of a step, one sequence at a time, straight from the files and the definitions."""
    (term,) = recipe.terms
    losses = []
    for row in rows:
        ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
        logprobs = student.transformer(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        per_token = []
        for position, token in enumerate(row["response_ids"]):
            now = logprobs[len(row["prompt_ids"]) - 1 + position]
            if term.estimator == "policy_gradient":
                advantage = (row["sampled_logprobs"][position] - now[token]).detach().clamp(-10, 10)
                per_token.append(-advantage * now[token])
                continue
            kept, outside = row["support_ids"][position], set(range(VOCABULARY)) - set(row["support_ids"][position])
            target = torch.tensor([*row["support_logprobs"][position], row["tail_logprobs"][position]]).double()
            target = target.log_softmax(-1)
            own = torch.cat([now[kept], now[sorted(outside)].logsumexp(-1, keepdim=True)])
            per_token.append((own.exp() * (own - target)).sum())
        losses.append(torch.stack(per_token))
    if term.reduction == "sequence_mean":
        return torch.stack([loss.mean() for loss in losses]).mean()
    return torch.cat(losses).mean()


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("name", ["topk_reverse_kl", "lightning"])
def test_a_steps_gradient_is_that_of_full_logits_one_sequence_at_a_time(folders, sources, name, reduction):
    """A student with attention, several packs, several sequences in a row; in fp64 but for the stored columns."""
    student, recipe = opened(folders, "qwen3", torch.float64).eval(), written_out(name, reduction)
    packs = tiny_shards.loader(Rows(sources), 3, 16, tokens=64).step(1)
    assert len(packs) > 1
    assert any((pack.position_ids == 0).sum() > len(pack.position_ids) for pack, _ in packs)
    objective = Objective(recipe)
    losses = [objective.loss(student(pack, objective.ask(inputs)), inputs)[0] for pack, inputs in packs]
    found = gradient(student, torch.stack(losses).sum())
    rows = tiny_shards.stored(sources)
    slow = from_full_logits(student, [rows[place] for place in Rows(sources).order(0, 0)[16:32]], recipe)
    expected = gradient(student, slow)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(torch.stack(losses).sum(), slow, rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_three_steps_are_those_of_a_plain_adamw_loop(folders, sources, tmp_path):
    how = settings(3, warmup=0.4, weight_decay=0.1, betas=(0.8, 0.9), clip=0.05)
    fitted = fit(folders, tmp_path, Rows(sources), how)
    student, objective = opened(folders), Objective(load_recipe("topk_reverse_kl"))
    named = list(student.named_parameters())
    groups = [
        {"params": [one for name, one in named if ("norm" in name) is is_norm], "weight_decay": decay}
        for is_norm, decay in ((False, how.weight_decay), (True, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, betas=how.betas)
    for step, packs in enumerate(Loader(Rows(sources), how, MACHINE)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rates(how)[step]
        losses = [objective.loss(student(p, objective.ask(c)), c)[0] for p, c in packs]
        assert gradient(student, torch.stack(losses).sum()).norm() > how.clip
        torch.nn.utils.clip_grad_norm_(student.parameters(), how.clip)
        optimizer.step()
    torch.testing.assert_close(weights(fitted.student), weights(student), rtol=1e-4, atol=1e-5)


ON_THE_TEACHERS_VIEW_ALONE = [
    name
    for name in list_recipes()
    if load_recipe(name).views == ("teacher",)
    and load_recipe(name).sources == ("student",)
    and not load_recipe(name).reads & {"correct", "reward"}
]


@pytest.mark.parametrize("name", ON_THE_TEACHERS_VIEW_ALONE)
def test_a_recipe_trains_from_files(folders, sources, tmp_path, name):
    """From the shards through the loader to the weights, for every recipe that these shards have all columns for."""
    recipe = load_recipe(name)
    run = Run(recipe, Rows(sources, recipe, [0]), settings(2, batch=8), MACHINE, tmp_path)
    fitted = fit_student(opened(folders), run)
    assert len(fitted.history) == 2
    assert all(math.isfinite(value) for row in fitted.history for value in row.values())
    assert not torch.equal(weights(fitted.student), weights(opened(folders)))


def test_equal_settings_give_equal_weights_and_another_seed_gives_others(folders, sources, tmp_path):
    first, second, other = (
        fit(folders, tmp_path / str(number), Rows(sources), settings(seed=seed))
        for number, seed in enumerate((0, 0, 1))
    )
    assert torch.equal(weights(first.student), weights(second.student))
    assert first.history == second.history
    assert not torch.equal(weights(first.student), weights(other.student))
    assert not torch.equal(weights(first.student), weights(opened(folders)))


def _stop(kind: str) -> None:
    match kind:
        case "crash":
            raise RuntimeError("out of memory")
        case "ctrl-c":
            raise KeyboardInterrupt
        case "sigterm":
            signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def signals():
    """Lightning ignores Ctrl-C from the first one on; the tests behind this one shall not."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("where", ["in the loader", "in the step", "behind the optimiser"])
@pytest.mark.parametrize("kind", ["crash", "ctrl-c", "sigterm"])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    folders, sources, tmp_path, monkeypatch, signals, kind, where
):
    """Bit-equal weights and history, wherever in a step it was stopped."""
    how, state = settings(8, save_every=3), tmp_path / "state"
    more = {"held_out": Rows(sources[1:]), "validate_every": 4}
    undisturbed = fit(folders, tmp_path / "other", Rows(sources), how, **more)
    owner, name, last = {
        "in the loader": (Loader, "step", 6),
        "in the step": (
            Objective,
            "loss",
            6 * len(Loader(Rows(sources), how, MACHINE).step(0)),
        ),
        "behind the optimiser": (torch.optim.lr_scheduler.LambdaLR, "step", 6),
    }[where]
    original, calls = getattr(owner, name), []

    def stops(self, *arguments, **named):
        calls.append(0)
        if len(calls) == last:
            _stop(kind)
        return original(self, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, stops)
        with pytest.raises((RuntimeError, SystemExit, KeyboardInterrupt)):
            fit(folders, state, Rows(sources), how, **more)
    assert list(state.glob("step-*.ckpt"))
    resumed = fit(folders, state, Rows(sources), how, **more)
    assert [row["step"] for row in resumed.history] == list(range(1, 9))
    assert resumed.history == undisturbed.history
    assert resumed.validation == undisturbed.validation
    assert torch.equal(weights(resumed.student), weights(undisturbed.student))


def test_the_last_two_states_are_kept_and_no_half_written_one(folders, sources, tmp_path):
    fit(folders, tmp_path, Rows(sources), settings(7, save_every=2))
    assert [read_step(state) for state in list_states(tmp_path)] == [4, 6]


def _table(student: Student) -> np.ndarray:
    """Log-probabilities of a bigram student after each id."""
    ids = torch.arange(VOCABULARY)[:, None]
    with torch.no_grad():
        return student.transformer(input_ids=ids).logits[:, 0].double().log_softmax(-1).numpy()


def _kl_to(teacher: np.ndarray, student: Student) -> float:
    """Mean KL(student ‖ teacher) over the ids that something may follow."""
    table = _table(student)[1:]
    return float((np.exp(table) * (table - teacher[1:])).sum(axis=1).mean())


@pytest.fixture(scope="module")
def learned(folders, engines, tmp_path_factory):
    """Trains the student on shards that keep all ids, and says how far from the teacher it ends, in nats."""

    def learn(name: str, shift: int = 0, steps: int = 400) -> float:
        root = tmp_path_factory.mktemp("learned")
        writer, scorer = engines["student"], engines["teacher"]
        made = tiny_shards.write(root / "shards", writer, scorer, [1024], VOCABULARY, shift)
        how = Training(steps=steps, batch=64, learning_rate=0.1, schedule="cosine", clip=100.0)
        run = Run(load_recipe(name), Rows(made), how, Machine(device="cpu"), root / "state")
        return _kl_to(scorer.logprobs, fit_student(opened(folders), run).student)

    return learn


def test_student_and_teacher_are_far_apart_before(folders, engines):
    assert _kl_to(engines["teacher"].logprobs, opened(folders)) > 0.5


@pytest.mark.parametrize(
    "name",
    [
        "topk_reverse_kl",
        pytest.param("topk_forward_kl", marks=pytest.mark.slow),
        pytest.param("lightning", marks=pytest.mark.slow),
    ],
)
def test_a_student_becomes_its_teacher(learned, name):
    """With all ids kept, the shards say everything; the sampled tokens alone say it as well, in the end."""
    assert learned(name) < 1e-3


def test_scores_that_are_one_position_off_are_noticed(learned):
    """The same measure on a shard whose scores belong to the token before, or the test above would prove nothing."""
    assert learned("topk_reverse_kl", shift=1, steps=200) > 0.1


def test_sft_learns_what_its_responses_are(folders, engines, tmp_path):
    made = tiny_shards.write(tmp_path / "shards", engines["teacher"], engines["teacher"], [256])
    fitted = fit(folders, tmp_path / "state", Rows(made), settings(40, batch=64, learning_rate=3e-2), "sft")
    entropy = np.mean([reference.entropy(row) for row in engines["teacher"].logprobs])
    assert fitted.history[0]["nll"] > entropy + 0.5
    assert fitted.history[-1]["nll"] < entropy + 0.3


@pytest.mark.parametrize("train_tokens", [40, 16384])
def test_validation_kl_is_the_mean_over_all_held_out_tokens(folders, engines, sources, train_tokens):
    student = opened(folders)
    found, mass = measure_kl(student, Rows(sources), Machine(device="cpu", train_tokens=train_tokens))
    table, values, masses = engines["student"].logprobs, [], []
    for row in tiny_shards.stored(sources).values():
        contexts = [row["prompt_ids"][-1], *row["response_ids"][:-1]]
        for before, ids, kept, tail in zip(
            contexts, row["support_ids"], row["support_logprobs"], row["tail_logprobs"], strict=True
        ):
            own = reference.outcomes(list(table[before]), ids)
            values.append(reference.kl(own, reference.log_softmax([*kept, tail])))
            masses.append(1 - math.exp(own[-1]))
    assert found == pytest.approx(math.fsum(values) / len(values), rel=1e-5)
    assert mass == pytest.approx(math.fsum(masses) / len(masses), rel=1e-5)


def test_validation_changes_nothing_and_comes_when_it_should(folders, sources, tmp_path):
    plain = fit(folders, tmp_path / "plain", Rows(sources), settings())
    for every, steps in ((0, [0, 6]), (2, [0, 2, 4, 6]), (4, [0, 4, 6])):
        more = {"held_out": Rows(sources[1:]), "validate_every": every}
        fitted = fit(folders, tmp_path / str(every), Rows(sources[:1]), settings(), **more)
        assert [row["step"] for row in fitted.validation] == steps
        assert fitted.validation[-1]["validation_kl"] < fitted.validation[0]["validation_kl"]
    again = fit(folders, tmp_path / "again", Rows(sources), settings(), held_out=Rows(sources[1:]), validate_every=1)
    assert torch.equal(weights(plain.student), weights(again.student))
    assert plain.validation == []


def test_history_tells_the_loss_and_the_norm_of_each_step(folders, sources, tmp_path):
    """Of the first step, against what the objective says of the untrained student."""
    how = settings(3, warmup=0.5)
    fitted = fit(folders, tmp_path, Rows(sources), how)
    student, objective = opened(folders), Objective(load_recipe("topk_reverse_kl"))
    losses = []
    for pack, columns in Loader(Rows(sources), how, MACHINE).step(0):
        losses.append(objective.loss(student(pack, objective.ask(columns)), columns)[0])
    loss = torch.stack(losses).sum()
    first = fitted.history[0]
    assert first["loss"] == first["kl"] == pytest.approx(loss.item(), rel=1e-5)
    assert first["gradient_norm"] == pytest.approx(gradient(student, loss).norm().item(), rel=1e-4)
    assert 0 < first["support_mass"] < first["target_mass"] < 1
    assert [row["learning_rate"] for row in fitted.history] == pytest.approx(learning_rates(how))


def test_a_large_gradient_is_clipped(folders, sources, tmp_path):
    """Adam hides the size of a gradient but for its epsilon: with a tiny bound nothing moves."""
    clipped = fit(folders, tmp_path, Rows(sources), settings(1, clip=1e-12, schedule="constant"))
    moved = (weights(clipped.student) - weights(opened(folders))).abs().max()
    free = fit(folders, tmp_path / "free", Rows(sources), settings(1, schedule="constant"))
    assert moved < 1e-4 < (weights(free.student) - weights(opened(folders))).abs().max()


def _half_cosine(steps: int) -> list[float]:
    return [0.5 * (1 + math.cos(math.pi * done / steps)) for done in range(steps)]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"schedule": "constant", "warmup": 0.25}, [0.0, 0.5, *[1.0] * 6]),
        ({"schedule": "linear", "warmup_steps": 2}, [0.0, 0.5, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ({"schedule": "cosine", "warmup": 0.25}, [0.0, 0.5, *_half_cosine(6)]),
        ({"schedule": "linear", "minimum_rate": 0.2}, [0.2 + 0.8 * left / 8 for left in range(8, 0, -1)]),
        ({"schedule": "cosine", "minimum_rate": 0.1}, [0.1 + 0.9 * factor for factor in _half_cosine(8)]),
        ({"schedule": "wsd", "warmup": 0.25, "decay": 0.5}, [0.0, 0.5, 1.0, 1.0, *_half_cosine(4)]),
        ({"schedule": "wsd", "decay": 0.25, "minimum_rate": 0.5}, [*[1.0] * 6, 1.0, 0.75]),
    ],
    ids=str,
)
def test_the_learning_rate_rises_and_falls_as_the_settings_say(how, expected):
    assert learning_rates(settings(8, **how)) == pytest.approx([1e-2 * factor for factor in expected])


@given(kind=st.sampled_from(["constant", "cosine", "linear"]), steps=st.integers(1, 300), rate=st.floats(1e-6, 1.0))
def test_without_a_warmup_the_learning_rates_are_to_the_bit_those_that_older_checkpoints_were_trained_with(
    kind, steps, rate
):
    """Their identities are those of today: nobody trains them anew."""
    how = settings(steps, learning_rate=rate, schedule=kind)
    factors = {
        "constant": [1.0 for _ in range(steps)],
        "cosine": [0.5 * (1 + math.cos(math.pi * (step / steps))) for step in range(steps)],
        "linear": [1 - step / steps for step in range(steps)],
    }
    assert learning_rates(how) == [rate * factor for factor in factors[kind]]


def test_a_schedule_enters_an_identity_where_it_is_of_a_kind_that_older_checkpoints_had_not():
    plain = settings(warmup=0.0).identity
    assert set(plain) == {
        "steps", "batch", "learning_rate", "schedule", "warmup", "betas", "weight_decay", "clip", "precision", "seed",
    }  # fmt: skip
    by = {"schedule_by": "transformers"}
    assert settings(warmup=0.5).identity == plain | {"warmup": 0.5} | by
    assert settings(warmup_steps=3).identity == plain | {"warmup_steps": 3} | by
    assert settings(warmup=0.01).identity == plain | {"warmup": 0.01}  # of 6 steps none
    assert settings(minimum_rate=0.1).identity == plain | {"minimum_rate": 0.1}
    assert settings(schedule="wsd", decay=0.5).identity == plain | {"schedule": "wsd", "decay": 0.5}
    assert settings(save_every=1).identity == plain


def test_parameters_are_fp32_whatever_is_on_the_disk(folders, tmp_path):
    """bf16 parameters would hardly move at usual learning rates."""
    student = opened(folders)
    student.transformer.bfloat16().save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    again = open_student(record_model(str(tmp_path)))
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}


def test_a_checkpoint_opens_as_the_same_student(folders, sources, tmp_path):
    fitted = fit(folders, tmp_path / "state", Rows(sources), settings(), held_out=Rows(sources[1:]))
    start = record_model(str(folders["student"]))
    identity = {"stage": "test"}
    fitted = replace(fitted, alarms=[(3, Alarm("mass", "probability leaves them."))])
    save_checkpoint(tmp_path / "r1", fitted, Origin(identity, start, start.eos_ids, {"sft_teacher": {"name": "t"}}))
    again = open_student(read_model(tmp_path / "r1"))
    assert torch.equal(weights(again), weights(fitted.student))
    about = read_checkpoint(tmp_path / "r1")
    assert (about["identity"], about["sft_teacher"]) == (identity, {"name": "t"})
    assert about["validation_kl"] == fitted.validation[-1]["validation_kl"]
    assert about["alarms"] == [{"step": 3, "name": "mass", "text": "probability leaves them."}]
    history = (tmp_path / "r1" / "history.csv").read_text().splitlines()
    assert len(history) == 7
    assert history[0].startswith("step,learning_rate,gradient_norm,loss")
    assert read_model(tmp_path / "r1").tokenizer == start.tokenizer
