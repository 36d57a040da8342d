"""Multitask recipes: several tasks that train one shared prompt on one backbone."""

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, ValidationError

from softprompt.errors import RecipeError
from softprompt.methods import MultitaskPromptTuning
from softprompt.recipe.loading import (
    apply_overrides,
    explain_validation_error,
    make_recipe,
    read_toml,
)
from softprompt.recipe.schema import Recipe
from softprompt.recipe.values import check_extent
from softprompt.tasks.config import StrictModel

_FEWEST_TASKS = 2
# A task's name is that of its folder.
_NAME = re.compile(r"\w[\w.-]*")


class TaskTables(StrictModel):
    """The tables of one task."""

    data: dict[str, Any] = Field(description="Where its rows come from; the keys of `[data]`.")
    task: dict[str, Any] = Field(description="The keys of `[task]`.")


class MultitaskTables(StrictModel):
    """The keys that only a multitask recipe has."""

    sampling_temperature: PositiveFloat = Field(
        1.0,
        description="How the steps are divided among the tasks: each gets a share proportional to "
        "its number of batches to the power of 1 / `sampling_temperature`. 1: every row is seen as "
        "often; higher: small tasks get more steps.",
    )
    tasks: dict[str, TaskTables] = Field(
        description="A table for each task by its name, with the tables `data` and `task`."
    )


@dataclass(frozen=True)
class MultitaskRecipe:
    """Everything that decides a run of several tasks.

    `make_multitask_recipe` and `read_multitask_recipe` make one.

    Args:
        recipes: of each task by its name; they differ in ``data`` and ``task`` only.
        sampling_temperature: how the steps are divided among the tasks.

    Examples:
        >>> task = {"data": {"train": "rows.csv"}, "task": {"kind": "classify"}}
        >>> recipe = make_multitask_recipe(
        ...     {
        ...         "backbone": {"name": "builtin:minilm"},
        ...         "method": {"name": "multitask-prompt-tuning"},
        ...         "tasks": {"mood": task, "topic": task},
        ...     }
        ... )
        >>> [*recipe.recipes], recipe.sampling_temperature
        (['mood', 'topic'], 1.0)
    """

    recipes: Mapping[str, Recipe]
    sampling_temperature: float = 1.0

    @property
    def shared(self) -> Recipe:
        """The recipe of the first task, of which all but ``data`` and ``task`` is shared."""
        return next(iter(self.recipes.values()))

    def as_data(self) -> dict[str, Any]:
        """Plain data without keys that are None, as in TOML and JSON.

        Returns:
            The tables by name.
        """
        tables = {name: recipe.as_data() for name, recipe in self.recipes.items()}
        shared = {
            key: value
            for key, value in self.shared.as_data().items()
            if key not in TaskTables.model_fields
        }
        tasks = {
            name: {key: table[key] for key in TaskTables.model_fields}
            for name, table in tables.items()
        }
        return {**shared, "sampling_temperature": self.sampling_temperature, "tasks": tasks}


def is_multitask(data: Mapping[str, Any]) -> bool:
    """Whether plain data, as read from TOML, is a multitask recipe.

    Args:
        data: of a recipe of any kind.
    """
    return "tasks" in data


def read_multitask_recipe(path: Path, changes: Sequence[str] = ()) -> MultitaskRecipe:
    r"""Read a multitask recipe from a file.

    Args:
        path: of the TOML file; files in it are named relative to it.
        changes: ``section.key=value`` with the value in TOML; a bare word is text.

    Returns:
        The recipe.

    Raises:
        RecipeError: with all faults at once.

    Examples:
        >>> draft = "[backbone]\nname = 'builtin:minilm'\n"
        >>> draft += "[method]\nname = 'multitask-prompt-tuning'\n"
        >>> for name in ("mood", "topic"):
        ...     draft += f"[tasks.{name}]\ndata.train = '{name}.csv'\ntask.kind = 'classify'\n"
        >>> _ = Path("tasks.toml").write_text(draft)
        >>> recipe = read_multitask_recipe(Path("tasks.toml"), ["train.epochs=3"])
        >>> recipe.shared.train.epochs
        3
    """
    return make_multitask_recipe(read_toml(path, changes))


