"""The presets against the settings' classes, the recipes, and params.yaml."""

import re
from pathlib import Path

import pytest

from pipeline.settings import params
from pipeline.settings.recipe import load_recipe

ROOT = Path(__file__).parents[1]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
PUBLISHED = [path for path in PRESETS if path.stem.startswith("qwen3")]


def _name(path: Path) -> str:
    return path.stem


def test_the_demo_is_what_a_fresh_clone_runs():
    assert (ROOT / "presets" / "demo.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()


def test_the_presets_are_those_that_the_readme_lists():
    listed = [line.split("`")[1] for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")]
    assert {path.stem for path in PRESETS} <= set(listed)


@pytest.mark.parametrize("preset", PRESETS, ids=_name)
def test_a_preset_loads_and_scores_what_its_objective_reads(preset: Path):
    settings = params.load_params(preset)
    recipe = load_recipe(settings.train.objective)
    assert set(recipe.views) <= {name for name, view in settings.score.views.items() if view.target}
    assert recipe.terms


@pytest.mark.parametrize("preset", PUBLISHED, ids=_name)
def test_a_published_setting_says_where_it_comes_from(preset: Path):
    """Each number has a comment on its line, or on the lines right above it."""
    lines = preset.read_text().splitlines()
    bare = [
        line
        for before, line in zip(["", *lines], lines, strict=False)
        if re.search(r"[\s\[{][-+]?\d", line.partition("#")[0].partition(":")[2])
        and "#" not in line
        and not before.lstrip().startswith("#")
    ]
    assert bare == []


@pytest.mark.parametrize("preset", PUBLISHED, ids=_name)
def test_a_published_preset_takes_everything_from_the_hub_at_a_revision(preset: Path):
    settings = params.load_params(preset)
    assert settings.models.demo is None
    names = [settings.models.teacher, settings.models.student, *(source.dataset for source in settings.prompts.sources)]
    assert all(name is not None and "@" in name for name in names)


def test_the_published_presets_differ_in_their_models_and_their_sft_batch_alone():
    small, large = (params.load_params(path).model_dump() for path in PUBLISHED)
    differing = {
        f"{section}.{key}"
        for section in small
        if isinstance(small[section], dict)
        for key in small[section]
        if small[section][key] != large[section].get(key)
    }
    assert differing == {"models.teacher", "models.student", "sft.batch", "report.title"}
