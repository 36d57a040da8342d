"""Read a recipe from a file or from plain data, and report all its faults at once."""

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from softprompt._parsing import parse_toml
from softprompt._paths import expand_user, is_present
from softprompt.errors import RecipeError, format_unknown
from softprompt.methods import METHODS
from softprompt.recipe.init_faults import find_init_faults
from softprompt.recipe.renamed import explain_renamed_value, explain_unknown_key, find_new_key
from softprompt.recipe.schema import BackboneConfig, Recipe
from softprompt.recipe.values import check_extent, find_seed_faults, find_value_faults
from softprompt.tasks import TASKS, Classify, TaskSettings
from softprompt.tasks.strict_settings import build_settings
from softprompt.tasks.unused_settings import find_unused_settings

RecipeSource: TypeAlias = str | Path | Recipe | Mapping[str, Any]

_ROUNDING = 1e-6
# Of a recipe, in bytes; a table of many values is far smaller.
_LARGEST = 10_000_000
# The keys that every method, and every task, has in its table; the first one names it.
_COMMON_KEYS = {"method": ("name", "init"), "task": ("kind",)}
# The keys that may name files.
_FILE_KEYS = (("backbone", "name"), ("data", "train"), ("data", "validation"), ("data", "test"))
# The tables that `read_overrides` reads.
_OVERRIDE_TABLES = ("backbone", "task")


def make_recipe(data: Mapping[str, Any]) -> Recipe:
    """Make a recipe of plain data, and check it.

    Args:
        data: as in the TOML file.

    Returns:
        The recipe.

    Raises:
        RecipeError: with all faults at once.

    Examples:
        >>> recipe = make_recipe(
        ...     {
        ...         "backbone": {"name": "builtin:smollm2-135m-instruct"},
        ...         "data": {"train": "reviews.csv"},
        ...         "task": {"kind": "classify", "template": "{text}{soft:10}"},
        ...         "method": {"name": "prompt-tuning"},
        ...     }
        ... )
        >>> recipe.train.epochs
        5
    """
    check_extent(data)
    if "tasks" in data:
        fault = (
            "tasks: this is a multitask recipe, which only softprompt train and check take "
            "(train_multitask and check_multitask in Python). Give a recipe of one task."
        )
        raise RecipeError([fault])
    faults: list[str] = []
    recipe = None
    try:
        recipe = Recipe.model_validate(dict(data))
    except ValidationError as error:
        faults += explain_validation_error(error, owner=Recipe)
    faults += _find_choice_faults(data, "method", METHODS)
    faults += _find_choice_faults(data, "task", TASKS)
    if recipe is not None and not faults:
        faults += _find_cross_faults(recipe)
    keys = {fault.partition(":")[0] for fault in faults}
    faults += [f for f in find_value_faults(data) if f.partition(":")[0] not in keys]
    if faults or recipe is None:
        raise RecipeError(faults)
    return recipe


def _find_choice_faults(
    data: Mapping[str, Any], section: str, options: Mapping[str, type[Any]]
) -> list[str]:
    """The faults of a section whose keys depend on a choice made in it."""
    common = _COMMON_KEYS[section]
    table = data.get(section)
    name = table.get(common[0]) if isinstance(table, Mapping) else None
    if not isinstance(table, Mapping) or not isinstance(name, str):
        return []
    if name not in options:
        return [f"{section}.{common[0]}: {format_unknown(section, name, options=options)}"]
    settings = {key: value for key, value in table.items() if key not in common}
    try:
        built = build_settings(options[name], settings)
    except ValidationError as error:
        return explain_validation_error(error, (section,), owner=options[name])
    return [*find_unused_settings(built)] if isinstance(built, TaskSettings) else []


def _find_cross_faults(recipe: Recipe) -> Iterator[str]:
    """The faults of keys that depend on each other."""
    shares = recipe.data.split_sizes
    total = shares.train + shares.validation + shares.test
    if abs(total - 1) > _ROUNDING:
        yield f"data.split_sizes: they add up to {total:g}, not 1. Correct them."
    if recipe.data.folds is not None:
        yield from _find_fold_faults(recipe)
    placed = [key for key in ("device_map", "quantization_config") if dict(recipe.backbone)[key]]
    if recipe.backbone.shard and placed:
        yield (
            f"backbone.shard: does not go with backbone.{placed[0]}, which places or packs the "
            "weights in another way. Take one of the two out."
        )
    yield from find_init_faults(recipe)
    yield from find_seed_faults(recipe)
    warmup = recipe.train.warmup_ratio
    if warmup is not None and warmup > 1:
        yield f"train.warmup_ratio: it is a share of all steps, from 0 to 1, not {warmup:g}."


