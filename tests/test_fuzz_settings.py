"""Files of settings that were damaged at random: an error of ours, in one paragraph, or settings that mean something.

A trial takes a preset, and changes some of its bytes, or puts a value in another's place, from its seed.
"""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.errors import SettingsError
from pipeline.settings.params import Params, load_params
from tests.campaigns import trials

PRESETS = sorted((Path(__file__).parent.parent / "presets").glob("*.yaml"))
VALUES: list[Any] = [
    -1, 0, 1, 2.5, 1e308, -1e-320, 2**31, 2**64, 10**400, "", " ", ".", "..", "/", "a/b", "x" * 300, "é", "\u202e",
    "\0", None, True, [], {}, [[]], {"": 1}, [1, "a"], "1", "1e-4", "nan", float("inf"), float("nan"),
]  # fmt: skip
BITS = [
    "&a [*a]", "&a {x: *a}", "!!int", "!!binary x", "!!set {a}", "!!python/object:os.system x", "? [1]\n: 2",
    "- " * 400, "[" * 400, "{a: " * 300, "\t", "%YAML 3.0", "---\n", "...\n", "<<: 1", "1e999", ".inf", ".nan", "0x",
    "2020-99-99", "!!timestamp 1", "!!float", "!!omap [1]", "\ud7ff", "\x07", "#", ": ", "*b", "'", '"', "|2\n", "\xff",
]  # fmt: skip
SAMPLES = ("..", ".", ".hidden", "a/b", "", "x" * 101, "a b", "é")


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where values stand, from the outermost."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, each in inside for place in places(each, (*at, key)))]


def replace(draw: random.Random, content: bytes) -> bytes:
    """Another value, or another name, somewhere."""
    sections = YAML(typ="safe", pure=True).load(content)
    for _ in range(draw.randint(1, 3)):
        *path, last = draw.choice([place for place in places(sections) if place])
        inside = sections
        for part in path:
            inside = inside[part]
        value = inside.pop(last) if draw.random() < 0.3 else draw.choice(VALUES)
        name = str(draw.choice([*VALUES, *places(sections)[-1]])) if isinstance(inside, dict) else last
        if isinstance(inside, dict):
            inside[name if draw.random() < 0.3 else last] = value
        else:
            inside.insert(last, value)
    return json.dumps(sections).encode()


def damage(draw: random.Random, content: bytes) -> bytes:
    """Bytes cut, flipped, doubled, or replaced by what means something in YAML."""
    for _ in range(draw.randint(1, 4)):
        place, length = draw.randrange(len(content) + 1), draw.choice([0, 1, 1, 5, 100])
        bit = draw.choice(BITS).encode("utf-8", "surrogatepass")
        between = draw.choice([b"", bytes([draw.randrange(256)]), bit, content[:length]])
        content = content[:place] + between + content[place + length :]
    return content


def is_bearable(settings: Params) -> bool:
    """Whether what was accepted can be a run: its names can be folders, its numbers fit what they are handed to."""
    names = [*settings.score.views, *settings.rounds, *(round_.prev for round_ in settings.rounds.values())]
    rates = [*settings.train.betas, *settings.sft.betas]
    seeds = [settings.train.seed, settings.refresh.seed, settings.sft.seed]
    return (
        all(re.fullmatch(r"[\w-][\w.-]{0,99}", name, re.ASCII) for name in names)
        and all(0 <= rate < 1 for rate in rates)
        and all(0 <= seed < 2**32 for seed in seeds)
        and 0 < settings.grade.timeout_s <= 1e6
    )


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.parametrize("part", range(5))
def test_settings_are_refused_in_words_or_can_be_a_run(part: int, tmp_path: Path) -> None:
    accepted = 0
    numbers = list(trials(5000))[part::5]
    for number in numbers:
        draw = random.Random(number)
        path = tmp_path / "params.yaml"
        path.write_bytes(draw.choice([replace, damage])(draw, draw.choice(PRESETS).read_bytes()))
        try:
            settings = load_params(path)
        except SettingsError as error:
            if str(path) in str(error):
                continue
            raise
        assert is_bearable(settings), f"trial {number}"
        accepted += 1
    assert 0 < accepted < len(numbers)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("section", ["view", "round"])
def test_a_name_that_cannot_be_a_folder_is_refused(name: str, section: str, tmp_path: Path) -> None:
    sections = YAML(typ="safe", pure=True).load(PRESETS[0])
    if section == "view":
        sections["score"]["views"][name] = sections["score"]["views"]["teacher"]
    else:
        sections["rounds"][name] = {"prev": "r0"}
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps(sections))
    with pytest.raises(SettingsError, match=re.escape(f"found {name!r}")):
        load_params(path)


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: !!int", "a: " + "[" * 400, "a: " + "{b: " * 2000, "? [1]\n: 2"])
def test_yaml_that_no_setting_can_be_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=re.escape(str(path))):
        load_params(path)
