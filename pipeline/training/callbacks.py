"""What Lightning calls while it trains: saving the state that a killed run goes on from, and the progress bar."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from pipeline.errors import DivergedError
from pipeline.models.student import find_unfinite
from pipeline.progress import Meter
from pipeline.training.states import list_states, remove_old_states


@dataclass
class SavedState(Callback):
    """Saves the training state every so many steps and when the process is asked to end; keeps the last two."""

    folder: Path
    every: int

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Save the state at every so many steps."""
        if len(pl_module.history) % self.every == 0:
            self._save(trainer, len(pl_module.history))

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Save the state where the process was asked to end."""
        # Lightning raises this one at the end of a step. Ctrl-C comes anywhere in it, when the weights or the loader
        # may be a step ahead of the history: the last saved state is then the one to go on from.
        if isinstance(exception, SIGTERMException):
            self._save(trainer, len(pl_module.history))

    def _save(self, trainer: Any, step: int) -> None:
        """Save what a later run goes on from; weights that are no numbers would end it, too.

        Raises:
            DivergedError: there are such.
        """
        if (weight := find_unfinite(trainer.lightning_module.student)) is not None:
            raise DivergedError(
                f"after step {step}, weight {weight} has values that are no finite numbers. The state is not saved; "
                f"the last one is {(list_states(self.folder) or ['none'])[-1]}. Lower `learning_rate`."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(self.folder / f"step-{step:08d}.making")
        if trainer.is_global_zero:
            remove_old_states(self.folder)


class StepBar(Callback):
    """Shows the steps with the loss and the KL of the last one, instead of Lightning's bars."""

    def __init__(self) -> None:
        self._meter: Meter | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Start at the first step of this run: a run that goes on has steps that took no time of its own."""
        if self._meter is None and trainer.is_global_zero:
            self._meter = Meter(pl_module.run.settings.steps, "train", "step")
            self._meter.start(len(pl_module.history))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Count a step."""
        if self._meter is not None:
            last = pl_module.history[-1]
            self._meter.advance(1, ", ".join(f"{name} {last[name]:.4f}" for name in ("loss", "kl") if name in last))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Close it."""
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """Close it where the run was stopped."""
        self._close()

    def _close(self) -> None:
        if self._meter is not None:
            self._meter.close()
