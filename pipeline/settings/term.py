"""A term: one summand of a recipe, a choice on every axis, and what is refused with its reason.

A value that other software offers and that is known to fail is read here only to be refused by name.
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.settings.reading import Name, NonNegativeFloat, Positive, PositiveFloat, Schedule, Settings
from pipeline.settings.targets import AnyTarget
from pipeline.settings.weights import AnyWeight


class Ratio(Settings):
    """How the student has moved since the token was written, or away from what the token was drawn from."""

    kind: Literal["importance", "two_sided", "proximal"]
    """`importance`: at most `high`. `two_sided`: 0 outside [low, high]. `proximal`: PPO's clip, 1 − low to 1 + high."""
    low: NonNegativeFloat | None = None
    high: PositiveFloat | None = None

    @property
    def of(self) -> Literal["sampling_logprobs", "behaviour_logprobs"]:
        """The fact below the line: what was drawn from, or for a trust region the student that wrote, whole.

        A trust region has to be around the student as training found it: around a distribution with a temperature or
        a top-p, the student would leave it before the first step.
        """
        return "sampling_logprobs" if self.kind == "importance" else "behaviour_logprobs"

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest ratio that counts as it is."""
        low, high = self.low or 0.0, math.inf if self.high is None else self.high
        return (1 - low, 1 + high) if self.kind == "proximal" else (low, high)

    @model_validator(mode="after")
    def _has_bounds(self) -> Self:
        if self.kind == "importance" and self.low is not None:
            raise ValueError("an `importance` ratio has no `low`")
        if self.kind != "importance" and (self.low is None or self.high is None):
            raise ValueError(f"a `{self.kind}` ratio needs `low` and `high`")
        return self


_REFUSED = {
    "truncate": "the un-normalised sum over some ids has a gradient at the target itself and drives probability out of "
    "them (student mass 0.36 where the teacher has 0.96). Take `bucket`, or `stop_gradient`",
    "log_ratio": "the mean log-ratio as a plain loss pushes every sampled token down: its gradient is that of log "
    "student alone. Take `policy_gradient`",
    "gold": "the pipeline has no gold responses. Take `source: teacher`, its correct ones with "
    "`{kind: where, fact: correct}`",
}
"""What is refused by name, and why: the first two were measured, and published (arXiv:2605.11182)."""


def _known_to_fail(value: Any) -> Any:
    if isinstance(value, str) and value in _REFUSED:
        raise ValueError(f"`{value}` is refused: {_REFUSED[value]}")
    return value


_Refusing = BeforeValidator(_known_to_fail)


class Term(Settings):
    """One summand of the loss."""

    estimator: Annotated[Literal["analytic", "policy_gradient", "residual", "nll", "preference"], _Refusing]
    """`analytic`: the divergence itself. `policy_gradient`: the sampled token's advantage. `residual`: the reverse KL
    over the ids, and the sampled token for what is outside. `nll`: SFT. `preference`: the teacher's response to a
    prompt over the student's; the view is the reference."""
    divergence: Literal["reverse_kl", "forward_kl", "jsd", "mixture"] | None = None
    beta: Annotated[float, Field(gt=0, lt=1)] | Schedule | None = None
    """`jsd`: weight of the target in the middle distribution. `mixture`: share of the reverse KL. `preference`: what a
    nat of the log-ratios counts for."""
    source: Annotated[Literal["student", "teacher"], _Refusing] = "student"
    """Whose responses it is taken on."""
    view: Name | None = "teacher"
    """Whose log-probabilities are the target; null where there is none, or `target` composes one."""
    target: AnyTarget | None = None
    """A target put together from several views."""
    support: Literal["sampled", "view", "own", "intersection"]
    """`sampled`: the response token alone. `view`: all ids that the view kept. `own`: of these its own likeliest.
    `intersection`: of these those that are also among the student's likeliest."""
    top_k: Positive | None = None
    """`own`: so many of them; null for all. `intersection`: so many of the student's."""
    view_top_k: Positive | None = None
    """`intersection`: so many of the view's own likeliest; null for all ids that it kept."""
    tail: Annotated[
        Literal["bucket", "renormalise", "renormalise_target", "stop_gradient", "student_weighted"], _Refusing
    ] = "bucket"
    """What becomes of the probability outside the ids; `bucket`: one outcome more."""
    entry_clip: PositiveFloat | None = None
    """Most that one id may add to a divergence, nats."""
    advantage: Literal["live", "stored"] = "live"
    """Log target − log of which student: as it is, or as it wrote the token."""
    advantage_clip: PositiveFloat | None = None
    """Nats; `policy_gradient` only."""
    advantage_floor: float | None = None
    """Nats; `policy_gradient` only."""
    baseline: Literal["none", "kl"] = "none"
    """`kl`: minus the reverse KL over the outcomes, the advantage's mean under the student."""
    bonus: Name | None = None
    """A derived column that is added to the advantage; with `view: null` it is the advantage."""
    ratio: Ratio | None = None
    weights: tuple[AnyWeight, ...] = ()
    """What each token counts for: the product of these."""
    coefficient: PositiveFloat | Schedule = 1.0
    reduction: Literal["token_mean", "sequence_mean", "selected_mean", "selected_sequence_mean", "rescaled_mean"] = (
        "token_mean"
    )
    """`token_mean`: over all response tokens of a step. `sequence_mean`: over each response, then over responses.
    `selected_mean`: over what the weights leave. `selected_sequence_mean`: over what they leave of each response, then
    over responses. `rescaled_mean`: over all response tokens, the weights having mean 1 over those that they leave."""
    fixed_point: Annotated[str, Field(pattern=r"^(target$|stated\(.+\)$|none: .+)")] = "target"
    """Where the gradient is zero: at the view, at a target of its own, or nowhere (and why)."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        match self.estimator:
            case "analytic" if self.support == "sampled" or self.divergence is None:
                raise ValueError("`analytic` needs `support: view` and a divergence: one token has no divergence")
            case "policy_gradient" if self.support != "sampled" or self.divergence not in ("reverse_kl", None):
                raise ValueError("`policy_gradient` needs `support: sampled` and `divergence: reverse_kl`: one over "
                                 "ids does not depend on the action, so its expected gradient is zero")  # fmt: skip
            case "nll" if self.has_target or self.divergence is not None or self.support != "sampled":
                raise ValueError("`nll` has no target: `support: sampled`, `view: null` and no divergence")
            case "residual" if self.support != "view" or self.divergence != "reverse_kl" or self.target:
                raise ValueError("`residual` needs `support: view`, `divergence: reverse_kl` and one view: the sampled "
                                 "token stands for all ids that it does not keep")  # fmt: skip
            case "preference":
                self._is_plain_preference()
        if self.view is not None and self.target is not None:
            raise ValueError("`target` composes views: leave `view` null")
        if not self.has_target and self.estimator != "nll" and self.bonus is None:
            raise ValueError(f"`{self.estimator}` needs a view as target")
        if self.has_target and self.estimator == "policy_gradient" and self.divergence is None:
            raise ValueError("`policy_gradient` needs `support: sampled` and `divergence: reverse_kl`")
        self._options_have_a_use()
        self._refuse_what_fails()
        return self

    def _is_plain_preference(self) -> None:
        is_of_whole_pairs = self.reduction == "sequence_mean" and self.source == "student"
        has_more = self.divergence is not None or self.weights or self.ratio is not None
        if self.view is None or self.support != "sampled" or not is_of_whole_pairs or has_more:
            raise ValueError("`preference` needs `support: sampled`, one view as the reference and `reduction: "
                             "sequence_mean`: a pair counts as a whole, of both sources, without weights")  # fmt: skip
        if not self.fixed_point.startswith("none"):
            raise ValueError("`preference` has no fixed point at the view: say `fixed_point: 'none: …'`")

    def _options_have_a_use(self) -> None:
        """Refuse an option that would do nothing."""
        for option in ("advantage_clip", "advantage_floor", "bonus"):
            if getattr(self, option) is not None and self.estimator != "policy_gradient":
                raise ValueError(f"`{option}` goes with `policy_gradient`, found `{self.estimator}`")
        if (self.baseline != "none" or self.advantage != "live") and self.estimator != "policy_gradient":
            raise ValueError(f"`advantage` and `baseline` go with `policy_gradient`, found `{self.estimator}`")
        has_beta = self.divergence in ("jsd", "mixture") or self.estimator == "preference"
        if (self.beta is None) == has_beta:
            raise ValueError(f"`beta` goes with `jsd` and `mixture`, and is needed there; found `{self.divergence}`")
        if self.top_k is not None and self.support not in ("own", "intersection"):
            raise ValueError(f"`top_k` goes with `own` and `intersection`, found `support: {self.support}`")
        if self.support == "intersection" and self.top_k is None:
            raise ValueError("`intersection` needs `top_k`: how many ids of the student's own")
        if self.view_top_k is not None and self.support != "intersection":
            raise ValueError(f"`view_top_k` goes with `intersection`, found `support: {self.support}`")
        if self.entry_clip is not None and (self.estimator != "analytic" or self.divergence == "mixture"):
            raise ValueError("`entry_clip` goes with `analytic` and one divergence")
        if self.target is not None and self.target.is_of_sampled and self.support != "sampled":
            raise ValueError(f"a `{self.target.kind}` target is known at the sampled token alone: `support: sampled`")
        if self.ratio is not None and self.ratio.kind == "proximal" and self.estimator != "policy_gradient":
            raise ValueError(f"a `proximal` ratio goes with `policy_gradient`, found `{self.estimator}`")
        if self.is_of_selected and not self.weights:
            raise ValueError(f"`{self.reduction}` is over what the weights leave: it needs `weights`")

    def _refuse_what_fails(self) -> None:
        if self.tail == "renormalise" and self.top_k == 1:
            raise ValueError("one id, renormalised, has probability 1 whatever the student says: raise `top_k`")
        plain = self.estimator == "analytic" and self.divergence == "reverse_kl"
        if self.tail in ("stop_gradient", "student_weighted") and not plain:
            raise ValueError(f"`tail: {self.tail}` goes with `analytic` and `reverse_kl`")
        if self.tail == "renormalise_target" and self.divergence != "forward_kl":
            # The un-normalised side of a reverse KL is the student: the same runaway as `truncate`.
            raise ValueError("`tail: renormalise_target` goes with `forward_kl`")
        if self.tail != "bucket" and self.estimator != "analytic":
            raise ValueError(f"`tail` goes with `analytic`, found `{self.estimator}`")
        if self.tail == "renormalise_target" and not self.fixed_point.startswith("none"):
            raise ValueError("`tail: renormalise_target` has no fixed point at the view: say `fixed_point: 'none: …'`")
        live = [weight for weight in self.weights if weight.is_live]
        is_sum_known = all(weight.has_known_sum for weight in live) and len(live) < 2
        if self.is_of_selected and not is_sum_known:
            raise ValueError(f"`{self.reduction}` divides by a sum that must be known before the forward pass: of the "
                             "live weights one `top_fraction` or `zone` alone has such a sum")  # fmt: skip
        if self.reduction == "rescaled_mean" and live:
            raise ValueError("`rescaled_mean` counts the tokens that the weights leave before the forward pass: it "
                             "goes without live weights")  # fmt: skip

    @property
    def has_target(self) -> bool:
        """Whether it learns from views."""
        return self.view is not None or self.target is not None

    @property
    def sources(self) -> tuple[str, ...]:
        """Whose responses it is taken on."""
        return ("student", "teacher") if self.estimator == "preference" else (self.source,)

    @property
    def views(self) -> tuple[str, ...]:
        """The views that its target is made of."""
        if self.target is not None:
            return self.target.view_names
        return () if self.view is None else (self.view,)

    @property
    def learned_views(self) -> tuple[str, ...]:
        """The views that it learns towards: of `views` not those that it only compares with."""
        if self.estimator == "preference":
            return ()
        return self.views if self.target is None else self.target.learned_views

    @property
    def own_top_k(self) -> int | None:
        """How many of the likeliest ids of its views it takes; None for all that they kept."""
        return self.view_top_k if self.support == "intersection" else self.top_k

    @property
    def reads_own(self) -> bool:
        """Whether it tells a view's own likeliest ids from those that other views asked it for."""
        return self.support == "own" or self.view_top_k is not None

    @property
    def gated_views(self) -> frozenset[str]:
        """The views whose unscored rows it leaves out: it gates them, or routes rows of other domains past them."""
        routed = () if self.target is None else self.target.by_domain.values()
        return frozenset(routed).union(*(weight.gated_views for weight in self.weights))

    @property
    def reads(self) -> frozenset[str]:
        """The facts of rows and tokens that it reads (names of `Inputs.facts`), derived columns left out."""
        of_ratio = frozenset[str]() if self.ratio is None else frozenset({self.ratio.of})
        own = of_ratio | (frozenset({"behaviour_logprobs"}) if self.advantage == "stored" else frozenset())
        of_target = frozenset() if self.target is None else self.target.reads
        return own.union(of_target, *(weight.reads for weight in self.weights))

    @property
    def derived_columns(self) -> frozenset[str]:
        """The derived columns that it reads."""
        own = frozenset(() if self.bonus is None else (self.bonus,))
        of_target = frozenset() if self.target is None else self.target.derived_columns
        return own.union(of_target, *(weight.derived_columns for weight in self.weights))

    @property
    def reads_ids(self) -> bool:
        """Whether it reads the views' ids and tails, not the sampled token alone."""
        of_target = self.target is not None and self.target.needs_ids
        of_weights = any(weight.needs_ids for weight in self.weights)
        return self.has_target and (self.support != "sampled" or self.baseline == "kl" or of_target or of_weights)

    @property
    def reads_entropy(self) -> bool:
        """Whether it reads the student's entropy."""
        return any(weight.needs_entropy for weight in self.weights)

    @property
    def reads_target_entropy(self) -> bool:
        """Whether it reads the entropy of its view."""
        return any(weight.needs_target_entropy for weight in self.weights)

    @property
    def is_stored_advantage_unclipped(self) -> bool:
        """Whether repeated passes over the same rows follow a fixed linear reward past the target."""
        is_bounded = self.ratio is not None and self.ratio.kind != "importance"
        return self.advantage == "stored" and not is_bounded

    @property
    def has_own_factors(self) -> bool:
        """Whether its tokens count otherwise than all response tokens of a step do."""
        return bool(self.weights)

    @property
    def is_of_selected(self) -> bool:
        """Whether its reduction divides by what the weights leave."""
        return self.reduction in ("selected_mean", "selected_sequence_mean", "rescaled_mean")
