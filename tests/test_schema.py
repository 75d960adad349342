"""The committed JSON schemas against the settings' classes: current, no stricter than they are, and no less by much."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.settings.reading import read_yaml
from pipeline.settings.schema import FILES, write_schema
from tests.planting import ROOT

SCHEMAS = ROOT / "pipeline" / "settings" / "schemas"
PARAMS = [ROOT / "params.yaml", *sorted((ROOT / "presets").glob("*.yaml"))]


def _list_mistakes(name: str, settings: Any) -> list[str]:
    """What an editor underlines: the place of each, and what it is told."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed; vLLM brings it")
    checker = jsonschema.Draft202012Validator(json.loads(write_schema(name)))
    return [f"{error.json_path[2:]}: {error.message}" for error in checker.iter_errors(settings)]


@pytest.mark.parametrize("name", FILES)
def test_the_committed_schema_is_current(name: str):
    path = SCHEMAS / f"{name}.json"
    assert path.read_text() == write_schema(name), f"run `potstill schema {name} > {path.relative_to(ROOT)}`"


def test_params_yaml_names_its_schema():
    first = (ROOT / "params.yaml").read_text().partition("\n")[0]
    assert first == f"# yaml-language-server: $schema={(SCHEMAS / 'params.json').relative_to(ROOT)}"


@pytest.mark.parametrize("path", PARAMS, ids=lambda path: path.stem)
def test_every_preset_is_right(path: Path):
    assert _list_mistakes("params", read_yaml(path)) == []


def test_mistakes_are_seen():
    settings = read_yaml(ROOT / "params.yaml")
    settings["sft"]["bath"] = 32
    settings["sft"]["steps"] = -1
    settings["train"]["objective"] = 5
    settings["score"]["views"]["half"] = {"context": "prefix", "support": {"top_k": 8}}  # of which share?
    told = "\n".join(sorted(_list_mistakes("params", settings)))
    assert "sft: Additional properties are not allowed ('bath' was unexpected)" in told
    assert "sft.steps: -1 is less than the minimum of 0" in told
    assert "train.objective: 5 is not valid" in told
    assert "score.views.half.context: 'prefix' is not valid" in told
    assert _list_mistakes("machine", {"device": "gpu"}) == ["device: 'gpu' is not one of ['auto', 'cpu', 'cuda']"]


def test_every_field_is_described_by_the_text_under_it():
    schema = json.loads(write_schema("params"))
    refresh, sft = (schema["$defs"][name]["properties"] for name in ("Refresh", "Sft"))
    assert refresh["drift_rows"]["description"] == "Responses of each shard that drift is measured on at first."
    assert sft["steps"]["description"] == "Optimiser steps.", "of the class that it extends"
