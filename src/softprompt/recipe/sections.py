"""The tables of a recipe. What is None is chosen by method, backbone or machine."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    create_model,
)

from softprompt.methods import METHODS, MethodSettings
from softprompt.methods.defaults import Schedule
from softprompt.tasks import TASKS, TaskSettings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

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
    shard: bool = Field(
        default=False, description="its layers' weights over the processes of accelerate launch"
    )
    dropout: bool = False
    trust_remote_code: bool = False


class Shares(Section):
    """How one file is split."""

    train: PositiveFloat = 0.8
    validation: NonNegativeFloat = 0.1
    test: NonNegativeFloat = 0.1


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
    names: dict[str, dict[str, str]] = Field({}, description="of a column's values, by column")
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
    clip: NonNegativeFloat = Field(1.0, description="the gradient's largest norm; 0 for any")
    evaluate_every: PositiveInt | None = None
    evaluate_rows: PositiveInt | None = None
    evaluate_train: PositiveInt | None = None
    patience: PositiveInt | None = None
    select: str = "loss"
    gradient_checkpointing: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = []


class CacheSection(Section):
    """How much may be kept of what no step changes, in gigabytes of 10^9 bytes."""

    memory: NonNegativeFloat = Field(2.0, description="up to here it is held in memory")
    disk: NonNegativeFloat = Field(16.0, description="of all runs; the longest unused makes room")


class Recipe(Section):
    """Everything that decides a run."""

    # A seed is multiplied by the steps of a run and must still be one that torch takes.
    seed: int = Field(42, ge=0, lt=2**31)
    backbone: BackboneSection
    data: DataSection
    task: TaskSection
    method: MethodSection
    train: TrainSection = TrainSection()
    cache: CacheSection = CacheSection()

    @property
    def method_settings(self) -> MethodSettings:
        """The method's own settings."""
        return cast("MethodSettings", picked(METHODS[self.method.name], self.method.settings()))

    @property
    def task_settings(self) -> TaskSettings:
        """The task's own settings."""
        return picked(TASKS[self.task.kind], self.task.settings())

    def as_data(self) -> dict[str, Any]:
        """Plain data without what was left at None, as it is written to TOML and JSON."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def picked(settings: type[Settings], values: Mapping[str, Any]) -> Settings:
    """A settings dataclass from plain data, as strictly as the sections above.

    Raises:
        pydantic.ValidationError: a key is unknown, missing or of the wrong type.
    """
    named: Any = {
        f.name: (f.type, ... if f.default is MISSING else f.default) for f in fields(settings)
    }
    checked = create_model(settings.__name__, __base__=Section, **named)
    found = checked.model_validate(dict(values))
    return settings(**dict(found))