def _find_fold_faults(recipe: Recipe) -> Iterator[str]:
    if recipe.data.validation is not None:
        yield (
            "data.folds: every training row validates once, so there is no place for validation "
            "rows. Take one of data.folds and data.validation out."
        )
    if recipe.train.early_stopping_patience is not None:
        yield (
            "train.early_stopping_patience: with data.folds the mean of all folds chooses the "
            "number of steps, which needs all of them. Take it out."
        )


def explain_validation_error(
    error: ValidationError, before: tuple[str, ...] = (), *, owner: type[Any]
) -> list[str]:
    """The faults in plain words, one for each key.

    Args:
        error: of pydantic.
        before: the path of the table that was checked.
        owner: the class that it was checked by.
    """
    messages: dict[str, list[str]] = {}
    renamed: set[str] = set()
    for fault in error.errors():
        path = [str(part) for part in fault["loc"]]
        # Of a union, pydantic names the alternative as well: it is not part of the recipe.
        end = next((i for i, part in enumerate(path) if not _is_key(part)), len(path))
        where = ".".join([*before, *path[:end]])
        if where in messages and _is_other_word(fault):
            continue
        messages.setdefault(where, []).append(_explain_fault(fault, where, before, owner))
        if fault["type"] == "extra_forbidden":
            name = find_new_key(where, options=_list_keys(owner, path[:-1], before))
            renamed |= {".".join([*before, *path[:-1], name])} if name else set()
    return [
        f"{where}: {' Or: '.join(dict.fromkeys(alternatives))}"
        for where, alternatives in messages.items()
        if where not in renamed  # it is missing under its new name only
    ]


def _is_key(part: str) -> bool:
    """Whether part of a path is a key, not an alternative such as ``list[str]``."""
    is_type = part in {"str", "int", "float"} or part.startswith("constrained-")
    return not is_type and not {*"[({"} & {*part}


def _is_other_word(fault: ErrorDetails) -> bool:
    """Whether a number is not a word that may be in its place, which its own fault explains."""
    return fault["type"] == "literal_error" and not isinstance(fault["input"], str)


def _explain_fault(
    fault: ErrorDetails, where: str, before: tuple[str, ...], owner: type[Any]
) -> str:
    renamed = explain_renamed_value(where, fault["input"])
    if renamed is not None:
        return renamed
    match fault["type"]:
        case "extra_forbidden":
            table = [str(part) for part in fault["loc"][:-1]]
            return explain_unknown_key(where, options=_list_keys(owner, table, before))
        case "missing":
            return "is missing. Add it."
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"must be a table of keys, not {fault['input']!r}."
        case "value_error":
            return str(fault["ctx"]["error"])
        case _:
            message = fault["msg"]
            return f"{message[0].lower()}{message[1:]}, not {fault['input']!r}."


