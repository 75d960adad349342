"""Opening an engine by name, at once or when it is first needed."""

import logging
import time

import pipeline.engines.vllm  # noqa: F401 - it silences vLLM, which has to be done before vLLM is imported
from pipeline.engines.checked import CheckedEngine
from pipeline.engines.engine import WRITING, Engine, EngineUse, find_context_limit
from pipeline.models.record import Model
from pipeline.progress import Bar
from pipeline.settings.machine import Machine
from pipeline.settings.models import EngineSettings

log = logging.getLogger("engine")


def open_engine(model: Model, settings: EngineSettings, machine: Machine, use: EngineUse = WRITING) -> Engine:
    """Open a model for writing, or for scoring alone.

    Raises:
        ModelError: its files are not those that were recorded, or it has no tokenizer.
        EngineError: this machine cannot run the engine.
    """
    return CheckedEngine(_open(model, settings, machine, use), model, settings)


def _open(model: Model, settings: EngineSettings, machine: Machine, use: EngineUse) -> Engine:
    """Open the engine of the settings: each brings its own library, and who uses one need not have the others."""
    match settings.engine:
        case "hf":
            from pipeline.engines.hf import HfEngine

            return HfEngine(model, settings, machine)
        case "vllm":
            from pipeline.engines.vllm.engine import VllmEngine

            return VllmEngine(model, settings, machine, use)
        case "fake":
            from pipeline.engines.fake import BigramEngine

            return BigramEngine(model, settings)


class OnDemand:
    """Opens a model when it is first needed, and closes it at the end of the `with` block: found shards need none."""

    def __init__(self, model: Model, settings: EngineSettings, machine: Machine, use: EngineUse = WRITING):
        self.model = model
        self._settings, self._machine, self._use = settings, machine, use
        self._engine: Engine | None = None
        self._bar: Bar | None = None

    def __enter__(self) -> "OnDemand":
        return self

    def __exit__(self, *_: object) -> None:
        if self._engine is not None:
            self._engine.close()

    @property
    def context(self) -> int | None:
        """The longest sequence that the model takes, tokens; None where nothing says so."""
        return find_context_limit(self.model, self._settings)

    def make_bar(self, total: int, what: str) -> Bar:
        """Make a bar over responses that starts when the model is open: opening one can take minutes."""
        self._bar = Bar(total, what)
        if self._engine is not None:
            self._bar.start()
        return self._bar

    def open(self) -> Engine:
        """Open the model at the first call; later ones give the same engine."""
        if self._engine is None:
            log.info("opening %s with `%s`", self.model.name, self._settings.engine)
            started = time.monotonic()
            self._engine = open_engine(self.model, self._settings, self._machine, self._use)
            log.info("%s is open after %.1f s", self.model.name, time.monotonic() - started)
            if self._bar is not None:
                self._bar.start()
        return self._engine
