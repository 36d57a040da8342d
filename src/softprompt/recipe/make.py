"""Plain data become a recipe, or all the faults that are in it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from softprompt.errors import RecipeError, unknown
from softprompt.methods import METHODS
from softprompt.recipe.sections import InitialiseSection, Recipe, picked
from softprompt.tasks import TASKS

_ROUNDING = 1e-6
# The keys of the two open tables that their options' own settings do not name.
_COMMON = {"method": ("name", "initialise"), "task": ("kind",)}


def make_recipe(data: Mapping[str, Any]) -> Recipe:
    """Check plain data and make a recipe of it.

    Raises:
        RecipeError: with all faults that were found.
    """
    faults: list[str] = []
    recipe = None
    try:
        recipe = Recipe.model_validate(dict(data))
    except ValidationError as error:
        faults += faults_of(error, owner=Recipe)
    faults += _choice_faults(data, "method", METHODS)
    faults += _choice_faults(data, "task", TASKS)
    if recipe is not None:
        faults += _cross_faults(recipe)
    if faults or recipe is None:
        raise RecipeError(faults)
    return recipe


def _choice_faults(
    data: Mapping[str, Any], section: str, options: Mapping[str, type[Any]]
) -> list[str]:
    """The faults of a section whose keys depend on a choice made in it."""
    common = _COMMON[section]
    table = data.get(section)
    name = table.get(common[0]) if isinstance(table, Mapping) else None
    if not isinstance(table, Mapping) or not isinstance(name, str):
        return []
    if name not in options:
        return [f"{section}.{common[0]}: {unknown(section, name, options=options)}"]
    own = {key: value for key, value in table.items() if key not in common}
    try:
        picked(options[name], own)
    except ValidationError as error:
        return faults_of(error, (section,), owner=options[name])
    return []


def _cross_faults(recipe: Recipe) -> Iterator[str]:
    shares = recipe.data.shares
    total = shares.train + shares.validation + shares.test
    if abs(total - 1) > _ROUNDING:
        yield f"data.shares: they add up to {total:g}, not 1. Correct them."
    spread = [key for key in ("device_map", "quantization") if dict(recipe.backbone)[key]]
    if recipe.backbone.shard and spread:
        yield (
            f"backbone.shard: does not go with backbone.{spread[0]}, which places or packs the "
            "weights in another way. Take one of the two out."
        )
    start = recipe.method.initialise
    needs = {"text": "text", "artifact": "path"}
    if start is not None:
        for key, given in (("text", start.text), ("path", start.path)):
            wanted = needs.get(start.source) == key
            if wanted and given is None:
                yield f"method.initialise.{key}: is missing with from = {start.source!r}. Add it."
            if given is not None and not wanted:
                yield (
                    f"method.initialise.{key}: means nothing with from = {start.source!r}. Take it "
                    "out."
                )
        if start.words is not None and start.source != "labels":
            yield (
                f"method.initialise.words: means nothing with from = {start.source!r}. Take it out."
            )
    task = recipe.task.settings()
    if task.get("labels") is not None and task.get("verbalizer") is not None:
        yield (
            "task.labels: means nothing with a verbalizer, whose own order is that of the labels. "
            "Take it out."
        )
    if recipe.train.warmup is not None and recipe.train.warmup > 1:
        yield (
            f"train.warmup: it is a share of all steps, from 0 to 1, not {recipe.train.warmup:g}."
        )


def faults_of(
    error: ValidationError, before: tuple[str, ...] = (), *, owner: type[Any]
) -> list[str]:
    """The faults as a person would say them; all that is wrong with one value as one fault.

    Args:
        error: pydantic's.
        before: where the checked table stands.
        owner: the class that was checked.
    """
    found: dict[str, list[str]] = {}
    for fault in error.errors():
        path = [str(part) for part in fault["loc"]]
        # Of a union, pydantic names the alternative as well: it is no part of the recipe.
        end = next((i for i, part in enumerate(path) if not _is_key(part)), len(path))
        where = ".".join([*before, *path[:end]])
        found.setdefault(where, []).append(_one(fault, before, owner))
    return [f"{where}: {' Or: '.join(dict.fromkeys(said))}" for where, said in found.items()]


def _is_key(part: str) -> bool:
    """Whether part of a path stands in the recipe, and is no alternative such as ``list[str]``."""
    return part not in {"str", "int"} and not {*"[({"} & {*part}


def _one(fault: ErrorDetails, before: tuple[str, ...], owner: type[Any]) -> str:
    match fault["type"]:
        case "extra_forbidden":
            *inside, key = (str(part) for part in fault["loc"])
            return unknown("key", key, options=_keys(owner, inside, before))
        case "missing":
            return "is missing. Add it."
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"must be a table of keys, not {fault['input']!r}."
        case _:
            message = fault["msg"]
            return f"{message[0].lower()}{message[1:]}, not {fault['input']!r}."


def _keys(owner: type[Any], path: Iterable[str], before: tuple[str, ...]) -> list[str]:
    """The keys that a table may have."""
    for part in path:
        if issubclass(owner, BaseModel) and part in owner.model_fields:
            inner = owner.model_fields[part].annotation
            owner = inner if isinstance(inner, type) else InitialiseSection
    if issubclass(owner, BaseModel):
        return [field.alias or name for name, field in owner.model_fields.items()]
    common = _COMMON[before[0]] if before else ()
    return [*common, *(field.name for field in fields(owner))]
