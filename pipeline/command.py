"""The command lines' common part: options, errors, log, and the summary of what a stage did.

What reads settings and shards is imported where it is used: `--help` waits for nothing.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline import project
from pipeline.errors import PotstillError, explain_network_error, explain_system_error
from pipeline.visible import make_visible

if TYPE_CHECKING:
    from pipeline.settings.machine import Machine
    from pipeline.settings.params import Params
    from pipeline.storage.store import Folder, Obtained

ParamsFile = Annotated[Path, typer.Option("--params", help="The settings.")]

MachineFile = Annotated[
    Path,
    typer.Option(
        "--machine",
        help="Where and how fast; every key has a default.",
        default_factory=project.find_machine,
        show_default=".potstill/machine.yaml",
    ),
]

StoreFolder = Annotated[
    Path,
    typer.Option(
        "--store",
        help="Finished shards by fingerprint.",
        default_factory=project.find_store,
        show_default=".potstill/store",
    ),
]

TimingFile = Annotated[Path | None, typer.Option("--timing", help="Where to note what making the outputs took.")]

PARAMS = Path("params.yaml")


def run_stage(main: Callable[..., Any], argv: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake is told in one paragraph and ends with exit code 1."""
    name = main.__module__.rpartition(".")[2]
    name = Path(sys.argv[0]).stem if name == "__main__" else name
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(_VisibleLines(f"{name}: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[lines])
    silence_libraries()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=sys.modules[main.__module__].__doc__)(main)
    call_app(app, name, f"python -m stages.{name}", argv)


class _VisibleLines(logging.Formatter):
    """Log lines in which nothing but text reaches the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as always, control characters written out."""
        return make_visible(super().format(record))


def call_app(app: typer.Typer, name: str, prog_name: str, argv: Sequence[str] | None = None) -> None:
    """Run a command line; it returns where the command ended well.

    Raises:
        SystemExit: with 1 after a user's mistake, 2 after arguments that cannot be, 130 after Ctrl-C, or as the
            command says. (Typer alone tells nobody of these but by leaving: without `standalone_mode` it *returns*
            130, and DVC would take a stopped stage for a finished one.)
    """
    try:
        app(args=list(argv) if argv is not None else None, prog_name=prog_name)
    except Exception as error:
        is_ours = isinstance(error, PotstillError)
        told = str(error) if is_ours else explain_system_error(error) or explain_network_error(error)
        if told is None:
            raise
        print(make_visible(f"{name}: error: {told}"), file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        if end.code == 130:
            print(f"{name}: stopped. What was finished is kept; run it again to go on.", file=sys.stderr)
        if end.code:
            raise


def silence_libraries() -> None:
    """Silence the libraries' own bars and notices: the log is ours."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for library in ("lightning.pytorch", "lightning.fabric", "httpx", "datasets"):
        logging.getLogger(library).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")


@dataclass(frozen=True)
class StageSummary:
    """Counts of what a stage made and found, for its last line, its timing file and the tests that count.

    Attributes:
        made: files made in this run.
        found: files that the store had.
        tokens: response tokens in the first folder, or in all files where there are no folders.
        bytes: of all outputs.
        seconds: what making them took, whenever that was; None where another machine made some.
    """

    made: int
    found: int
    tokens: int
    bytes: int
    seconds: float | None

    @classmethod
    def from_folders(cls, *folders: "Folder") -> "StageSummary":
        """Sum up a stage's output folders."""
        return cls(
            made=sum(folder.made for folder in folders),
            found=sum(folder.found for folder in folders),
            tokens=folders[0].tokens if folders else 0,
            bytes=sum(folder.bytes for folder in folders),
            seconds=_sum_known([each for folder in folders for each in folder.seconds]),
        )

    @classmethod
    def from_files(cls, *obtained: "Obtained") -> "StageSummary":
        """Sum up a stage's output files, where they are in no folder of shards."""
        return cls(
            made=sum(each.made for each in obtained),
            found=sum(not each.made for each in obtained),
            tokens=sum(each.entry.tokens for each in obtained),
            bytes=sum(each.entry.bytes for each in obtained),
            seconds=_sum_known([each.seconds for each in obtained]),
        )

    def note(self, path: Path | None, stage: str, round_: str = "") -> None:
        """Write the timing file: what making the outputs took, whenever that was; finding all changes nothing.

        Where all was found, the log says so: the lines before tell of the outputs, and of nothing that was done now.
        """
        if self.found and not self.made:
            logging.getLogger(stage).info("nothing was made: all %d files were found in the store", self.found)
        if path is None:
            return
        from pipeline.storage.whole import write_json

        record = {"stage": stage, "round": round_, "files": self.made + self.found, "tokens": self.tokens}
        write_json(path, record | {"bytes": self.bytes, "seconds": self.seconds})


def _sum_known(seconds: Sequence[float | None]) -> float | None:
    known = [each for each in seconds if each is not None]
    return sum(known) if len(known) == len(seconds) else None


def read_settings(path: Path, machine: Path) -> "tuple[Params, Machine]":
    """Read params.yaml and machine.yaml, each checked as a whole, before anything else."""
    from pipeline.settings.machine import load_machine
    from pipeline.settings.params import load_params

    return load_params(path), load_machine(machine)
