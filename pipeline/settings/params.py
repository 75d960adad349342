"""The settings of params.yaml: one strict, frozen class for each section.

Only what can change a number stands in params.yaml; DVC tracks it, and a shard's identity names what it used. Where
and how fast a stage runs stands in machine.yaml, which nothing tracks. Values live in YAML, types and ranges here.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.errors import SettingsError, suggest
from pipeline.settings.models import EngineSettings, Models, Sampling, Training
from pipeline.settings.prompts import Prompts
from pipeline.settings.reading import (
    Name,
    NonNegative,
    Positive,
    PositiveFloat,
    Seconds,
    Seed,
    Settings,
    parse,
    read_yaml,
)
from pipeline.settings.recipe import Recipe, load_recipe
from pipeline.settings.refresh import Refresh
from pipeline.settings.views import Sibling, View


class TeacherRollouts(EngineSettings):
    """Settings of teacher_rollouts."""

    sampling: Sampling
    samples: Positive = 1
    """Responses to each prompt."""
    seed: Seed = 0


class GradeSettings(Settings):
    """How responses are graded, by every stage that writes some."""

    grader: str
    """`exact`, `math`, or `module:function` of your own: function(response, answer) -> bool, float or dict."""
    timeout_s: Seconds = 10.0
    """Seconds for one response; a grader that takes longer is stopped, and the grade is null."""
    max_failed_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """A grader that fails on more of the responses that it is asked about ends the stage."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.grader not in ("exact", "math") and ":" not in self.grader:
            raise ValueError(f"`exact`, `math` or `module:function` is expected, found `{self.grader}`")
        return self


class Sft(Training):
    """Settings of sft. `steps: 0` passes an already trained student through."""

    keep: Literal["all", "correct"] = "all"
    """Which of the teacher's responses to learn from."""
    teacher: str | None = None
    """With `steps: 0`: whose rollouts the student was trained on, as in models.teacher, or `unknown`."""
    batch: Positive = 1
    """As `train.batch`; needed where there are steps."""
    learning_rate: PositiveFloat = 1.0
    """As `train.learning_rate`; needed where there are steps."""

    @model_validator(mode="after")
    def _steps_have_their_numbers(self) -> Self:
        missing = [name for name in ("batch", "learning_rate") if name not in self.model_fields_set]
        if self.steps and missing:
            raise ValueError(f"`{missing[0]}` is needed for {self.steps} steps, found none")
        return self

    @model_validator(mode="after")
    def _teacher_known(self) -> Self:
        if (self.steps == 0) != (self.teacher is not None):
            raise ValueError(
                "`teacher` says whose data an already trained student learned from: name it (or `unknown`) with "
                f"`steps: 0`, and only there; found steps: {self.steps}, teacher: {self.teacher}"
            )
        return self


class Score(EngineSettings):
    """Settings of score."""

    views: dict[Name, View]
    entropies: bool = True
    """Keep the entropy of each position over the whole vocabulary."""
    hidden_states: bool = True
    """`engine: vllm` only: score from last hidden states (exact). False reads vLLM's own prompt log-probabilities:
    the tail is then derived and there are no entropies."""
    allow_sft_teacher: str | None = None
    """Accept a student that was fine-tuned on this other teacher's data; its gradient is then biased."""

    @model_validator(mode="after")
    def _views_exist(self) -> Self:
        if "teacher" not in self.views:
            raise ValueError(f"a view named `teacher` is expected, found {sorted(self.views)}")
        for name, view in self.views.items():
            for other in view.support.same_as:
                if other not in self.views or other == name:
                    raise ValueError(
                        f"view `{name}` takes ids from `{other}`, which is no other view; "
                        f"{suggest(other, sorted(set(self.views) - {name}))}"
                    )
                if self.views[other].support.top_k is None:
                    raise ValueError(f"view `{name}` takes ids from `{other}`, which has no `top_k` of its own")
        return self

    @model_validator(mode="after")
    def _prompt_logprobs_suffice(self) -> Self:
        if self.hidden_states:
            return self
        if self.engine != "vllm":
            raise ValueError(f"`hidden_states: false` needs `engine: vllm`, found `engine: {self.engine}`")
        supports = {name: view.support for name, view in self.views.items()}
        asking = [name for name, its in supports.items() if its.same_as or its.behaviour or its.ids]
        if asking:
            raise ValueError(
                f"view `{asking[0]}` takes ids from elsewhere (`same_as`, `behaviour`, `ids`), and vLLM's "
                "prompt log-probabilities are of its own top k alone: set `hidden_states: true`"
            )
        return self


def _trainable(objective: Any) -> Any:
    """Refuse what is no recipe, and a recipe that reads responses which this stage does not have."""
    if not isinstance(objective, str | dict):
        raise ValueError(f"expected a recipe's name, or a recipe written out, found {objective!r}")
    try:
        recipe = load_recipe(objective)
    except SettingsError as error:
        raise ValueError(str(error).replace("\n", "\n  ")) from None
    if "student" not in recipe.sources:
        raise ValueError(f"`{recipe.name}` has no term on the student's own responses. Use it in `sft`.")
    return objective


