"""The Lightning module: one student, one objective, one optimiser step for each item of the loader."""

import logging
import math
from collections.abc import Callable
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from pipeline.models.packing import Pack
from pipeline.models.student import Student
from pipeline.objectives import diagnostics
from pipeline.objectives.inputs import Inputs
from pipeline.objectives.objective import Objective
from pipeline.settings.models import Training
from pipeline.training.run import Run
from pipeline.training.validation import measure_kl

log = logging.getLogger("train")


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

    def training_step(self, packs: list[tuple[Pack, Inputs]], _: int) -> None:
        """One optimiser step over all its packs."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        optimizer.zero_grad()  # pyright: ignore[reportAttributeAccessIssue]
        step_loss, totals = torch.zeros((), device=self.device), dict[str, Tensor]()
        devices = self.trainer.world_size
        for pack, inputs in packs:
            answer = self.student(pack, self.objective.ask(inputs))
            loss, seen = self.objective.loss(answer, inputs)
            self.manual_backward(loss * devices)  # DDP and FSDP2 take the mean over devices
            step_loss = step_loss + loss.detach()
            for name, total in diagnostics.sum_over_tokens(seen, inputs.shares["token_mean"]).items():
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
        self.history.append(row | {"loss": float(step_loss)} | diagnostics.average_over_step(totals))
        self._warn()

    def _warn(self) -> None:
        """Say once of each sign of a collapse that the history shows."""
        start, now = self.history[: diagnostics.SPAN], self.history[-diagnostics.SPAN :]
        for alarm in diagnostics.find_alarms(self.run.recipe, start, now):
            if alarm.name not in self.alarmed:
                self.alarmed.add(alarm.name)
                log.warning("step %d: %s", len(self.history), alarm.text)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ARG002
        """Take this device's share; Lightning would take apart what it does not know."""
        share = batch[self.global_rank :: self.trainer.world_size]
        return [(pack.to(device), inputs.to(device)) for pack, inputs in share]

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
            mean, mass = measure_kl(self.student, self.run.held_out, self.run.machine)
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


def schedule(settings: Training) -> Callable[[int], float]:
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
