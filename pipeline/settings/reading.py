"""Reading settings: strict, frozen classes filled from YAML, and every mistake of a file named at once."""

import json
import math
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import SettingsError, suggest

Positive = Annotated[int, Field(gt=0, lt=2**31)]

NonNegative = Annotated[int, Field(ge=0, lt=2**31)]

Seed = Annotated[int, Field(ge=0, lt=2**32)]

PositiveFloat = Annotated[float, Field(gt=0)]

NonNegativeFloat = Annotated[float, Field(ge=0)]

Share = Annotated[float, Field(gt=0, le=1)]

Seconds = Annotated[float, Field(gt=0, le=1e6)]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$", max_length=100)]
"""What becomes a folder or a file: no way out of the folder that it is in, nothing hidden, and short enough."""

S = TypeVar("S", bound="Settings")

_KEY = "[key]"
"""Where pydantic finds fault with a key, and not with what stands under it."""

_UNIONS = (Union, UnionType)

_WISHES = {
    "bool_type": "expected boolean",
    "dict_type": "expected an object",
    "finite_number": "expected a finite number",
    "float_type": "expected number",
    "greater_than": "expected greater than {gt:g}",
    "greater_than_equal": "expected greater than or equal to {ge:g}",
    "int_type": "expected integer",
    "less_than": "expected less than {lt:g}",
    "less_than_equal": "expected less than or equal to {le:g}",
    "literal_error": "expected {expected}",
    "model_attributes_type": "expected an object",
    "model_type": "expected an object",
    "string_pattern_mismatch": "should match pattern '{pattern}'",
    "string_type": "expected string",
    "too_long": "should have {max_length} or fewer items",
    "too_short": "should have {min_length} or more items",
    "tuple_type": "expected array",
}
"""What was expected, by pydantic's type of mistake; of a type that is not here, pydantic's own sentence is told."""


class Settings(BaseModel):
    """Unknown keys are errors, types are not converted, and nothing changes after loading."""

    # A class is compiled when it is first filled: most commands fill few of them.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        SettingsError: the file is missing or no YAML.
    """
    try:
        # ruamel reads YAML 1.2 as DVC does: `1e-4` is a number, where PyYAML has a string.
        return YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError:
        raise SettingsError(f"{path} is missing. `presets/` has some to copy from.") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read as a file of settings: {error.strerror}.") from None
    except (YAMLError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        raise SettingsError(f"{path} is not YAML: {error or type(error).__name__}") from None
    except RecursionError:
        raise SettingsError(f"{path} is nested too deeply to be read.") from None


def parse(kind: type[S], named: object, data: Any) -> S:
    """Make settings of a class from what was read.

    Args:
        kind: the class.
        named: where `data` was read, for the error.
        data: mappings, lists and values.

    Raises:
        SettingsError: some of it is wrong; all mistakes are named at once, each with its key, what is expected there
            and what was found.
    """
    # By way of JSON: there a strict model takes a list for a tuple, and still no "64" for 64.
    # A date is the text it was written as.
    try:
        written = json.dumps(data, default=str)
    except (ValueError, TypeError, RecursionError) as error:
        raise SettingsError(f"{named} has values that no setting takes ({error}).") from None
    try:
        return kind.model_validate_json(written)
    except ValidationError as error:
        wrong, read = dict[tuple[Any, ...], Any](), json.loads(written)
        for mistake in error.errors():
            wrong.setdefault(_place(mistake, read), mistake)
        # What is wrong inside says more: that a list of which every place is wrong counts as empty, or that a mapping
        # is no number, does not.
        followed = {place[:length] for place in wrong for length in range(len(place))}
        lines = [_describe(kind, place, mistake) for place, mistake in wrong.items() if place not in followed]
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise SettingsError(f"{named} has {count}:\n" + "\n".join(f"  {line}" for line in lines)) from None


def _place(mistake: Any, written: Any) -> tuple[Any, ...]:
    """Where a mistake stands, in the user's own keys: pydantic's place also names each class and tag on the way."""
    place = []
    for part in mistake["loc"]:
        keys = range(len(written)) if isinstance(written, list) else written
        if isinstance(written, dict | list) and part in keys:
            place.append(part)
            written = written[part]
    is_last_kept = mistake["type"] == "missing" or mistake["loc"][-1:] == (_KEY,)
    return (*place, mistake["loc"][-1]) if is_last_kept else tuple(place)


def _describe(kind: type[Settings], keys: tuple[Any, ...], mistake: Any) -> str:
    """Say one mistake as `section.key: expected …, found …`."""
    place = ".".join(str(key) for key in keys if key != _KEY) or "the file as a whole"
    match mistake["type"]:
        case "extra_forbidden":
            return f"{place}: no such setting; {suggest(mistake['loc'][-1], _keys_beside(kind, mistake['loc']))}"
        case "missing":
            return f"{place}: is missing"
        case "value_error":
            return f"{place}: {mistake['ctx']['error']}"
        case "union_tag_not_found":
            return f"{place}.kind: is missing"
        case "union_tag_invalid":
            return f"{place}: expected one of {mistake['ctx']['expected_tags']}, found '{mistake['ctx']['tag']}'"
    wish = _WISHES[mistake["type"]].format(**mistake.get("ctx", {})) if mistake["type"] in _WISHES else mistake["msg"]
    return f"{place}: {wish}, found {mistake['input']!r}"


def _keys_beside(kind: Any, place: tuple[Any, ...]) -> list[str]:
    """List the settings that exist where an unknown one was found."""
    for part in place[:-1]:
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        if hasattr(kind, "model_fields"):
            kind = kind.model_fields[part].annotation
            options = [option for option in get_args(kind) if option is not type(None)]
            kind = options[0] if get_origin(kind) in _UNIONS and len(options) == 1 else kind
        elif get_origin(kind) in _UNIONS:  # of classes that `kind` tells apart, or of a number and a class
            classes = [option for option in get_args(kind) if hasattr(option, "model_fields")]
            kind = next(
                one for one in classes if part == one.__name__ or part in get_args(one.model_fields["kind"].annotation)
            )
        else:  # the values of a mapping, the places of a list
            kind = next(option for option in reversed(get_args(kind)) if option is not Ellipsis)
    return list(getattr(kind, "model_fields", {}))


class Schedule(Settings):
    """A number that changes with the optimiser step: from `start` at step 0 to `end` from step `steps` on."""

    start: NonNegativeFloat
    end: NonNegativeFloat
    steps: Positive
    shape: Literal["linear", "cosine", "step"] = "linear"
    """`linear`, half a `cosine`, or a `step`: all at once at the end."""

    def at(self, step: int) -> float:
        """The number at an optimiser step, which counts from 0."""
        done = min(1.0, step / self.steps)
        shares = {"linear": done, "cosine": 0.5 * (1 - math.cos(math.pi * done)), "step": float(done == 1.0)}
        return self.start + (self.end - self.start) * shares[self.shape]


def value_at(value: float | Schedule, step: int) -> float:
    """A setting that may change with the optimiser step, as it is at this one."""
    return value.at(step) if isinstance(value, Schedule) else value
