"""Starting the processes that train one student together, one for each device of this machine."""

import copy
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import ProcessExitedException, spawn

STOPPED = 128 + signal.SIGTERM
"""Exit code of a process that ended because a SIGTERM asked it to."""


def run_on_devices(function: Callable[..., Any], count: int, *arguments: Any) -> Any:
    """Call a function in `count` fresh processes, and tell each its rank by environment variables.

    Variables and names are those of torchrun, so Lightning joins the processes and starts none by itself. A SIGTERM is
    passed on to them; when one fails, the others are ended.

    Args:
        function: of a module; what it returns on rank 0, tensors and plain values, is the result.
        count: how many processes.
        arguments: of the function; each process has its own copy.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
        free.close()
        result = Path(folder) / "result"
        started = spawn(_rank, (places, result, function, arguments), count, join=False)
        assert started is not None
        workers = [process for process in started.processes if process is not None]
        before = signal.signal(signal.SIGTERM, lambda *_: [worker.terminate() for worker in workers])
        try:
            while not started.join():
                pass
        except ProcessExitedException as ended:
            if ended.exit_code == STOPPED:
                sys.exit(STOPPED)
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
        return torch.load(result, weights_only=True)


def _rank(rank: int, places: dict[str, str], result: Path, function: Callable[..., Any], arguments: Any) -> None:
    os.environ |= {**places, "RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    # Tensors come in memory that all processes share: each would take every other's optimiser step as well.
    found = function(*copy.deepcopy(arguments))
    if rank == 0:
        torch.save(found, result)
