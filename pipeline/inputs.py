"""What stages read that no stage made: files and folders that params.yaml names, as hashes that DVC can compare.

DVC's dependencies are fixed paths, and which files a stage reads here is a setting. So each stage that reads some has
a record, `data/inputs/STAGE.json`, on which it depends. The stage `inputs` renews them at each `dvc repro`; where a
record stays as it was, nothing runs. On a machine that has not the file (one that only scores needs no source of
prompts), what was recorded elsewhere stands.
"""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from pipeline.errors import GradeError
from pipeline.grading.graders import find_source
from pipeline.models.lineage import UNKNOWN
from pipeline.settings.params import Params
from pipeline.settings.recipe import load_recipe
from pipeline.storage import hashing
from pipeline.storage.whole import write_whole

Hashed = dict[str, tuple[list[int], str]]
"""Of files by path: size, time of change and inode when it was hashed, and the hash."""

Record = dict[str, str | None]
"""Of a stage's inputs by setting, the hash; None where it is not here and was never recorded."""


def list_inputs(settings: Params) -> dict[str, dict[str, str]]:
    """List the paths that each stage reads besides what other stages make, by setting."""
    models, sources = settings.models, settings.prompts.sources
    prompts = {f"prompts.sources.{number}": source.path or source.dataset for number, source in enumerate(sources)}
    grader = {"grade.grader": _find_grader(settings.grade.grader)}
    others = {
        name: view.model for name, view in settings.score.views.items() if view.model not in ("teacher", "student")
    }
    views = {f"score.views.{name}.model": model for name, model in others.items()}
    named = {
        "models": {"models.teacher": models.teacher, "models.student": models.student},
        "prompts": prompts,
        "teacher_rollouts": {"teacher_rollouts.adapter": settings.teacher_rollouts.adapter, **grader},
        "sft": {"sft.teacher": settings.sft.teacher},
        "refresh": grader,
        "score": {"score.adapter": settings.score.adapter, **views},
        "train": {},
        "evaluate": grader,
    }
    return {
        stage: {setting: path for setting, path in paths.items() if path and not _is_on_hub(path)}
        for stage, paths in named.items()
    }


def record_inputs(
    named: Mapping[str, str],
    hashed: Hashed,
    made: Collection[Path],
    recall: Callable[[], Mapping[str, str | None]],
) -> Record:
    """Hash the files and folders that a stage reads.

    Args:
        named: paths by setting.
        hashed: what was hashed before; extended.
        made: folders that stages make; dvc.yaml has those dependencies.
        recall: gives what was recorded before, for what is not here.
    """
    record: Record = {}
    for setting, name in sorted(named.items()):
        try:
            path = Path(name).resolve()
            if not any(path.is_relative_to(folder.resolve()) for folder in made):
                record[setting] = _hash(path, hashed)
        except (OSError, ValueError, RuntimeError):
            # Not on this machine; or nowhere, or no path at all, and then the stage that reads it says so.
            record[setting] = recall().get(setting)
    return record


def record_decisions(stage: str, settings: Params) -> Record:
    """Record what other sections decide for a stage: the recipe that it learns by, or whether its work is read.

    A recipe is hashed without its prose.
    """
    match stage:
        case "sft" | "train":
            recipe = load_recipe("sft" if stage == "sft" else settings.train.objective)
            return {"recipe": hashing.fingerprint(recipe.identity)}
        case "teacher_rollouts":
            return {"read": "yes" if settings.reads_teacher_rollouts else "no"}
        case _:
            return {}


def read_hashes(path: Path) -> Hashed:
    """Read what was hashed before; a file that cannot be read costs hashing again, and nothing else."""
    try:
        return {name: (stamp, digest) for name, (stamp, digest) in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def write_hashes(path: Path, hashed: Hashed) -> None:
    """Keep what was hashed, for the next time."""
    write_whole(path, json.dumps(hashed))


def _is_on_hub(name: str) -> bool:
    """Whether a name says its revision, so that the settings say what it is; `unknown` names nothing."""
    return name == UNKNOWN or ("@" in name and not Path(name).exists())


def _find_grader(grader: str) -> str | None:
    """Find the file that a grader of the user's own is in, or give its name where it is not here; None for ours."""
    if grader in ("exact", "math"):
        return None
    try:
        return str(find_source(grader))
    except GradeError:
        return grader


def _hash(path: Path, hashed: Hashed) -> str:
    """Hash a file, or a folder's files but for hidden ones."""
    if path.is_file():
        return _hash_file(path, hashed)
    if not path.is_dir():
        raise FileNotFoundError(path)
    inside = [file.relative_to(path) for file in sorted(path.rglob("*")) if file.is_file()]
    seen = [file for file in inside if not any(part.startswith(".") for part in file.parts)]
    return hashing.digest(*[f"{file.as_posix()}:{_hash_file(path / file, hashed)}" for file in seen])


def _hash_file(file: Path, hashed: Hashed) -> str:
    found, name = file.stat(), str(file.resolve())
    stamp = [found.st_size, found.st_mtime_ns, found.st_ino]
    if name not in hashed or hashed[name][0] != stamp:
        hashed[name] = stamp, hashing.hash_path(file)
    return hashed[name][1]
