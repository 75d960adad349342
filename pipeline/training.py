"""Training from shards with Lightning: one module for SFT and distillation, which differ in their recipe alone.

Parameters and optimiser state are fp32. An item of the loader is an optimiser step, optimisation is manual, and the
weights of a step's tokens sum to 1, so the loss does not depend on how a step is cut into packs. A run's state is
saved outside the output folder, which DVC deletes before it runs a stage again.
"""

import logging
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from pipeline import params, ranks, validation
from pipeline.callbacks import SavedState, StepBar
from pipeline.columns import Columns
from pipeline.errors import ModelError, SettingsError
from pipeline.loading import Loader, Rows
from pipeline.objectives import diagnostics
from pipeline.objectives.compiled import Objective
from pipeline.packing import Pack
from pipeline.recipes import Recipe
from pipeline.student import Student

VERSION = 1  # raise it when equal settings would give other weights; checkpoints are then trained anew

log = logging.getLogger("train")

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # it announces which devices there are not


@dataclass(frozen=True)
class Fitted:
    """A finished run.

    Attributes:
        student: with its new weights, on the CPU.
        history: one row for each optimiser step.
        validation: KL on the held-out rows by step; empty where there were none.
        alarms: the signs of a collapse, each with the first step that showed it.
    """

    student: Student
    history: list[dict[str, float]]
    validation: list[dict[str, float]]
    alarms: list[tuple[int, diagnostics.Alarm]]


@dataclass(frozen=True)
class Run:
    """All that a run needs besides its student.

    Attributes:
        recipe: the objective.
        rows: what to train on.
        settings: the section of params.yaml.
        machine: where and how fast.
        state: folder for the training state of this run alone.
        held_out: rows for the validation KL, or None.
        validate_every: steps between two measurements; 0: only before the first and after the last.
    """

    recipe: Recipe
    rows: Rows
    settings: params.Training
    machine: params.Machine
    state: Path
    held_out: Rows | None = None
    validate_every: int = 0


class Distillation(lightning.LightningModule):
    """A student, an objective, and one optimiser step for each item of the loader."""

    def __init__(self, student: Student, run: Run):
        super().__init__()
        self.automatic_optimization = False
        self.student, self.run = student, run
        self.objective = Objective(run.recipe)
        self.history: list[dict[str, float]] = []
        self.validation: list[dict[str, float]] = []
        self.alarmed: set[str] = set()

    def configure_optimizers(self) -> Any:
        """AdamW, with the schedule of the settings."""
        settings = self.run.settings
        optimizer = torch.optim.AdamW(
            self.student.parameters(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,  # one pass over the parameters instead of twelve
        )
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(settings))]

    def training_step(self, packs: list[tuple[Pack, Columns]], _: int) -> None:
        """One optimiser step over all its packs."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        optimizer.zero_grad()  # pyright: ignore[reportAttributeAccessIssue]
        step_loss, totals = torch.zeros((), device=self.device), dict[str, Tensor]()
        devices = self.trainer.world_size
        for pack, columns in packs:
            answer = self.student(pack, self.objective.ask(pack.sampled_ids, columns))
            loss, seen = self.objective.loss(answer, columns)
            self.manual_backward(loss * devices)  # DDP and FSDP2 take the mean over devices
            step_loss = step_loss + loss.detach()
            for name, total in diagnostics.totals(seen, columns.weights["token_mean"]).items():
                totals[name] = totals.get(name, 0) + total
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.run.settings.clip)
        if devices > 1:
            step_loss = self.trainer.strategy.reduce(step_loss, reduce_op="sum")
            totals = {name: self.trainer.strategy.reduce(total, reduce_op="sum") for name, total in totals.items()}
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        optimizer.step()  # pyright: ignore[reportAttributeAccessIssue]
        rate = scheduler.get_last_lr()[0]  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
        scheduler.step()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue, reportOptionalMemberAccess]
        row = {"step": len(self.history) + 1, "learning_rate": rate, "gradient_norm": float(norm)}
        self.history.append(row | {"loss": float(step_loss)} | diagnostics.of_step(totals))
        self._warn()

    def _warn(self) -> None:
        """Say once of each sign of a collapse that the history shows."""
        start, now = self.history[: diagnostics.SPAN], self.history[-diagnostics.SPAN :]
        for alarm in diagnostics.alarms(self.run.recipe, start, now):
            if alarm.name not in self.alarmed:
                self.alarmed.add(alarm.name)
                log.warning("step %d: %s", len(self.history), alarm.text)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ARG002
        """Take this device's share; Lightning would take apart what it does not know."""
        share = batch[self.global_rank :: self.trainer.world_size]
        return [(pack.to(device), columns.to(device)) for pack, columns in share]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Validate at the steps that the settings name."""
        step, every = len(self.history), self.run.validate_every
        if every and step % every == 0 and step < self.run.settings.steps:
            self.validate_now(step)

    def on_train_start(self) -> None:
        """Validate the student as it comes."""
        if not self.history:
            self.validate_now(0)

    def on_train_end(self) -> None:
        """Validate the student as it goes."""
        if len(self.history) == self.run.settings.steps:
            self.validate_now(len(self.history))

    def validate_now(self, step: int) -> None:
        """Reverse KL to the teacher on the held-out rows, whatever the recipe trains on."""
        if self.run.held_out is not None:
            mean, mass = validation.kl(self.student, self.run.held_out, self.run.machine)
            self.validation.append({"step": step, "validation_kl": mean, "validation_mass": mass})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What was measured so far belongs to the state."""
        checkpoint["history"], checkpoint["validation"] = self.history, self.validation

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there."""
        self.history, self.validation = list(checkpoint["history"]), list(checkpoint["validation"])


class ShardedDistillation(Distillation):
    """The same with the student's parameters spread over the devices."""

    def configure_model(self) -> None:
        """Shard the student: every layer is gathered when its turn comes, the rest, with the head, as a whole."""
        rounded = torch.bfloat16 if self.run.settings.precision == "bf16-mixed" else None
        how = MixedPrecisionPolicy(param_dtype=rounded, reduce_dtype=torch.float32)
        assert self.device_mesh is not None
        for part in [*self.student.layers(), self.student]:
            fully_shard(part, mesh=self.device_mesh["data_parallel"], mp_policy=how)


