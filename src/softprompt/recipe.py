"""Everything that decides a run, as one strict TOML file, with all its faults at once."""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    create_model,
)
from pydantic_core import ErrorDetails

from softprompt.errors import RecipeError, unknown
from softprompt.methods import METHODS, MethodSettings
from softprompt.methods.defaults import Schedule
from softprompt.tasks import TASKS, TaskSettings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Share = float
Settings = TypeVar("Settings", bound="DataclassInstance")


class Section(BaseModel):
    """A table of the recipe: frozen, and no key but the named ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class OpenSection(BaseModel):
    """A table whose further keys depend on what is chosen in it."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    def settings(self) -> dict[str, Any]:
        """The further keys."""
        return dict(self.__pydantic_extra__ or {})


class BackboneSection(Section):
    """Which model, and how it is loaded."""

    name: str = Field(description="Hub id, folder, .gguf file or builtin: name")
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    device_map: str | dict[str, str | int] | None = None
    quantization: dict[str, Any] | None = None
    dropout: bool = False
    trust_remote_code: bool = False


class Shares(Section):
    """How one file is split."""

    train: Share = 0.8
    validation: Share = 0.1
    test: Share = 0.1


class Limit(Section):
    """At most so many rows of each split, sampled with the recipe's seed."""

    train: PositiveInt | None = None
    validation: PositiveInt | None = None
    test: PositiveInt | None = None


class DataSection(Section):
    """Where the rows come from: files, Hub data sets (``name:config[split]``), ``builtin:``."""

    train: str
    validation: str | None = None
    test: str | None = None
    shares: Shares = Shares()
    group: str | None = Field(None, description="rows that share this column stay together")
    limit: Limit = Limit()
    max_length: PositiveInt | None = None


class InitialiseSection(Section):
    """What the prompt is before its first step."""

    source: Literal["vocabulary", "labels", "text", "random", "artifact"] = Field(alias="from")
    text: str | None = None
    words: list[str] | None = None
    path: str | None = None


class MethodSection(OpenSection):
    """The method's name, how it starts, and its own settings."""

    name: str
    initialise: InitialiseSection | None = None


class TaskSection(OpenSection):
    """The task's kind and its own settings."""

    kind: str


class TrainSection(Section):
    """How the prompt is trained. What is None is chosen by method and backbone."""

    epochs: PositiveInt = 5
    steps: PositiveInt | None = None
    batch_size: PositiveInt = 32
    token_budget: PositiveInt | None = None
    accumulate: PositiveInt = 1
    optimizer: str | None = None
    optimizer_options: dict[str, Any] = {}
    learning_rate: PositiveFloat | None = None
    head_learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat | None = None
    schedule: Schedule | None = None
    warmup: NonNegativeFloat | None = None
    clip: PositiveFloat | None = 1.0
    evaluate_every: PositiveInt | None = None
    patience: PositiveInt | None = None
    select: str = "loss"
    gradient_checkpointing: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = []


