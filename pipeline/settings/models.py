"""Settings of models: which they are, how they are run, sampled and trained, and how the demo makes its own."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.settings.reading import NonNegative, Positive, PositiveFloat, Seed, Settings, Share

Beta = Annotated[float, Field(ge=0, lt=1)]

EngineName = Literal["hf", "vllm", "fake"]


class EngineSettings(Settings):
    """How a model is run where it writes or scores."""

    engine: EngineName = "hf"
    """`hf`: transformers, exact, everywhere. `vllm`: fast, many GPUs, quantised. `fake`: a bigram model, for tests."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantization: str | None = None
    """A quantisation method of vLLM's (`fp8`, `awq`, …); null takes what the checkpoint says."""
    max_model_len: Positive | None = None
    """Longest sequence, tokens; null takes the model's own limit."""
    adapter: str | None = None
    """A folder with a LoRA adapter in peft's format, put on top of the teacher: the same in `teacher_rollouts` and
    `score`, where no view has another model, and nowhere else."""

    @model_validator(mode="after")
    def _vllm_alone(self) -> Self:
        if self.quantization and self.engine != "vllm":
            raise ValueError(f"quantization needs `engine: vllm`, found `engine: {self.engine}`")
        return self


class Sampling(Settings):
    """The distribution that responses are drawn from."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """0 takes the likeliest token each time."""
    top_p: Share = 1.0
    top_k: NonNegative = 0
    """0 keeps the whole vocabulary."""
    max_tokens: Positive
    """Longest response, tokens, end-of-sequence token included."""

    @property
    def is_whole(self) -> bool:
        """Whether a response is drawn from the model's own distribution, so that both log-probabilities agree."""
        return self.temperature == 1.0 and self.top_p == 1.0 and self.top_k == 0


class Training(Settings):
    """How a student is trained, by SFT and by distillation alike."""

    steps: NonNegative
    """Optimiser steps."""
    batch: Positive
    """Sequences in one optimiser step, over all devices."""
    learning_rate: PositiveFloat
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "constant"
    """What follows the warm-up. `cosine` and `linear` fall over all steps that are left; `wsd` (warm-up, stable, decay)
    stays, and falls as a half cosine over the last `decay` of the steps."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the steps over which the learning rate rises from `minimum_rate`, which the first step has."""
    warmup_steps: NonNegative | None = None
    """The warm-up as a number of steps, in place of `warmup`."""
    decay: Share | None = None
    """`wsd`: share of the steps over which the learning rate falls in the end."""
    minimum_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """What the learning rate falls to, as a share of `learning_rate`."""
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: PositiveFloat = 1.0
    """Largest norm of the gradient."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Parameters are fp32 in both; `bf16-mixed` multiplies matrices in bf16."""
    save_every: Positive = 100
    """Steps between two saved training states; a killed run repeats at most so many."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        if self.warmup and self.warmup_steps is not None:
            raise ValueError(
                f"`warmup` ({self.warmup}) and `warmup_steps` ({self.warmup_steps}) say the same thing: leave one out"
            )
        if (self.schedule == "wsd") != (self.decay is not None):
            raise ValueError(
                "`decay` goes with `schedule: wsd` and is needed there; "
                f"found schedule: {self.schedule}, decay: {self.decay}"
            )
        if self.minimum_rate and self.schedule == "constant":
            raise ValueError("`minimum_rate` is what the rate falls to, and with `schedule: constant` it never falls")
        if self.steps and self.warmup_length + self.decay_length > self.steps:
            raise ValueError(
                f"the warm-up takes {self.warmup_length} steps and the decay {self.decay_length}, more than the "
                f"{self.steps} there are: shorten one, or raise `steps`"
            )
        return self

    @property
    def warmup_length(self) -> int:
        """Steps of the warm-up."""
        return round(self.warmup * self.steps) if self.warmup_steps is None else self.warmup_steps

    @property
    def decay_length(self) -> int:
        """Steps over which the learning rate falls in the end: with `cosine` and `linear` all after the warm-up."""
        match self.schedule:
            case "constant":
                return 0
            case "wsd":
                return round((self.decay or 0) * self.steps)
            case _:
                return max(0, self.steps - self.warmup_length)

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that change a checkpoint's weights; those of `_SINCE` only where they differ from the default.

        `save_every` changes none, and neither does what a stage's section has besides. Without steps nothing does.
        """
        if not self.steps:
            return {"steps": 0}
        identity = self.model_dump(mode="json", include=_LEARNING)
        return identity | self.model_dump(mode="json", include=_SINCE, exclude_defaults=True) | self.schedule_identity

    @property
    def schedule_identity(self) -> dict[str, str]:
        """Who computes the learning rates, told of runs with a warm-up: only their rates were once others."""
        return {"schedule_by": "transformers"} if self.warmup_length else {}


_LEARNING = {
    "steps", "batch", "learning_rate", "schedule", "warmup", "betas", "weight_decay", "clip", "precision", "seed",
}  # fmt: skip

_SINCE = {"warmup_steps", "decay", "minimum_rate"}
"""Settings that came later: checkpoints made before them keep their identity."""


class TinyModel(Settings):
    """The size of a model that the demo makes."""

    layers: Positive
    hidden: Positive
    heads: Positive


class Demo(Settings):
    """The tiny teacher and student, made on the spot by the `models` stage."""

    architecture: Literal["qwen3", "llama"] = "qwen3"
    tokenizer: Literal["characters", "bpe"] = "characters"
    teacher: TinyModel
    student: TinyModel
    examples: Positive
    """Worked sums that the teacher is trained on."""
    slips: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the digits computed in them that are wrong, so that the teacher is right, but not certain."""
    hinted: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of them whose prompt shows its hint, so that the teacher knows what to do with one."""
    training: Training
    seed: Seed = 0


class Models(Settings):
    """Which models; a name is a folder or `owner/name@revision` on the Hugging Face Hub."""

    teacher: str
    student: str
    demo: Demo | None = None
    """Make both models here instead of opening them; for the demo and for trials."""

    allow_other_template: bool = False
    """Go on where teacher and student have different chat templates."""
