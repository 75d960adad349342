"""Rules that hold between files: names of stages, what dvc.yaml must list, fast doors.

What is compared: dvc.yaml, the scripts in stages/, the sections of params.yaml and the classes in pipeline/settings/.
"""

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pytest
from ruamel.yaml import YAML

from pipeline.grading.write import Grading
from pipeline.models.record import Model
from pipeline.rollouts.write import Writing, identify_rollouts
from pipeline.scoring.plan import identify_scores
from pipeline.scoring.reading import read_bucket
from pipeline.settings import params
from pipeline.settings.models import Demo, EngineName, EngineSettings, Sampling, TinyModel, Training
from pipeline.settings.recipe import list_recipes, load_recipe
from pipeline.settings.views import SupportSettings, View
from pipeline.storage import hashing
from pipeline.storage.bucket import Bucket
from pipeline.storage.prompts import Prompt, write_prompts
from pipeline.storage.rollouts import ROLLOUTS
from pipeline.storage.shards import Writer
from pipeline.storage.store import Store
from pipeline.training.checkpoints import hash_shard, identify_checkpoint
from stages import models as models_stage
from stages import prompts as prompts_stage

ROOT = Path(__file__).parent.parent
DAG = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]
STAGES = sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__")
MODULES = [*sorted((ROOT / "pipeline").rglob("*.py")), *sorted((ROOT / "stages").glob("*.py"))]

ENTRIES_OF = {"evaluate": ["evaluate", "evaluate_start"], "score": ["score", "score_teacher"]}
"""A script's entries in dvc.yaml, where they are not one of its own name: the start is evaluated as every round is, and
the teacher's own responses are scored as the student's are."""

NOT_SETTINGS_OF_A_STAGE = {"grade", "rounds"}
"""Sections of params.yaml that several stages read, so no script has their name."""

READ_ALL_SETTINGS = {"inputs"}
"""Scripts that read every section for the files it names, and have none of their own."""

ENGINES = [name for name in get_args(EngineName) if name != "fake"]
"""Those that dvc.yaml tracks: `fake` is of the tests alone."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def entry(name: str) -> dict:
    """A stage of dvc.yaml, of each round or of all."""
    return DAG[name].get("do", DAG[name])


def tracked(name: str) -> tuple[set[str], set[str]]:
    """The sections and the files with a VERSION in the params of an entry."""
    listed = entry(name)["params"]
    assert all(keys == ["VERSION"] for item in listed if isinstance(item, dict) for keys in item.values())
    files = {file for item in listed if isinstance(item, dict) for file in item}
    return {item for item in listed if isinstance(item, str)}, files


def entries_of(script: str) -> list[str]:
    return ENTRIES_OF.get(script, [script])


def test_every_stage_has_one_name_in_four_places():
    """Entry, script, section and class."""
    assert sorted(DAG) == sorted(name for script in STAGES for name in entries_of(script))
    sections = set(params.Params.model_fields) - NOT_SETTINGS_OF_A_STAGE
    assert sections == set(STAGES) - READ_ALL_SETTINGS
    for path in (ROOT / "params.yaml", *(ROOT / "presets").glob("*.yaml")):
        assert set(YAML(typ="safe", pure=True).load(path)) == set(params.Params.model_fields)
    for script in STAGES:
        assert all(f"stages/python -m stages.{script} " in entry(name)["cmd"] for name in entries_of(script))
    for script in sections:
        assert params.Params.model_fields[script].annotation is getattr(params, script.title().replace("_", ""))
        assert all(script in tracked(name)[0] for name in entries_of(script))


def test_rounds_are_settings_of_the_report_alone():
    """In the params of a round's stage a new round would run all of them again."""
    assert [name for name in DAG if "rounds" in tracked(name)[0]] == ["report"]


def test_only_settings_know_the_settings_files():
    """Paths are in dvc.yaml, defaults of the command line in command.py."""
    for path in MODULES:
        texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert "params.yaml" not in texts or path.name == "command.py", path


