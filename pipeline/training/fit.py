"""Training from shards with Lightning, the same for SFT and distillation, which differ in their recipe alone.

Parameters and optimiser state are fp32. An item of the loader is an optimiser step, optimisation is manual, and the
shares of a step's tokens sum to 1 over all its packs, so the loss does not depend on how a step is cut into packs. A
run's state is saved outside the output folder, which DVC deletes before it runs a stage again.
"""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from pipeline.errors import DivergedError, ModelError, SettingsError
from pipeline.models.student import Student, find_unfinite
from pipeline.objectives import diagnostics
from pipeline.settings.machine import Machine
from pipeline.training.callbacks import SavedState, StepBar
from pipeline.training.loader import Loader
from pipeline.training.module import Distillation, ShardedDistillation
from pipeline.training.processes import STOPPED, run_on_devices
from pipeline.training.run import Fitted, Run
from pipeline.training.states import WholeFiles, find_state

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # it announces which devices there are not


def fit_student(student: Student, run: Run) -> Fitted:
    """Train a student; where an earlier run of the same identity was stopped, go on from its last saved state.

    Raises:
        ModelError: a trainable parameter is rounded to 16 bits.
        SettingsError: the batch cannot be shared evenly by the devices.
    """
    for name, parameter in student.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            raise ModelError(
                f"{name} is to be trained and is {parameter.dtype}: usual learning rates hardly move what is rounded "
                "to 16 bits. Open the student with `dtype=torch.float32`; `bf16-mixed` still computes in bf16."
            )
    if run.machine.device == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            ".potstill/machine.yaml asks for `device: cuda`, and torch sees no GPU here. Set `device: auto` or `cpu`, "
            "or run the stage where there is one."
        )
    if run.settings.steps == 0:
        return Fitted(student.eval(), [], [], [])
    devices, saved = run.machine.devices, find_state(run.state)
    if devices == 1:
        _, history, validation = fit_share(student, run, saved)
    else:
        share = devices * run.rows.unit
        if run.settings.batch % share:
            what = "sequences" if run.rows.unit == 1 else "sequences in pairs"
            raise SettingsError(
                f"batch: {run.settings.batch} {what} cannot be shared by {devices} devices. Set `batch` to a "
                f"multiple of {share} in params.yaml, or `devices` to a divisor in .potstill/machine.yaml."
            )
        weights, history, validation = run_on_devices(fit_share, devices, student, run, saved)
        student.load_state_dict(weights)
    if (weight := find_unfinite(student)) is not None:
        raise DivergedError(
            f"after the last of {run.settings.steps} steps, weight {weight} has values that are no finite numbers: the "
            f"run diverged. Lower `learning_rate` ({run.settings.learning_rate:g})."
        )
    return Fitted(student.cpu().eval(), history, validation, diagnostics.find_first_alarms(run.recipe, history))


def fit_share(
    student: Student, run: Run, saved: Path | None
) -> tuple[dict[str, Any], list[dict[str, float]], list[dict[str, float]]]:
    """Do one device's part of a run, from the beginning or from a saved state.

    Returns:
        The student's weights on the CPU (empty where there is but one device), the history and the validation.
    """
    machine, settings = run.machine, run.settings
    is_sharded = machine.devices > 1 and machine.strategy == "fsdp"
    module = (ShardedDistillation if is_sharded else Distillation)(student, run)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu" if machine.device == "cpu" else "auto",
        devices=machine.devices,
        strategy=_strategy(machine),
        # FSDP2 rounds what it gathers by itself.
        precision="32-true" if is_sharded else settings.precision,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,  # StepBar is ours
        callbacks=[SavedState(run.state, settings.save_every), StepBar()],
        plugins=[WholeFiles()],
    )
    loader = Loader(run.rows, settings, machine, student.layout)
    with warnings.catch_warnings():
        # Lightning advises on data loaders, which these are not, and uses what torch has deprecated.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"lightning\..*")
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
        student.train()
        try:
            trainer.fit(module, train_dataloaders=loader, ckpt_path=saved, weights_only=True)
        except SIGTERMException:  # it would end the process with 0, as if the stage had finished
            sys.exit(STOPPED)
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(student, options=whole) if machine.devices > 1 else {}
    return weights, module.history, module.validation


def _strategy(machine: Machine) -> Any:
    if machine.devices == 1:
        return "auto"
    if machine.strategy == "ddp":
        return "ddp"
    return ModelParallelStrategy(
        data_parallel_size=machine.devices, tensor_parallel_size=1, save_distributed_checkpoint=False
    )