class Train(Training):
    """Settings of train."""

    objective: Annotated[str | dict[str, Any], BeforeValidator(_trainable)]
    """A recipe's name (`potstill recipes` lists them), or a recipe written out."""
    validate_every: NonNegative = 0
    """Steps between two measurements of the KL on the held-out bucket; 0: only before and after."""
    allow_sft_teacher: str | None = None
    """Accept a student that was fine-tuned on this other teacher's data, as `score.allow_sft_teacher` does."""

    @property
    def recipe(self) -> Recipe:
        """The recipe that `objective` names or writes out."""
        return load_recipe(self.objective)


class Evaluate(EngineSettings):
    """Settings of evaluate."""

    samples: Positive = 4
    """k of avg@k and pass@k."""
    sampling: Sampling
    """How the k samples are drawn; the greedy response has temperature 0."""
    seed: Seed = 0


class Report(Settings):
    """Settings of report."""

    rollouts: NonNegative = 5
    """Rollouts shown token by token."""
    title: str = "Potstill"


class Round(Settings):
    """One round of refresh, score, train and evaluate."""

    prev: Name
    """The round whose student writes."""


class Params(Settings):
    """The whole of params.yaml."""

    models: Models
    prompts: Prompts
    teacher_rollouts: TeacherRollouts
    sft: Sft
    refresh: Refresh
    grade: GradeSettings
    score: Score
    train: Train
    evaluate: Evaluate
    report: Report
    rounds: dict[Name, Round]

    @property
    def reads_teacher_rollouts(self) -> bool:
        """Whether anything learns from the teacher's own responses, or scores them."""
        scored = any(view.teacher_rollouts for view in self.score.views.values())
        return bool(self.sft.steps) or scored or "teacher" in self.train.recipe.sources

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if "r0" in self.rounds:
            raise ValueError("rounds.r0: `r0` is the SFT student; call the first round `r1`")
        before = ["r0"]
        for name, this in self.rounds.items():
            if this.prev not in before:
                raise ValueError(
                    f"rounds.{name}.prev: `r0` or a round above it is expected, found `{this.prev}`; "
                    f"{suggest(this.prev, before)}"
                )
            before.append(name)
        if self.reads_teacher_rollouts and all(source.split != "sft" for source in self.prompts.sources):
            raise ValueError(
                "prompts.sources: none has `split: sft`, and the teacher's responses to such prompts are learned from "
                "or scored: add one, or pass a trained student through with `sft.steps: 0`"
            )
        if self.refresh.samples == 1:
            alone = [name for name, view in self.score.views.items() if isinstance(view.context, Sibling)]
            if alone:
                raise ValueError(
                    f"score.views.{alone[0]}.context shows another response to the same prompt, and refresh.samples "
                    "is 1: set it to 2 at least"
                )
        asks = [name for name, view in self.score.views.items() if view.support.behaviour]
        if asks and not self.refresh.behaviour_top_k:
            raise ValueError(
                f"score.views.{asks[0]}.support.behaviour needs the ids that the student found likeliest: "
                "set refresh.behaviour_top_k"
            )
        return self

    @model_validator(mode="after")
    def _objective_has_its_views(self) -> Self:
        recipe, views = self.train.recipe, self.score.views
        if missing := [view for view in recipe.views if view not in views]:
            raise ValueError(
                f"train.objective `{recipe.name}` needs {recipe.describe_view(missing[0])}: name it in score.views, "
                f"where {', '.join(sorted(views))} are"
            )
        if unscored := [view for view in recipe.teacher_views if not views[view].teacher_rollouts]:
            raise ValueError(
                f"train.objective `{recipe.name}` needs {recipe.describe_view(unscored[0])} over the teacher's own "
                f"responses, too: set `score.views.{unscored[0]}.teacher_rollouts: true`"
            )
        return self

    @model_validator(mode="after")
    def _an_adapter_is_the_teachers(self) -> Self:
        """Refuse an adapter on any model but the teacher: models are known by their weights, so no check sees it."""
        for name, section in (("refresh", self.refresh), ("evaluate", self.evaluate)):
            if section.adapter is not None:
                raise ValueError(
                    f"{name}.adapter would be put on every student as well: leave it out, or merge it into one"
                )
        wrote, scores = self.teacher_rollouts.adapter, self.score.adapter
        if wrote != scores:
            raise ValueError(
                f"teacher_rollouts.adapter is {wrote}, score.adapter {scores}: these are two teachers, and the "
                "gradient would be biased (arXiv:2604.13010). Set both to the same"
            )
        others = [name for name, view in self.score.views.items() if view.model != "teacher"]
        if scores is not None and others:
            raise ValueError(
                f"score.adapter would be put on the model of score.views.{others[0]} as well: merge it into "
                "models.teacher, or remove the view"
            )
        return self


def load_params(path: Path) -> Params:
    """Read and check params.yaml as a whole.

    Raises:
        SettingsError: the file is missing or no YAML, or some settings are wrong; all mistakes are named at once.
    """
    return parse(Params, path, read_yaml(path))
