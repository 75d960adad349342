"""The settings of machine.yaml: where and how fast stages run, never what they compute."""

from pathlib import Path
from typing import Literal

from pipeline.settings.reading import Positive, Settings, Share, parse, read_yaml


class VllmMachine(Settings):
    """How vLLM uses this machine."""

    tensor_parallel_size: Positive = 1
    """GPUs that one model is spread over."""
    gpu_memory_utilization: Share = 0.85
    """Share of each GPU's memory; scoring needs room that vLLM does not foresee, so less than vLLM's own 0.9."""
    cpu_cache_gib: Positive = 1
    """On a CPU: GiB for the key-value cache."""
    max_num_seqs: Positive = 256
    """Sequences computed at once."""
    max_num_batched_tokens: Positive = 2048
    """Tokens computed at once; fewer where vLLM's own log-probabilities would hold more than 2^28 logits (1,766 tokens
    at 151,936 ids): it does not foresee the memory for them."""
    enforce_eager: bool = False
    """Do not capture CUDA graphs: slower, starts sooner."""


class Machine(Settings):
    """Settings of .potstill/machine.yaml; every key has a default."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Positive = 1
    """GPUs, or processes on a CPU, that train together."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How several devices share the student. `ddp`: each holds all of it. `fsdp`: each holds a share (FSDP2)."""
    generate_rows: Positive = 512
    """`hf`: responses written at once."""
    score_tokens: Positive = 16384
    """`hf`: tokens scored at once."""
    train_tokens: Positive = 16384
    """Tokens in one forward and backward pass of training."""
    vllm: VllmMachine = VllmMachine()


def load_machine(path: Path) -> Machine:
    """Read and check machine.yaml; where there is none, every default holds.

    Raises:
        SettingsError: the file is no YAML, or some settings are wrong; all mistakes are named at once.
    """
    return parse(Machine, path, read_yaml(path) or {}) if path.exists() else Machine()
