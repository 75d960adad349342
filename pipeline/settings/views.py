"""Settings of views: which model scores, what it sees before a response, which token ids are kept."""

from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from pipeline.settings.reading import Name, NonNegative, Positive, Settings, Share


class SupportSettings(Settings):
    """Which token ids a view keeps at each position."""

    top_k: Positive | None = None
    mass: Share | None = None
    """Keep only the shortest prefix of the top k that holds this probability (of the whole vocabulary)."""
    min_k: Positive = 1
    """With `mass`: keep at least so many."""
    same_as: tuple[Name, ...] = ()
    """Also the ids that these views keep: all are then known under both models."""
    behaviour: bool = False
    """Also the ids that the behaviour student found likeliest (refresh.behaviour_top_k)."""
    ids: tuple[NonNegative, ...] = ()
    """Also these token ids, at every position."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_k is None and not self.same_as and not self.behaviour and not self.ids:
            raise ValueError("`top_k`, `same_as`, `behaviour` or `ids` is needed: a view keeps some ids")
        if len(set(self.ids)) < len(self.ids):
            raise ValueError(f"`ids` names {next(id_ for id_ in self.ids if self.ids.count(id_) > 1)} more than once")
        if self.mass is not None and self.top_k is None:
            raise ValueError("`mass` cuts the top k: it needs `top_k`")
        if self.top_k is not None and self.min_k > self.top_k:
            raise ValueError(f"min_k is {self.min_k}, over top_k ({self.top_k})")
        return self


def _showing(*names: str) -> AfterValidator:
    """Refuse a template that does not show exactly these, each as `{name}`."""

    def check(template: str) -> str:
        """Give the template back, or say what is wrong with it."""
        expected = " and ".join(f"{{{name}}}" for name in names)
        try:
            shown = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
        except ValueError as error:
            raise ValueError(f"the template is malformed ({error}): write {{{{ and }}}} for braces") from None
        if missing := [f"{{{name}}}" for name in names if name not in shown]:
            raise ValueError(f"the template lacks {' and '.join(missing)}")
        if unknown := sorted(shown - set(names)):
            raise ValueError(
                f"the template has {{{unknown[0]}}}, where {expected} is expected: write {{{{ and }}}} for braces"
            )
        return template

    return AfterValidator(check)


class Plain(Settings):
    """The prompt as the student saw it."""

    kind: Literal["plain"] = "plain"


class Hint(Settings):
    """The last user message with the prompt's hint."""

    kind: Literal["hint"] = "hint"
    template: Annotated[str, _showing("prompt", "hint")] = "{prompt}\n\nHint: {hint}"


class Prefix(Settings):
    """The last user message with the beginning of the prompt's hint or answer."""

    kind: Literal["prefix"] = "prefix"
    of: Literal["hint", "answer"] = "hint"
    share: Share
    """How much of it is shown, as a share of its characters, rounded up."""
    template: Annotated[str, _showing("prompt", "prefix")] = "{prompt}\n\nThe solution begins: {prefix}"


class Sibling(Settings):
    """The last user message with another response to the prompt, one that was graded correct."""

    kind: Literal["sibling"] = "sibling"
    template: Annotated[str, _showing("prompt", "sibling")] = "{prompt}\n\nA correct solution:\n{sibling}"


class Feedback(Settings):
    """The last user message with the grader's words about the response itself."""

    kind: Literal["feedback"] = "feedback"
    template: Annotated[str, _showing("prompt", "feedback")] = "{prompt}\n\nFeedback on your solution: {feedback}"


class Instruction(Settings):
    """The last user message in a frame that is the same for every prompt."""

    kind: Literal["instruction"] = "instruction"
    template: Annotated[str, _showing("prompt")]


Context = Plain | Hint | Prefix | Sibling | Feedback | Instruction


class View(Settings):
    """One scoring pass: a model, a context, a support."""

    model: str = "teacher"
    """`teacher`, `student` (the one of the round before), or a model's name as in `models`."""
    context: Annotated[Context, Field(discriminator="kind")] = Plain()
    """What the model sees before the response; `hint` is short for `{kind: hint}`, and so on."""
    domains: tuple[str, ...] = ()
    """Score only responses to prompts of these domains; none named: all."""
    support: SupportSettings
    target: bool = True
    """Whether a student learns from it; only then must its model be the teacher of the SFT data."""
    teacher_rollouts: bool = False
    """Also score the teacher's own responses, those that SFT learns from."""

    @field_validator("context", mode="before")
    @classmethod
    def _written_out(cls, context: Any) -> Any:
        return {"kind": context} if isinstance(context, str) else context

    @model_validator(mode="after")
    def _teacher_rollouts_suffice(self) -> Self:
        if self.teacher_rollouts and (self.support.behaviour or isinstance(self.context, Sibling | Feedback)):
            raise ValueError(
                "`teacher_rollouts` goes with neither `behaviour` (of the teacher's responses no likeliest ids are "
                "kept) nor a `sibling` or `feedback` context"
            )
        return self
