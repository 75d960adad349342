"""JSON schemas of params.yaml and machine.yaml, from which editors complete, explain and check what is typed.

What settings must fulfil together (a view that a recipe needs, say) no schema can say: `load_params` checks that, and
that a recipe exists.
"""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from typing import Any, get_args

from pipeline.settings.machine import Machine
from pipeline.settings.params import Params
from pipeline.settings.reading import Settings
from pipeline.settings.views import Context

FILES = {"params": Params, "machine": Machine}
"""The files of settings, and the classes that they are."""


def write_schema(name: str) -> str:
    """Write the schema of a file of `FILES` as JSON; each setting is described by the text under its field."""
    kind = FILES[name]
    schema = kind.model_json_schema()
    classes = {one.__name__: one for one in _list_classes(Settings)}
    for title, part in {kind.__name__: schema, **schema.get("$defs", {})}.items():
        described = _read_descriptions(classes[title])
        for field, its in part["properties"].items():
            its.pop("title", None)  # the name again, in another spelling
            if field in described:
                its["description"] = described[field]
    if name == "params":
        _allow_short_contexts(schema["$defs"])
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=1) + "\n"


def _allow_short_contexts(classes: dict[str, Any]) -> None:
    """Allow a context to be named, as `View` does, where it needs nothing but its kind."""
    contexts = [classes[kind.__name__] for kind in get_args(Context)]
    short = [its["properties"]["kind"]["const"] for its in contexts if not its.get("required")]
    view = classes["View"]["properties"]
    described = view["context"].pop("description")
    view["context"] = {"anyOf": [{"enum": short}, view["context"]], "description": described}


def _list_classes(kind: type[Settings]) -> Iterator[type[Settings]]:
    for one in kind.__subclasses__():
        yield one
        yield from _list_classes(one)


def _read_descriptions(kind: type[Settings]) -> dict[str, str]:
    """Read the texts under the fields of a class and of those that it extends, by field.

    (pydantic can, and would read every source file whenever a class is made: half a second in each command.)
    """
    described: dict[str, Any] = {}
    for one in reversed(kind.__mro__):
        if issubclass(one, Settings) and one is not Settings:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
            assert isinstance(tree, ast.ClassDef)
            for field, text in zip(tree.body, tree.body[1:], strict=False):
                match field, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(written))):
                        described[name] = " ".join(written.split())
    return described