def _find_table(annotation: object) -> type[BaseModel] | None:
    """The class of a table in a field, which may be optional or a list; None without one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    tables = (_find_table(argument) for argument in get_args(annotation))
    return next((table for table in tables if table is not None), None)


def _list_keys(owner: type[Any], path: Iterable[str], before: tuple[str, ...]) -> list[str]:
    """The keys that the table at a path below ``owner`` may have."""
    for part in path:
        if issubclass(owner, BaseModel) and part in owner.model_fields:
            owner = _find_table(owner.model_fields[part].annotation) or owner
    if issubclass(owner, BaseModel):
        return [field.alias or name for name, field in owner.model_fields.items()]
    common = _COMMON_KEYS[before[0]] if before else ()
    return [*common, *(field.name for field in fields(owner))]


def read_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    r"""Read a recipe file.

    Args:
        path: of the TOML file; files in it are named relative to it.
        changes: ``section.key=value`` with the value in TOML; a bare word is text.

    Returns:
        The recipe.

    Raises:
        RecipeError: with all faults at once.

    Examples:
        >>> draft = "[backbone]\nname = 'builtin:minilm'\n[data]\ntrain = 'reviews.csv'\n"
        >>> draft += "[task]\nkind = 'classify'\n[method]\nname = 'p-tuning-v2'\n"
        >>> _ = Path("recipe.toml").write_text(draft)
        >>> read_recipe(Path("recipe.toml"), ["train.epochs=3"]).train.epochs
        3
    """
    return make_recipe(read_toml(path, changes))


def load_recipe(source: RecipeSource, changes: Sequence[str] = ()) -> Recipe:
    """Get a recipe from a file, plain data or another recipe.

    Args:
        source: the file; the same as a mapping, in which files are named relative to the working
            directory; or a recipe.
        changes: ``section.key=value`` with the value in TOML; a bare word is text.

    Returns:
        The recipe.

    Raises:
        RecipeError: with all faults at once.

    Examples:
        >>> recipe = load_recipe(
        ...     {
        ...         "backbone": {"name": "builtin:minilm"},
        ...         "data": {"train": "reviews.csv"},
        ...         "task": {"kind": "classify"},
        ...         "method": {"name": "p-tuning-v2"},
        ...     }
        ... )
        >>> load_recipe(recipe, ["seed=7"]).seed
        7
    """
    match source:
        case str() | Path():
            return read_recipe(Path(source), changes)
        case Recipe():
            return make_recipe(apply_overrides(source.as_data(), changes)) if changes else source
        case Mapping():
            check_extent(source)
            return make_recipe(apply_overrides(deepcopy(dict(source)), changes))
        case _:
            fault = (
                f"a recipe is the path of a file, a mapping or a Recipe, not "
                f"{type(source).__name__}. Give one of these."
            )
            raise RecipeError([fault])


def read_toml(path: Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Read a recipe file as plain data with changes and absolute paths; it is not yet checked.

    Args:
        path: of the file.
        changes: as in `read_recipe`.

    Raises:
        RecipeError: the file does not exist or is not TOML, or a change is not valid.
    """
    try:
        data = parse_toml(_read_text(path))
    except ValueError as error:
        msg = f"{path} is not TOML in UTF-8: {error}. Correct that place."
        raise RecipeError([msg]) from error
    apply_overrides(data, changes)
    check_extent(data)
    _resolve_files(data, path.resolve().parent)
    return data


def _read_text(path: Path) -> str:
    """The text of a recipe.

    Raises:
        RecipeError: there is no such file, or it cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    if not is_present(path):
        msg = f"no recipe {str(path)!r}. Write one with: softprompt init DATA"
        raise RecipeError([msg])
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST + 1)  # a device has no end
    except OSError as error:
        msg = (
            f"{path} cannot be read: {error.strerror}. Give a recipe file that this user may read."
        )
        raise RecipeError([msg]) from error
    if len(raw) > _LARGEST:
        msg = f"{path} has more than {_LARGEST:,} bytes, far more than a recipe. Name another."
        raise RecipeError([msg])
    return raw.decode("utf-8")


def apply_overrides(data: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Set single values of plain data, in place.

    Raises:
        RecipeError: with all changes that are not valid.
    """
    faults = [fault for change in changes if (fault := _apply_override(data, change))]
    if faults:
        raise RecipeError(faults)
    return data


def _apply_override(data: dict[str, Any], change: str) -> str | None:
    """Set one value of a recipe, as ``--set a.b=c`` does; or return the fault of the change."""
    path, equals, text = change.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        return f"--set {change!r}: write section.key=value, such as train.epochs=3."
    table = data
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            return f"--set {change!r}: {key!r} is a value, not a table. Set {key!r} itself."
    try:
        table[keys[-1]] = _parse_value(text)
    except ValueError as error:
        return f"--set {path.strip()}: {error}. Write a value that a run can use."
    return None


def _parse_value(text: str) -> object:
    """A value in TOML, else text; dates are text, since recipes have none.

    Raises:
        ValueError: it is a number of thousands of digits, or nested too deeply.
    """
    try:
        value: object = parse_toml(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, str | bool | int | float | list | dict) else text


