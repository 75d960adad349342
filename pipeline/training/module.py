"""The Lightning module: one student, one objective, one optimiser step for each item of the loader."""

import logging
import math
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LRScheduler
from transformers.optimization import get_scheduler

from pipeline.errors import DivergedError
from pipeline.models.packing import Pack
from pipeline.models.student import Student
from pipeline.objectives import diagnostics
from pipeline.objectives.inputs import Inputs
from pipeline.objectives.objective import Objective
from pipeline.settings.models import Training
from pipeline.storage import hashing
from pipeline.training.run import Run
from pipeline.training.states import list_states
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
        """Make AdamW and its schedule from the settings."""
        settings = self.run.settings
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        # As everywhere in the field, matrices decay, and norms and biases do not.
        groups = [
            {"params": [one for one in trained if one.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [one for one in trained if one.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            groups,
            lr=settings.learning_rate,
            betas=settings.betas,
            fused=True,  # one pass over the parameters instead of twelve
        )
        return [optimizer], [make_schedule(optimizer, settings)]

    def training_step(self, packs: list[tuple[Pack, Inputs]], _: int) -> None:
        """Take one optimiser step over all packs of an item of the loader, and note it in the history."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        self._seed_dropout()
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
        self._check_finite(packs, float(step_loss), float(norm))
        optimizer.step()  # pyright: ignore[reportAttributeAccessIssue]
        rate = scheduler.get_last_lr()[0]  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
        scheduler.step()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue, reportOptionalMemberAccess]
        row = {"step": len(self.history) + 1, "learning_rate": rate, "gradient_norm": float(norm)}
        self.history.append(row | {"loss": float(step_loss)} | diagnostics.average_over_step(totals))
        self._warn()

    def _seed_dropout(self) -> None:
        """Seed what is random in a step by its number: a run that goes on draws what an undisturbed one would have."""
        where = str(self.run.settings.seed), str(len(self.history)), str(self.global_rank)
        torch.manual_seed(int(hashing.digest("dropout", *where)[:15], 16))

    def _check_finite(self, packs: list[tuple[Pack, Inputs]], loss: float, norm: float) -> None:
        """End the run before a step that is no number is taken; skipping it would train on something else.

        Raises:
            DivergedError: names the step, the rows and what to look at.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            return
        settings, step = self.run.settings, len(self.history) + 1
        rows = sorted({int(row) for pack, _ in packs for row in pack.sequences})
        saved = list_states(self.run.state)[-1:]
        raise DivergedError(
            f"step {step} of {settings.steps} by `{self.run.recipe.name}` in {settings.precision}: the loss is "
            f"{loss:g}, the gradient's norm {norm:g}, on rows {rows[0]} to {rows[-1]} of the step's {settings.batch}. "
            f"The step was not taken; the last saved state is {saved[0] if saved else 'none'}. Lower `learning_rate` "
            f"({settings.learning_rate:g}) or `clip` ({settings.clip:g}), or set `precision: 32-true`."
        )

    def _warn(self) -> None:
        """Log each sign of a collapse when the history shows it for the first time."""
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
        """Measure the validation KL at the steps between that the settings name."""
        step, every = len(self.history), self.run.validate_every
        if every and step % every == 0 and step < self.run.settings.steps:
            self.validate_now(step)

    def on_train_start(self) -> None:
        """Measure the validation KL before the first step."""
        if not self.history:
            self.validate_now(0)

    def on_train_end(self) -> None:
        """Measure the validation KL after the last step."""
        if len(self.history) == self.run.settings.steps:
            self.validate_now(len(self.history))

    def validate_now(self, step: int) -> None:
        """Measure the reverse KL to the teacher on the held-out rows, whatever the recipe trains on."""
        if self.run.held_out is not None:
            mean, mass = measure_kl(self.student, self.run.held_out, self.run.machine)
            self.validation.append({"step": step, "validation_kl": mean, "validation_mass": mass})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what was measured so far along with the training state."""
        checkpoint["history"], checkpoint["validation"] = self.history, self.validation

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what was measured before the state was saved."""
        self.history, self.validation = list(checkpoint["history"]), list(checkpoint["validation"])


class ShardedDistillation(Distillation):
    """A distillation whose student's parameters are spread over the devices (FSDP2)."""

    def configure_model(self) -> None:
        """Shard the student: each layer is gathered when its turn comes; the rest, with the head, as a whole."""
        rounded = torch.bfloat16 if self.run.settings.precision == "bf16-mixed" else None
        how = MixedPrecisionPolicy(param_dtype=rounded, reduce_dtype=torch.float32)
        assert self.device_mesh is not None
        for part in [*self.student.layers(), self.student]:
            fully_shard(part, mesh=self.device_mesh["data_parallel"], mp_policy=how)


def make_schedule(optimizer: torch.optim.Optimizer, settings: Training) -> LRScheduler:
    """Make the schedule of the learning rate: a linear rise, a stable part, and a fall, each of them possibly empty.

    Step 0 of a warm-up of W steps has `minimum_rate`, and step W the whole learning rate. Of the library's schedules
    warm-up-stable-decay alone knows a minimum rate both for a linear and for a cosine fall, so all of ours are its.
    """
    return get_scheduler(
        "warmup_stable_decay",
        optimizer,
        num_warmup_steps=settings.warmup_length,
        num_training_steps=settings.steps,
        scheduler_specific_kwargs={
            "num_decay_steps": settings.decay_length,
            "decay_type": "linear" if settings.schedule == "linear" else "cosine",
            "min_lr_ratio": settings.minimum_rate,
        },
    )