class Recipe(Section):
    """Everything that decides a run. ``method_settings`` and ``task_settings`` are checked values."""

    seed: int = 42
    backbone: BackboneSection
    data: DataSection
    task: TaskSection
    method: MethodSection
    train: TrainSection = TrainSection()

    @property
    def method_settings(self) -> MethodSettings:
        """The method's own settings."""
        return _picked(METHODS[self.method.name], self.method.settings())

    @property
    def task_settings(self) -> TaskSettings:
        """The task's own settings."""
        return _picked(TASKS[self.task.kind], self.task.settings())

    def as_data(self) -> dict[str, Any]:
        """Plain data without what was left at None, as it is written to TOML and JSON."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def read_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe file.

    Args:
        changes: ``section.key=value`` with the value in TOML; a bare word is text.

    Raises:
        RecipeError: with all faults that were found.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        msg = f"no recipe {str(path)!r}. Write one with: softprompt init DATA"
        raise RecipeError([msg]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        msg = f"{path} is not TOML in UTF-8: {error}. Correct that place."
        raise RecipeError([msg]) from error
    for change in changes:
        _apply(data, change)
    return make_recipe(_located(data, path.resolve().parent))


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
        faults += [_said(e, (), Recipe) for e in error.errors()]
    faults += _choice_faults(data, "method", "name", METHODS)
    faults += _choice_faults(data, "task", "kind", TASKS)
    if recipe is not None:
        faults += _cross_faults(recipe)
    if faults or recipe is None:
        raise RecipeError(faults)
    return recipe


def _choice_faults(
    data: Mapping[str, Any], section: str, key: str, options: Mapping[str, type[Any]]
) -> list[str]:
    """The faults of a section whose keys depend on a choice made in it."""
    table = data.get(section)
    name = table.get(key) if isinstance(table, Mapping) else None
    if not isinstance(table, Mapping) or not isinstance(name, str):
        return []
    if name not in options:
        return [f"{section}.{key}: {unknown(section, name, options=options)}"]
    own = {k: v for k, v in table.items() if k not in {key, "initialise"}}
    try:
        _picked(options[name], own)
    except ValidationError as error:
        return [_said(e, (section,), options[name]) for e in error.errors()]
    return []


def _picked(settings: type[Settings], values: Mapping[str, Any]) -> Settings:
    """A settings dataclass from plain data, as strictly as the sections above."""
    named: Any = {
        f.name: (f.type, ... if f.default is MISSING else f.default) for f in fields(settings)
    }
    checked = create_model(settings.__name__, __base__=Section, **named)
    found = checked.model_validate(dict(values))
    return settings(**dict(found))


def _cross_faults(recipe: Recipe) -> list[str]:
    faults = []
    shares = recipe.data.shares
    total = shares.train + shares.validation + shares.test
    if abs(total - 1) > 1e-6:
        faults.append(f"data.shares: they add up to {total:g}, not 1. Correct them.")
    start = recipe.method.initialise
    needs = {"text": "text", "artifact": "path"}
    if start is not None:
        for key in ("text", "path"):
            wanted, given = needs.get(start.source) == key, getattr(start, key) is not None
            if wanted != given:
                fact = "is missing" if wanted else "means nothing"
                faults.append(f"method.initialise.{key}: {fact} with from = {start.source!r}.")
    if recipe.train.warmup is not None and recipe.train.warmup > 1:
        faults.append("train.warmup: it is a share of all steps, from 0 to 1.")
    return faults


def _said(error: ErrorDetails, before: tuple[str, ...], owner: type[Any]) -> str:
    """One fault as a person would say it."""
    where = ".".join(str(part) for part in (*before, *error["loc"]))
    match error["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            key = str(error["loc"][-1])
            inside = [str(part) for part in error["loc"][:-1]]
            return f"{where}: {unknown('key', key, options=_keys(owner, inside))}"
        case "missing" | "missing_argument":
            return f"{where}: is missing. Add it."
        case _:
            given = error["input"]
            return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}, not {given!r}."


def _keys(owner: type[Any], path: Iterable[str]) -> list[str]:
    """The keys that a table may have."""
    for part in path:
        if issubclass(owner, BaseModel) and part in owner.model_fields:
            inner = owner.model_fields[part].annotation
            owner = inner if isinstance(inner, type) else InitialiseSection
    if issubclass(owner, BaseModel):
        return [field.alias or name for name, field in owner.model_fields.items()]
    return [field.name for field in fields(owner)]


def _located(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Files that are named relative to the recipe, by their whole path."""
    named = [("backbone", "name"), ("data", "train"), ("data", "validation"), ("data", "test")]
    for section, key in named:
        table = data.get(section)
        value = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict) and isinstance(value, str) and (folder / value).exists():
            table[key] = str(folder / value)
    start = (
        data.get("method", {}).get("initialise") if isinstance(data.get("method"), dict) else None
    )
    if isinstance(start, dict) and isinstance(start.get("path"), str):
        start["path"] = str(folder / start["path"])
    return data


def _apply(data: dict[str, Any], change: str) -> None:
    """Change one value of a recipe, as ``--set a.b=c`` asks."""
    path, equals, text = change.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        msg = f"--set {change!r}: write section.key=value, such as train.epochs=3."
        raise RecipeError([msg])
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    table = data
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            msg = f"--set {change!r}: {key!r} is a value, not a table."
            raise RecipeError([msg])
    table[keys[-1]] = value
