"""The keys of a recipe: as JSON Schema for editors, and as a page of the reference."""

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, fields
from functools import reduce
from operator import or_
from typing import Any, Literal

from pydantic import Field, create_model

from softprompt.methods import METHODS
from softprompt.recipe.multitask import MultitaskTables
from softprompt.recipe.schema import InitConfig, MethodConfig, Recipe
from softprompt.tasks import TASKS
from softprompt.tasks.config import StrictModel

_INTRODUCTION = """# Recipe

A recipe is one TOML file that decides a run. It is strict: an unknown key, a wrong type and a
misspelt choice are mistakes, and all of them are listed at once. `--set section.key=value` changes
a key for one command. File names are relative to the recipe.

This page is made from the schema that recipes are checked by, as is the JSON Schema that
[editors complete keys with](../how-to/train.md#complete-keys-in-an-editor):
`softprompt recipe-schema`."""
_MULTITASK = """Several tasks can
[train one shared prompt](../methods/multitask-prompt-tuning.md#train-several-tasks). Their recipe
has a table `[tasks.NAME]` for each task, in place of `[data]` and `[task]`; they share its other
tables."""
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

    Examples:
        >>> schema = make_recipe_schema()
        >>> schema["properties"]["seed"]["default"]
        42
    """
    field = MethodConfig.model_fields["init"]
    init = {"init": (InitConfig | None, Field(None, description=field.description))}
    methods = [
        _make_option(settings, "name", name, more=init) for name, settings in METHODS.items()
    ]
    tasks = [_make_option(settings, "kind", name) for name, settings in TASKS.items()]
    descriptions = {name: field.description for name, field in Recipe.model_fields.items()}
    tables: Any = {
        "method": (
            reduce(or_, methods),
            Field(discriminator="name", description=descriptions["method"]),
        ),
        "task": (reduce(or_, tasks), Field(discriminator="kind", description=descriptions["task"])),
    }
    model = create_model("Recipe", __base__=Recipe, **tables)
    schema = model.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def describe_recipe() -> str:
    """The page of the reference about recipes, in Markdown.

    Returns:
        The whole page, as in ``docs/reference/recipe.md``.

    Examples:
        >>> describe_recipe().splitlines()[0]
        '# Recipe'
    """
    schema = make_recipe_schema()
    top_level = _select_top_level(schema)
    parts = [_INTRODUCTION, _format_table(_list_rows({"properties": top_level}, schema))]
    for name, table in schema["properties"].items():
        if name in top_level:
            continue
        parts += [f"## [{name}]", f"{_get_description(table, schema)} {_SEE[name]}"]
        if "oneOf" not in table:
            parts.append(_format_table(_list_rows(_resolve(table, schema), schema)))
            continue
        choice = table["discriminator"]["propertyName"]
        options = [_resolve(option, schema) for option in table["oneOf"]]
        shared = {key: prop for key, prop in options[0]["properties"].items() if key == "init"}
        if shared:
            parts.append(_format_table(_list_rows({"properties": shared}, schema)))
        for option in options:
            value = option["properties"][choice]["const"]
            parts += [f'### {choice} = "{value}"', option["description"]]
            parts.append(_format_table(_list_rows(option, schema, without={choice, *shared})))
    tables = MultitaskTables.model_json_schema()
    parts += ["## [tasks]", _MULTITASK, _format_table(_list_rows(tables, tables))]
    return "\n\n".join(parts) + "\n"


def _make_option(
    settings: type[Any], key: str, name: str, *, more: Mapping[str, Any] | None = None
) -> type[StrictModel]:
    """The table of a method or a task, with the descriptions of its docstring."""
    text = inspect.getdoc(settings) or ""
    descriptions = {
        argument: _to_sentence(description)
        for argument, description in _ARGUMENT.findall(text.partition("Args:")[2])
    }
    keys: Any = {key: (Literal[name], Field(description=f"`{name}`."))} | dict(more or {})
    for field in fields(settings):
        default = ... if field.default is MISSING else field.default
        keys[field.name] = (field.type, Field(default, description=descriptions[field.name]))
    model: type[StrictModel] = create_model(settings.__name__, __base__=StrictModel, **keys)
    model.__doc__ = _to_sentence(text.partition("\n")[0])
    return model


def _to_sentence(text: str) -> str:
    """Text of a docstring in Markdown, from a capital letter to a full stop."""
    plain = re.sub(r"\s+", " ", text).replace("``", "`").replace("None:", "Left out:").strip()
    sentence = plain if plain.endswith(".") else f"{plain}."
    return sentence[:1].upper() + sentence[1:]


def _select_top_level(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a recipe that are values, not tables."""
    properties: dict[str, Any] = schema["properties"]
    return {name: prop for name, prop in properties.items() if "type" in prop}


def _resolve(prop: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The definition that a ``$ref`` refers to; a property without one as it is."""
    name = prop.get("$ref", "").rpartition("/")[2]
    definition: Mapping[str, Any] = schema["$defs"][name] if name else prop
    return definition


def _get_description(prop: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """The description of a key, or of the table that it refers to."""
    text: str = {**_resolve(prop, schema), **prop}["description"]
    return text


def _list_rows(
    section: Mapping[str, Any],
    schema: Mapping[str, Any],
    *,
    without: AbstractSet[str] = frozenset(),
    before: str = "",
) -> Iterator[tuple[str, str, str, str]]:
    """Key, value, default and meaning of each key, a table's own keys after it."""
    for name, prop in section["properties"].items():
        if name in without:
            continue
        options = [_resolve(option, schema) for option in (prop, *prop.get("anyOf", ()))]
        default = "required" if name in section.get("required", ()) else _format_default(prop)
        yield f"`{before}{name}`", _format_type(prop), default, _get_description(prop, schema)
        for option in options:
            if "properties" in option:
                yield from _list_rows(option, schema, before=f"{before}{name}.")


def _format_type(prop: Mapping[str, Any]) -> str:
    """The values that a key takes, in words."""
    if "enum" in prop or "const" in prop:
        return ", ".join(f'`"{value}"`' for value in prop.get("enum", [prop.get("const")]))
    if "anyOf" in prop:
        kinds = [_format_type(option) for option in prop["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in prop:
        return "table"
    if prop["type"] == "array" and {"enum", "const"} & {*prop["items"]}:
        return f"list of {_format_type(prop['items'])}"
    return _TYPES[prop["type"]]


def _format_default(prop: Mapping[str, Any]) -> str:
    """The default in TOML; a hyphen for a missing or empty one."""
    value = prop.get("default")
    if value is None or value in ([], {}) or isinstance(value, dict):
        return "-"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _format_table(rows: Iterable[tuple[str, str, str, str]]) -> str:
    lines = [("key", "value", "default", "meaning"), ("---", "---", "---", "---"), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines
    )