def make_multitask_recipe(data: Mapping[str, Any], changes: Sequence[str] = ()) -> MultitaskRecipe:
    """Make a multitask recipe of plain data, and check it.

    Args:
        data: as in the TOML file: the tables of a recipe, but ``data`` and ``task`` for each task
            under ``tasks``.
        changes: ``section.key=value`` with the value in TOML; a bare word is text.

    Returns:
        The recipe. Without ``method.init``, the shared prompt starts from sampled vocabulary.

    Raises:
        RecipeError: with all faults at once.

    Examples:
        >>> make_multitask_recipe({"tasks": {}})
        Traceback (most recent call last):
        softprompt.errors.RecipeError: 1 fault in the recipe:
          - tasks: 0 tasks cannot share a prompt. Name at least two, each as a table [tasks.NAME].
    """
    check_extent(data)
    table = apply_overrides(deepcopy(dict(data)), changes)
    own = {key: table[key] for key in MultitaskTables.model_fields if key in table}
    try:
        tables = MultitaskTables.model_validate(own)
    except ValidationError as error:
        raise RecipeError(explain_validation_error(error, owner=MultitaskTables)) from error
    shared = {key: value for key, value in table.items() if key not in own}
    faults = [*_find_table_faults(tables, shared)]
    recipes = {} if faults else _make_recipes(tables, shared, faults=faults)
    if not faults:
        faults += _find_shared_faults(next(iter(recipes.values())))
        faults += [
            f"tasks.{name}.data.folds: the tasks train together, once. Give the task validation "
            "rows instead."
            for name, recipe in recipes.items()
            if recipe.data.folds is not None
        ]
    if faults:
        raise RecipeError(faults)
    return MultitaskRecipe(recipes, tables.sampling_temperature)


def _find_table_faults(tables: MultitaskTables, shared: Mapping[str, Any]) -> Iterator[str]:
    """The faults of the names, and tables in the wrong place."""
    if len(tables.tasks) < _FEWEST_TASKS:
        count = "1 task" if tables.tasks else "0 tasks"
        yield (
            f"tasks: {count} cannot share a prompt. Name at least two, each as a table "
            "[tasks.NAME]."
        )
    for name in tables.tasks:
        if not _NAME.fullmatch(name):
            yield (
                f"tasks: {name!r} is not a valid name of a folder. Use letters, digits, '_', '-' "
                "and '.', the first of them a letter or a digit."
            )
    for key in TaskTables.model_fields:
        if key in shared:
            yield f"{key}: each task has its own. Write it as [tasks.NAME.{key}]."


def _make_recipes(
    tables: MultitaskTables, shared: Mapping[str, Any], *, faults: list[str]
) -> dict[str, Recipe]:
    """The recipe of each task; faults are added to the list, those of shared tables once."""
    method, recipes, found = shared.get("method"), dict[str, Recipe](), list[str]()
    if isinstance(method, Mapping):
        shared = {**shared, "method": {"init": {"from": "vocabulary"}, **method}}
    for name, own in tables.tasks.items():
        try:
            recipes[name] = make_recipe({**shared, "data": own.data, "task": own.task})
        except RecipeError as error:
            found += [
                f"tasks.{name}.{fault}" if fault.startswith(("data", "task")) else fault
                for fault in error.faults
            ]
    faults += dict.fromkeys(found)
    return recipes


def _find_shared_faults(recipe: Recipe) -> Iterator[str]:
    """The faults of what the tasks share: settings that only a run of one task has."""
    method, train, init = recipe.method, recipe.train, recipe.method.init
    if method.name != MultitaskPromptTuning.name:
        yield (
            f"method.name: {method.name} trains a prompt for one task. Write "
            f'"{MultitaskPromptTuning.name}", or give each task a recipe of its own.'
        )
    if method.collect_settings().get("train_shared") is False:
        yield "method.train_shared: without a shared prompt the tasks share nothing. Take it out."
    if init is not None and init.source == "labels" and init.words is None:
        yield (
            "method.init.words: is missing: the labels of each task differ, but the tasks share "
            "one start. Add the words."
        )
    if init is not None and init.source == "artifacts":
        yield (
            'method.init.from: "artifacts" chooses by the validation rows of one task, but the '
            'tasks share one start. Name one with "artifact".'
        )
    if train.seeds > 1:
        yield f"train.seeds: {train.seeds} seeds train one task each. Write a recipe for each seed."
    for key, value in (
        ("epochs", "auto"),
        ("learning_rate", "auto"),
        ("lr_scheduler", "plateau"),
        ("keep_plain_head", True),
    ):
        if dict(train)[key] == value:
            shown = f'"{value}"' if isinstance(value, str) else "true"
            yield (
                f"train.{key}: {shown} depends on a single task, but the tasks train "
                "together. Give another value."
            )
