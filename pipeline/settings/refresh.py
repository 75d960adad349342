"""Settings of refresh: how the student writes, and which of its older rollouts are still fresh."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.settings.models import EngineSettings, Sampling
from pipeline.settings.reading import NonNegative, Positive, PositiveFloat, Seed, Share


class Refresh(EngineSettings):
    """Settings of refresh."""

    sampling: Sampling
    samples: Positive = 1
    """Responses to each prompt (a group)."""
    behaviour_top_k: NonNegative = 0
    """Keep the student's own likeliest ids at each position; 0 keeps none."""
    policy: Literal["all", "drift", "fraction"] = "all"
    """Which shards of the round before are written anew: all, those past `bound`, or the stalest `fraction`."""
    bound: PositiveFloat | None = None
    """`drift`: nats per token between the student that wrote a shard and the student now."""
    fraction: Share | None = None
    """`fraction`: share of the shards, those that drifted furthest first."""
    drift_rows: Annotated[int, Field(ge=2, lt=2**31)] = 32
    """Responses of each shard that drift is measured on at first."""
    most_drift_rows: Positive = 512
    """Responses at most, where the interval of a shard's drift leaves `policy` undecided: twice as many each time."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _policy_has_its_number(self) -> Self:
        for policy, name in (("drift", "bound"), ("fraction", "fraction")):
            if (self.policy == policy) != (getattr(self, name) is not None):
                raise ValueError(
                    f"`{name}` goes with `policy: {policy}` and is needed there; "
                    f"found policy: {self.policy}, {name}: {getattr(self, name)}"
                )
        if self.most_drift_rows < self.drift_rows:
            raise ValueError(
                f"`most_drift_rows` ({self.most_drift_rows}) is less than `drift_rows` ({self.drift_rows}), with which "
                "measuring begins: raise one, or lower the other"
            )
        return self