def fit(student: Student, run: Run) -> Fitted:
    """Train a student; where an earlier run of the same identity was stopped, go on from its last state.

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
    if run.settings.steps == 0:
        return Fitted(student.eval(), [], [], [])
    devices = run.machine.devices
    if devices == 1:
        _, history, validation = fit_share(student, run)
    else:
        share = devices * run.rows.unit
        if run.settings.batch % share:
            what = "sequences" if run.rows.unit == 1 else "sequences in pairs"
            raise SettingsError(
                f"batch: {run.settings.batch} {what} cannot be shared by {devices} devices. Set `batch` to a "
                f"multiple of {share} in params.yaml, or `devices` to a divisor in .potstill/machine.yaml."
            )
        weights, history, validation = ranks.spread(fit_share, devices, student, run)
        student.load_state_dict(weights)
    return Fitted(student.cpu().eval(), history, validation, diagnostics.first_alarms(run.recipe, history))


def fit_share(student: Student, run: Run) -> tuple[dict[str, Any], list[dict[str, float]], list[dict[str, float]]]:
    """One device's part in training: the student's weights, on the CPU, the history and the validation."""
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
        callbacks=[SavedState(run.state, settings.save_every), StepBar(refresh_rate=10)],
    )
    loader = Loader(run.rows, settings.steps, settings.batch, machine.train_tokens, settings.seed, machine.devices)
    saved = sorted(run.state.glob("step-*.ckpt"))
    with warnings.catch_warnings():
        # Lightning advises on data loaders, which these are not, and uses what torch has deprecated.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"lightning\..*")
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
        student.train()
        try:
            trainer.fit(module, train_dataloaders=loader, ckpt_path=saved[-1] if saved else None, weights_only=False)
        except SIGTERMException:  # it would end the process with 0, as if the stage had finished
            sys.exit(ranks.STOPPED)
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(student, options=whole) if machine.devices > 1 else {}
    return weights, module.history, module.validation


def _strategy(machine: params.Machine) -> Any:
    if machine.devices == 1:
        return "auto"
    if machine.strategy == "ddp":
        return "ddp"
    return ModelParallelStrategy(
        data_parallel_size=machine.devices, tensor_parallel_size=1, save_distributed_checkpoint=False
    )


def schedule(settings: params.Training) -> Callable[[int], float]:
    """The learning rate's factor at each step: a linear rise over the warm-up, then constant, cosine or linear to 0."""
    warm = round(settings.warmup * settings.steps)

    def factor(step: int) -> float:
        """Of the step with this number, from 0."""
        if step < warm:
            return (step + 1) / warm
        done = (step - warm) / max(1, settings.steps - warm)
        falls = {
            "constant": 1.0,
            "cosine": 0.5 * (1 + math.cos(math.pi * min(done, 1.0))),
            "linear": max(0.0, 1 - done),
        }
        return falls[settings.schedule]

    return factor
