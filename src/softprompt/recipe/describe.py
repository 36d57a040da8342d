"""The keys of a recipe: as JSON Schema for editors, and as a page of the reference."""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, fields
from functools import reduce
from operator import or_
from typing import Any, Literal

from pydantic import Field, create_model

from softprompt.methods import METHODS
from softprompt.recipe.schema import InitConfig, MethodConfig, Recipe, StrictModel
from softprompt.tasks import TASKS

_INTRODUCTION = """# Recipe

A recipe is one TOML file that decides a run. It is strict: an unknown key, a wrong type and a
misspelt choice are mistakes, and all of them are listed at once. `--set section.key=value` changes
a key for one command. File names are relative to the recipe.

This page is made from the schema that recipes are checked by, as is the JSON Schema that
[editors complete keys with](../how-to/train.md#complete-keys-in-an-editor):
`softprompt recipe-schema`."""
_SEE = {
    "backbone": "See also [several GPUs or machines](../how-to/large-runs.md).",
    "data": "See also [data and templates](../how-to/data.md).",
    "task": "`kind` is one of the following; the other keys depend on it.",
    "method": "`name` is one of the following; the other keys depend on it. See also "
    "[the methods](../methods/index.md) and "
    "[initialization](../explanation/initialization.md).",
    "train": "See also [how to train](../how-to/train.md).",
    "cache": "See also [performance](../explanation/performance.md).",
}
_TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "array": "list",
    "object": "table",
}
_ARGUMENT = re.compile(r"^    (\w+): (.*(?:\n {8,}.*)*)", re.MULTILINE)


def make_recipe_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, with a description of every key.

    Returns:
        A schema of draft 2020-12. It checks keys, types and choices; what depends on several keys,
        on the data or on the backbone is checked by ``softprompt check`` alone.

    >>> schema = make_recipe_schema()
    >>> schema["properties"]["seed"]["default"]
    42
    """
    method = MethodConfig.model_fields["init"]
    init = {"init": (InitConfig | None, Field(None, description=method.description))}
    methods = [_choice(made, "name", name, more=init) for name, made in METHODS.items()]
    tasks = [_choice(made, "kind", name) for name, made in TASKS.items()]
    described = {name: field.description for name, field in Recipe.model_fields.items()}
    whole: Any = {
        "method": (
            reduce(or_, methods),
            Field(discriminator="name", description=described["method"]),
        ),
        "task": (reduce(or_, tasks), Field(discriminator="kind", description=described["task"])),
    }
    made = create_model("Recipe", __base__=Recipe, **whole)
    schema = made.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def describe_recipe() -> str:
    """The page of the reference about recipes, in Markdown.

    >>> describe_recipe().splitlines()[0]
    '# Recipe'
    """
    schema = make_recipe_schema()
    parts = [_INTRODUCTION, _table([*_rows({"properties": _plain(schema)}, schema)])]
    for name, table in schema["properties"].items():
        if name in _plain(schema):
            continue
        parts += [f"## [{name}]", f"{_meaning(table, schema)} {_SEE[name]}"]
        if "oneOf" not in table:
            parts.append(_table([*_rows(_resolved(table, schema), schema)]))
            continue
        choice = table["discriminator"]["propertyName"]
        options = [_resolved(option, schema) for option in table["oneOf"]]
        shared = {"init"} & {*options[0]["properties"]}
        for key in shared:
            own = {"properties": {key: options[0]["properties"][key]}}
            parts.append(_table([*_rows(own, schema)]))
        for section in options:
            option = section["properties"][choice]["const"]
            parts += [f'### {choice} = "{option}"', section["description"]]
            parts.append(_table([*_rows(section, schema, without={choice, *shared})]))
    return "\n\n".join(parts) + "\n"


def _choice(
    settings: type[Any], key: str, name: str, *, more: Mapping[str, Any] | None = None
) -> type[StrictModel]:
    """The table of a method or a task, with the descriptions of its docstring."""
    text = inspect.getdoc(settings) or ""
    described = {
        argument: _sentence(said)
        for argument, said in _ARGUMENT.findall(text.partition("Args:")[2])
    }
    own: Any = {key: (Literal[name], Field(description=f"`{name}`."))} | dict(more or {})
    for field in fields(settings):
        default = ... if field.default is MISSING else field.default
        own[field.name] = (field.type, Field(default, description=described[field.name]))
    made: type[StrictModel] = create_model(settings.__name__, __base__=StrictModel, **own)
    made.__doc__ = _sentence(text.partition("\n")[0])
    return made


def _sentence(text: str) -> str:
    """Text of a docstring in Markdown, from a capital letter to a full stop."""
    plain = re.sub(r"\s+", " ", text).replace("``", "`").replace("None:", "Left out:").strip()
    whole = plain if plain.endswith(".") else f"{plain}."
    return whole[:1].upper() + whole[1:]


def _plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that stand in no table."""
    properties: dict[str, Any] = schema["properties"]
    return {name: prop for name, prop in properties.items() if "type" in prop}


def _resolved(prop: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a reference refers to; anything else as it is."""
    name = prop.get("$ref", "").rpartition("/")[2]
    found: Mapping[str, Any] = schema["$defs"][name] if name else prop
    return found


def _meaning(prop: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """The description of a key, or of the table that it refers to."""
    text: str = {**_resolved(prop, schema), **prop}["description"]
    return text


def _rows(
    section: Mapping[str, Any],
    schema: Mapping[str, Any],
    *,
    without: AbstractSet[str] = frozenset(),
    before: str = "",
) -> Iterator[tuple[str, str, str, str]]:
    """A table's keys, those of tables in it behind their own."""
    for name, prop in section["properties"].items():
        if name in without:
            continue
        inner = [_resolved(option, schema) for option in (prop, *prop.get("anyOf", ()))]
        tables = [found for found in inner if "properties" in found]
        default = "required" if name in section.get("required", ()) else _default(prop)
        yield f"`{before}{name}`", _type(prop), default, _meaning(prop, schema)
        for table in tables:
            yield from _rows(table, schema, before=f"{before}{name}.")


def _type(prop: Mapping[str, Any]) -> str:
    """The values that a key takes, in words."""
    if "enum" in prop or "const" in prop:
        return ", ".join(f'`"{value}"`' for value in prop.get("enum", [prop.get("const")]))
    if "anyOf" in prop:
        kinds = [_type(option) for option in prop["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in prop:
        return "table"
    if prop["type"] == "array" and {"enum", "const"} & {*prop["items"]}:
        return f"list of {_type(prop['items'])}"
    return _TYPES[prop["type"]]


def _default(prop: Mapping[str, Any]) -> str:
    """The default as TOML has it; a hyphen where there is none, or nothing in it."""
    value = prop.get("default")
    if value is None or value in ([], {}) or isinstance(value, dict):
        return "-"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _table(rows: list[tuple[str, str, str, str]]) -> str:
    lines = [("key", "value", "default", "meaning"), ("---", "---", "---", "---"), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", r"\|") for c in line) + " |" for line in lines
    )
