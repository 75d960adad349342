"""What settings say of models: which, how they are run, drawn from and trained, and how the demo makes its own."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.settings.reading import NonNegative, Positive, PositiveFloat, Settings, Share

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
    """What SFT and distillation share."""

    steps: NonNegative
    """Optimiser steps."""
    batch: Positive
    """Sequences in one optimiser step, over all devices."""
    learning_rate: PositiveFloat
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """From the learning rate to zero over the steps, after the warm-up."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the steps over which the learning rate rises from zero."""
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: PositiveFloat = 1.0
    """Largest norm of the gradient."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Parameters are fp32 in both; `bf16-mixed` multiplies matrices in bf16."""
    save_every: Positive = 100
    """Steps between two saved training states; a killed run repeats at most so many."""
    seed: int = 0


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
    seed: int = 0


class Models(Settings):
    """Which models; a name is a folder or `owner/name@revision` on the Hugging Face Hub."""

    teacher: str
    student: str
    demo: Demo | None = None
    """Make both models here instead of opening them; for the demo and for trials."""