@pytest.fixture
def identities(tmp_path):
    """What each entry of the DAG hashes, made anew with every call."""
    shard, rollout_shard = tmp_path / "prompts.parquet", tmp_path / "rollouts.parquet"
    prompt = Prompt("p0", "all", ({"role": "user", "content": "1+1"},), "2", None, 0, "opd")
    write_prompts(shard, {}, {}, [prompt])
    with Writer(rollout_shard, ROLLOUTS, {}, {}) as writer:
        writer.write(pa.Table.from_pylist([], ROLLOUTS))
    model = Model(
        name="n", location="l", commit="c", weights_hash="w", tokenizer="t", chat_template="c", vocabulary=2, tokens=2,
        eos_ids=(0,), context=9, parameters=None,
    )  # fmt: skip
    view = View(support=SupportSettings(top_k=1))
    learning = Training(steps=1, batch=1, learning_rate=1.0)
    size = TinyModel(layers=1, hidden=8, heads=2)

    def written(engine: EngineName):
        how = EngineSettings(engine=engine)
        return [
            identify_rollouts("stage", 1, shard, Writing(model, how, Sampling(max_tokens=1), 1, 0)),
            Grading(params.GradeSettings(grader="exact"), Store(tmp_path)).prepare(shard, rollout_shard)[0],
        ]

    def scored(engine: EngineName):
        settings = params.Score(engine=engine, views={"teacher": view})
        return identify_scores(read_bucket(Bucket(rollout_shard), [view]), view, model, settings)

    data = hash_shard(Bucket(rollout_shard))
    recipes = {name: load_recipe(name) for name in list_recipes()}

    def trained(recipe: str):
        return identify_checkpoint("stage", 1, model, recipes[recipe], learning, data=data)

    def of_all(entry: str):
        match entry:
            case "models":
                demo = Demo(teacher=size, student=size, examples=4, training=learning)
                return [models_stage.identify_demo_model(demo, role) for role in ("teacher", "student")]
            case "prompts":
                return prompts_stage.identify_prompts([prompt])
            case "score" | "score_teacher":
                return [scored(engine) for engine in ENGINES]
            case "sft":
                return trained("sft")
            case "train":
                return [trained(recipe) for recipe in recipes]
            case "report" | "inputs":
                return []
        return [written(engine) for engine in ENGINES]

    return lambda entry: hashing.fingerprint({"all": of_all(entry)})


def versioned() -> list[str]:
    """Every file with a VERSION, but for those whose VERSION is their stage's own, and the engine of the tests."""
    texts = {name_of(path): path.read_text() for path in MODULES}
    return sorted(
        name
        for name, text in texts.items()
        if "\nVERSION = " in text and name.startswith("pipeline/") and name != "pipeline/engines/fake.py"
    )


@pytest.mark.parametrize("entry", DAG)
def test_every_version_that_is_hashed_is_tracked(identities, monkeypatch, entry):
    """Raise each, and see whether what the stage would make has another fingerprint: DVC must then run it again."""
    listed, known = tracked(entry)[1], identities(entry)
    for file in versioned():
        module = importlib.import_module(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        with monkeypatch.context() as patched:
            patched.setattr(module, "VERSION", 999)
            is_hashed = identities(entry) != known
        assert not is_hashed or file in listed, f"dvc.yaml: `{entry}` must list {file}: [VERSION]"


@pytest.mark.parametrize("script", STAGES)
def test_every_stage_tracks_a_version_of_its_own(script):
    text = (ROOT / "stages" / f"{script}.py").read_text()
    own = "pipeline/scoring/__init__.py" if "VERSION = SCORING_VERSION" in text else f"stages/{script}.py"
    for name in entries_of(script):
        assert own in tracked(name)[1]
    assert "\nVERSION = " in text


def test_every_tracked_version_exists():
    for name in DAG:
        for file in tracked(name)[1]:
            assert "\nVERSION = " in (ROOT / file).read_text(), f"dvc.yaml: `{name}` lists {file}"


HEAVY = ("torch", "transformers", "lightning", "duckdb", "datasets", "vllm", "peft", "plotly")


@pytest.mark.slow
@pytest.mark.parametrize("script", STAGES)
def test_help_loads_nothing_heavy(script):
    """Only then does it answer at once: torch alone takes seconds."""
    told = (
        "import runpy, sys\n"
        "sys.argv = ['stage', '--help']\n"
        "try:\n"
        f"    runpy.run_module('stages.{script}', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        f"print('HEAVY', [name for name in {HEAVY} if name in sys.modules])\n"
    )
    found = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Usage:" in found.stdout
    assert found.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.slow
@pytest.mark.parametrize("script", STAGES)
def test_help_answers_in_three_seconds_of_processor_time(script):
    """Not of the clock: a busy machine is no failure."""
    told = (
        "import resource, subprocess, sys\n"
        f"subprocess.run([sys.executable, '-m', 'stages.{script}', '--help'], check=True, stdout=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime)\n"
    )
    found = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(found.stdout) < 3
