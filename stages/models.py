"""Look both models up, record what they are, and check that they speak the same token ids.

    python -m stages.models --teacher-record data/models/teacher.json --student-record data/models/student.json

With `models.demo` in the settings both are made first: a tokenizer, a teacher trained on worked sums, and a student
with random weights, in DEMO/teacher and DEMO/student. Without it DEMO holds no model.
"""

import functools
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline import command, head, objectives, training
from pipeline.command import MachineFile, ParamsFile, StageSummary, StoreFolder, TimingFile
from pipeline.errors import SettingsError
from pipeline.models.record import Model, check_pair, record_model
from pipeline.models.seal import write_sealed
from pipeline.settings.machine import Machine
from pipeline.settings.models import Demo, Models
from pipeline.settings.recipe import load_recipe
from pipeline.storage import hashing
from pipeline.storage.bucket import Bucket
from pipeline.storage.manifest import write_manifest
from pipeline.storage.store import Obtained, Store
from pipeline.storage.whole import write_json

VERSION = 1  # raise it when the same settings would give other demo models

log = logging.getLogger("models")


@dataclass(frozen=True)
class ModelFolders:
    """The files and folders that the stage writes.

    Attributes:
        teacher_record: the file that says what the teacher is.
        student_record: the file that says what the student is.
        demo: folder of the demo's models; where there are none, of a manifest that lists nothing.
        state: where the training state of the demo's teacher is kept while it is not finished.
    """

    teacher_record: Path
    student_record: Path
    demo: Path
    state: Path


def run(settings: Models, machine: Machine, store: Store, folders: ModelFolders) -> StageSummary:
    """Record the teacher and the student, and make them first where the settings say so.

    Raises:
        SettingsError: the demo's models would be made, and then others used.
        ModelError: a model is missing or incomplete, or the two do not fit each other.
    """
    shutil.rmtree(folders.demo, ignore_errors=True)
    folders.demo.mkdir(parents=True)
    obtained = [] if settings.demo is None else _obtain_demo(settings, settings.demo, machine, store, folders)
    if settings.demo is None:
        write_manifest(folders.demo, {})  # DVC warns of an empty folder, once for each stage that depends on it
    teacher, student = record_model(settings.teacher), record_model(settings.student)
    check_pair(teacher, student, settings.allow_other_template)
    for path, model in ((folders.teacher_record, teacher), (folders.student_record, student)):
        write_json(path, model.model_dump(mode="json"))
    log.info(
        "teacher %s, student %s; one vocabulary of %d tokens",
        _describe_size(teacher), _describe_size(student), teacher.vocabulary,
    )  # fmt: skip
    return StageSummary.from_files(*obtained)


def identify_demo_model(settings: Demo, role: Literal["teacher", "student"]) -> dict[str, Any]:
    """Name everything that decides a demo model, as JSON values; how often a training state is saved does not."""
    # These bring torch, for which `--help` need not wait.
    from pipeline.objectives.versions import find_formula_versions
    from pipeline.training import rows

    other = {"teacher": {"student"}, "student": {"teacher", "training", "examples", "slips", "hinted"}}[role]
    demo = settings.model_dump(mode="json", exclude_defaults=True, exclude=other)
    if role == "teacher":
        demo["training"] = demo["training"] | settings.training.schedule_identity
        demo["training"].pop("save_every", None)
    versions: dict[str, Any] = {"version": VERSION}
    if role == "teacher":
        versions["training"] = [module.VERSION for module in (training, rows, objectives, head)]
        versions["formulas"] = find_formula_versions(load_recipe("sft"))
    return {"stage": "models", **versions, "role": role, "demo": demo}


def _describe_size(model: Model) -> str:
    size = "unknown size" if model.parameters is None else f"{model.parameters:,} parameters"
    return f"{model.name} ({size})"


def _obtain_demo(
    named: Models, settings: Demo, machine: Machine, store: Store, folders: ModelFolders
) -> list[Obtained]:
    """Make the demo's teacher and student, or find them."""
    folder = folders.demo
    for role, name in (("teacher", named.teacher), ("student", named.student)):
        if Path(name).resolve() != (folder / role).resolve():
            raise SettingsError(
                f"models.{role}: with `models.demo` the {role} is made in {folder / role}; expected that, found "
                f"`{name}`. Change models.{role}, or remove models.demo to use models of your own."
            )

    taught, untaught = identify_demo_model(settings, "teacher"), identify_demo_model(settings, "student")
    own_state = folders.state / hashing.fingerprint(taught)

    def make_student(target: Path) -> None:
        _make_untrained(settings, "student", target)
        write_sealed(target, {"identity": untaught})

    make_teacher = functools.partial(_teach, settings, machine, own_state, taught)
    obtained = [
        store.obtain(taught, make_teacher, "", folder / "teacher"),
        store.obtain(untaught, make_student, "", folder / "student"),
    ]
    shutil.rmtree(own_state, ignore_errors=True)
    return obtained


def _make_untrained(settings: Demo, role: Literal["teacher", "student"], folder: Path) -> None:
    """Write a model with random weights, and its tokenizer."""
    from pipeline.demo.models import make_model, make_tokenizer

    size, seed = {"teacher": (settings.teacher, settings.seed), "student": (settings.student, settings.seed + 1)}[role]
    tokenizer = make_tokenizer(settings.tokenizer)
    make_model(size, settings.architecture, tokenizer, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _teach(settings: Demo, machine: Machine, state: Path, identity: dict[str, Any], target: Path) -> None:
    """Train the demo's teacher on worked sums."""
    from pipeline.demo import task
    from pipeline.models.open import open_student
    from pipeline.training.checkpoints import Origin, save_checkpoint
    from pipeline.training.fit import fit_student
    from pipeline.training.rows import Rows
    from pipeline.training.run import Run

    with tempfile.TemporaryDirectory() as temporary:
        untrained, examples = Path(temporary) / "untrained", Path(temporary) / "examples.parquet"
        _make_untrained(settings, "teacher", untrained)
        start = record_model(str(untrained))
        task.write_examples(examples, start.load_tokenizer(), settings)
        log.info("training the demo's teacher on %d worked sums", settings.examples)
        rows = Rows([Bucket(examples)])
        how = Run(load_recipe("sft"), rows, settings.training, machine, state)
        save_checkpoint(target, fit_student(open_student(start), how), Origin(identity, start, start.eos_ids))


def main(
    machine_file: MachineFile,
    store: StoreFolder,
    teacher_record: Annotated[Path, typer.Option(help="What the teacher is.")] = Path("data/models/teacher.json"),
    student_record: Annotated[Path, typer.Option(help="What the student is.")] = Path("data/models/student.json"),
    demo: Annotated[Path, typer.Option(help="Where the demo's models go.")] = Path("data/models/demo"),
    params_file: ParamsFile = command.PARAMS,
    timing: TimingFile = None,
) -> None:
    """Read the settings and run the stage."""
    settings, machine = command.read_settings(params_file, machine_file)
    folders = ModelFolders(teacher_record, student_record, demo, state=store.parent / "training")
    made = run(settings.models, machine, Store(store), folders)
    made.note(timing, "models")


if __name__ == "__main__":
    command.run_stage(main)
