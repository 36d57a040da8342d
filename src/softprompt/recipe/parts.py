"""Single tables of a recipe, where there is no whole one: which backbone, and what task."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from pydantic import ValidationError

from softprompt.errors import RecipeError, unknown
from softprompt.recipe.make import faults_of
from softprompt.recipe.read import changed
from softprompt.recipe.sections import BackboneSection, picked
from softprompt.tasks import TASKS, TaskSettings

_TABLES = ("backbone", "task")


def read_parts(
    changes: Sequence[str], *, backbone: Mapping[str, object]
) -> tuple[BackboneSection, TaskSettings | None]:
    """The tables ``backbone`` and ``task`` as ``--set`` writes them.

    Args:
        changes: ``task.key=value`` or ``backbone.key=value``, as in `read_recipe`.
        backbone: what stands in that table if nothing else is set.

    Returns:
        The backbone, and the task; None if nothing is set of it.

    Raises:
        RecipeError: with all faults that were found.
    """
    data = changed({"backbone": dict(backbone)}, changes)
    faults = [unknown("table", name, options=_TABLES) for name in data if name not in _TABLES]
    section, task = None, None
    try:
        section = BackboneSection.model_validate(data["backbone"])
    except ValidationError as error:
        faults += faults_of(error, ("backbone",), owner=BackboneSection)
    if "task" in data:
        task = _task(data["task"], faults)
    if faults or section is None:
        raise RecipeError(faults)
    return section, task


def _kind(values: Iterable[str]) -> str | None:
    """The only task that has one of these keys."""
    keys = {kind: {field.name for field in fields(made)} for kind, made in TASKS.items()}
    common = set.intersection(*keys.values())
    found = [kind for kind, own in keys.items() if (own - common) & {*values}]
    return found[0] if len(found) == 1 else None


def _task(table: object, faults: list[str]) -> TaskSettings | None:
    if not isinstance(table, dict):
        faults.append(f"task: must be a table of keys, not {table!r}.")
        return None
    values: dict[str, Any] = dict(table)
    kind = values.pop("kind", None) or _kind(values)
    if kind is None:
        known = {field.name for task in TASKS.values() for field in fields(task)}
        strange = [key for key in values if key not in known]
        faults += [f"task.{key}: {unknown('key', key, options=known)}" for key in strange]
        faults.append("task.kind: is missing. Add it: classify or generate.")
        return None
    if not isinstance(kind, str) or kind not in TASKS:
        faults.append(f"task.kind: {unknown('task', str(kind), options=TASKS)}")
        return None
    try:
        made: TaskSettings = picked(TASKS[kind], values)
    except ValidationError as error:
        faults += faults_of(error, ("task",), owner=TASKS[kind])
        return None
    return made