def _resolve_files(data: dict[str, Any], folder: Path) -> None:
    """Replace names of files relative to the recipe by absolute paths."""
    for section, key in _FILE_KEYS:
        table = data.get(section)
        value = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict) and isinstance(value, str):
            # A workbook's sheet is in brackets after its name.
            path = value.partition("[")[0] if value.endswith("]") else value
            if path and is_present(folder / path):
                table[key] = str(folder / value)
    tasks = data.get("tasks")  # of a multitask recipe
    for task in tasks.values() if isinstance(tasks, dict) else ():
        if isinstance(task, dict):
            _resolve_files(task, folder)
    method = data.get("method")
    init = method.get("init") if isinstance(method, Mapping) else None
    if not isinstance(init, dict):
        return
    if isinstance(init.get("path"), str):
        init["path"] = str(folder / expand_user(init["path"]))
    if isinstance(paths := init.get("paths"), list):
        init["paths"] = [str(folder / expand_user(p)) if isinstance(p, str) else p for p in paths]


def read_overrides(
    changes: Sequence[str], *, backbone: Mapping[str, object]
) -> tuple[BackboneConfig, TaskSettings | None]:
    """The tables ``backbone`` and ``task`` of changes alone, as in ``softprompt import``.

    Args:
        changes: ``task.key=value`` or ``backbone.key=value``, as in `read_recipe`.
        backbone: the defaults of that table.

    Returns:
        The backbone, and the task; None if none of its keys is set.

    Raises:
        RecipeError: with all faults at once.
    """
    data = apply_overrides({"backbone": dict(backbone)}, changes)
    faults = [
        format_unknown("table", name, options=_OVERRIDE_TABLES)
        for name in data
        if name not in _OVERRIDE_TABLES
    ]
    section, task = None, None
    try:
        section = BackboneConfig.model_validate(data["backbone"])
    except ValidationError as error:
        faults += explain_validation_error(error, ("backbone",), owner=BackboneConfig)
    if "task" in data:
        task = _build_task(data["task"], faults)
    if faults or section is None:
        raise RecipeError(faults)
    return section, task


def read_answer_settings(changes: Sequence[str]) -> dict[str, Any]:
    """Settings of how answers are read, for `PromptModel.with_task`.

    Args:
        changes: ``task.key=value`` with the value in TOML.

    Returns:
        The values by key.

    Raises:
        RecipeError: a change is not of this form.
    """
    data = apply_overrides({}, changes)
    others = [name for name in data if name != "task"]
    if others:
        fault = f"{others[0]}: a trained prompt keeps it. Only settings of task can be changed."
        raise RecipeError([fault])
    return dict(data.get("task", {}))


def _join_options(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]])


def _infer_kind(keys: Iterable[str]) -> str | None:
    """The kind of task that has these keys, some of them unlike others; if in doubt, `Classify`."""
    keys_by_kind = {kind: {field.name for field in fields(task)} for kind, task in TASKS.items()}
    common = set.intersection(*keys_by_kind.values())
    given = {*keys} - common
    kinds = [kind for kind, names in keys_by_kind.items() if given & names]
    if len(kinds) > 1:
        kinds = [kind for kind in kinds if given <= keys_by_kind[kind]]
    if Classify.kind in kinds:
        return Classify.kind
    return kinds[0] if len(kinds) == 1 else None


def _build_task(table: object, faults: list[str]) -> TaskSettings | None:
    """The settings of a task; None if there are faults, which are added to the list."""
    if not isinstance(table, dict):
        faults.append(f"task: must be a table of keys, not {table!r}.")
        return None
    values: dict[str, Any] = dict(table)
    kind = values.pop("kind", None) or _infer_kind(values)
    if kind is None:
        known = {field.name for task in TASKS.values() for field in fields(task)}
        unknown = [key for key in values if key not in known]
        faults += [
            f"task.{key}: {explain_unknown_key(f'task.{key}', options=known)}" for key in unknown
        ]
        faults.append(f"task.kind: is missing. Add it: {_join_options(sorted(TASKS))}.")
        return None
    if not isinstance(kind, str) or kind not in TASKS:
        faults.append(f"task.kind: {format_unknown('task', str(kind), options=TASKS)}")
        return None
    try:
        settings: TaskSettings = build_settings(TASKS[kind], values)
    except ValidationError as error:
        faults += explain_validation_error(error, ("task",), owner=TASKS[kind])
        return None
    faults += find_unused_settings(settings)
    return settings
