"""The schema of a recipe. Values that are None are chosen by method, backbone or machine."""

from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)

from softprompt.data.loading import DataConfig
from softprompt.methods import METHODS, MethodSettings
from softprompt.methods.defaults import Schedule
from softprompt.tasks import TASKS, TaskSettings
from softprompt.tasks.config import StrictModel
from softprompt.tasks.strict_settings import build_settings

# Beyond these a step or a number of bytes overflows, and two seeds share an order of rows.
_HIGHEST_RATE = 1e6
_MOST_GIGABYTES = 1e9
_MOST_EPOCHS = 1_000_000
_MOST_SEEDS = 1000
# Seeds are below this.
SEED_LIMIT = 2**31

Auto: TypeAlias = Literal["auto"]
HeadInit: TypeAlias = Literal["regression", "random"]


class OpenModel(BaseModel):
    """A table whose further keys depend on a choice in it."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    def collect_settings(self) -> dict[str, Any]:
        """The further keys."""
        return dict(self.__pydantic_extra__ or {})


class BackboneConfig(StrictModel):
    """The frozen model, and how it is loaded."""

    name: str = Field(
        description="A Hub id, a folder, a `.gguf` file, `builtin:minilm`, "
        "`builtin:smollm2-135m-instruct` or `builtin:gemma3-270m`."
    )
    revision: str | None = Field(None, description="A branch, tag or commit on the Hub.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="The precision of the weights. `auto`: bf16 where the hardware has it."
    )
    device: str = Field(
        "auto", description="Such as `cpu` or `cuda:1`. `auto`: the best one of the machine."
    )
    device_map: str | dict[str, str | int] | None = Field(
        None, description="Passed to transformers, as `device_map`."
    )
    quantization_config: dict[str, Any] | None = Field(
        None,
        description="Passed to transformers, as `quantization_config`: `{ quant_method = "
        '"bitsandbytes", load_in_8bit = true }`.',
    )
    shard: bool = Field(
        default=False,
        description="Whether the weights of the layers are sharded over the processes of "
        "`accelerate launch`.",
    )
    keep_dropout: bool = Field(
        default=False, description="Whether the backbone's own dropout is on in training."
    )
    trust_remote_code: bool = Field(
        default=False, description="Whether code from the checkpoint may be run."
    )


class InitConfig(StrictModel):
    """The initialization: the prompt before the first step."""

    source: Literal[
        "vocabulary", "labels", "text", "random", "artifact", "artifacts", "demonstrations"
    ] = Field(
        alias="from",
        description="`vocabulary`: embeddings of sampled words; `labels`: label words; `text`; "
        "`random`: as the method's paper draws it; `artifact`: a trained prompt; `artifacts`: the "
        "one of several trained prompts that has the lowest validation loss; `demonstrations`: the "
        "keys and values of labeled training rows, for prefixes on causal backbones.",
    )
    text: str | None = Field(None, description="The text, for `text`.")
    words: list[str] | None = Field(
        None,
        description="The words, for `labels`. Left out: those of the verbalizer, or the labels.",
    )
    path: str | None = Field(None, description="The artifact's directory, for `artifact`.")
    paths: list[str] | None = Field(
        None, description="The artifacts' directories, for `artifacts`; at least two."
    )
    rows: PositiveInt | None = Field(
        None,
        description="The number of training rows, for `demonstrations`; balanced by label. Left "
        "out: 16, or as many as there are and fit.",
    )


def _leave_init_open(init: object) -> object:
    """What is left open is None."""
    if isinstance(init, str) and init != "auto":
        msg = f'must be "auto" or a table of keys, such as {{ from = "text", … }}, not {init!r}.'
        raise ValueError(msg)
    return None if init == "auto" else init


class MethodConfig(OpenModel):
    """How the prompt is parametrised while it is trained."""

    name: str = Field(description="The method.")
    init: Annotated[InitConfig | None, BeforeValidator(_leave_init_open)] = Field(
        None,
        description='The initialization. Left out, or `"auto"`: the one that is best by published '
        "or measured results for the method and the backbone, with label words in place of sampled "
        "ones where there are some.",
    )


class TaskConfig(OpenModel):
    """What the backbone's output is used for."""

    kind: str = Field(description="The task.")


class TrainConfig(StrictModel):
    """How the prompt is trained. `softprompt check` shows each value and its source."""

    epochs: Annotated[PositiveInt, Field(le=_MOST_EPOCHS)] | Auto = Field(
        5,
        description="Passes over the training rows; the run ends at `max_steps` if that is less. "
        '`"auto"`: eight, but from 120 to 1,000 steps and no fewer than three epochs, with eight '
        "validations; with `data.folds`, 100 steps of which the folds choose how many are made.",
    )
    max_steps: PositiveInt | None = Field(
        None, description="The most optimizer steps. Left out: those of all epochs."
    )
    batch_size: PositiveInt = Field(
        32, description="Rows of an optimizer step, over all processes."
    )
    max_tokens_per_batch: PositiveInt | None = Field(
        None, description="The most padded tokens in a step. Left out: no limit."
    )
    gradient_accumulation_steps: PositiveInt = Field(
        1,
        description="Parts in which the rows of a step are run. This changes memory, not numbers: "
        "`batch_size` counts the rows of all parts.",
    )
    optimizer: str | None = Field(
        None,
        description="`adamw`, `adafactor` or a class of `torch.optim`. Left out: by method and "
        "backbone.",
    )
    optimizer_args: dict[str, Any] = Field(
        {}, description="Further arguments of the optimizer's class."
    )
    learning_rate: Annotated[PositiveFloat, Field(le=_HIGHEST_RATE)] | Auto | None = Field(
        None,
        description="Of the prompt, at its highest. Left out: by method and backbone. "
        '`"auto"`: short runs from the same start choose a multiple of that, before the first '
        "step.",
    )
    head_learning_rate: PositiveFloat | None = Field(
        None,
        le=_HIGHEST_RATE,
        description="Of a trained head. Left out: 0.001, multiplied as an automatic "
        "`learning_rate` is.",
    )
    head_init: HeadInit = Field(
        "regression",
        description="What a linear head starts as: a logistic regression on the training rows with "
        "the prompt's start, or `random` weights. Heads of several layers start at random.",
    )
    weight_decay: NonNegativeFloat | None = Field(
        None, le=_HIGHEST_RATE, description="Of the prompt. Left out: by method and backbone."
    )
    lr_scheduler: Schedule | None = Field(
        None,
        description="How both learning rates fall after the warm-up; `plateau`: to a third, where "
        "two validations were not better. Left out: by method and backbone.",
    )
    warmup_ratio: NonNegativeFloat | None = Field(
        None,
        description="The part of all steps, from 0 to 1, in which the learning rates rise. Left "
        "out: by method and backbone.",
    )
    max_grad_norm: NonNegativeFloat = Field(
        1.0, description="The norm that gradients are clipped to; 0: no clipping."
    )
    eval_every_steps: PositiveInt | None = Field(
        None, description="Steps between validations. Left out: the steps of an epoch."
    )
    max_eval_rows: PositiveInt | None = Field(
        None,
        description="The most validation rows that are evaluated while training, always the same "
        "ones; the best prompt is evaluated on all of them at the end. Left out: all.",
    )
    eval_train_rows: PositiveInt | None = Field(
        None,
        description="Training rows that are evaluated at each validation too, always the same "
        "ones. Left out: none.",
    )
    early_stopping_patience: PositiveInt | None = Field(
        None,
        description="The run ends after so many validations without a better one. Left out: never.",
    )
    best_metric: str = Field(
        "loss",
        description="The validation metric by which the best prompt is chosen; `loss`, `ece`, "
        "`mae` and `rmse` are minimized, any other maximized.",
    )
    seeds: PositiveInt = Field(
        1,
        le=_MOST_SEEDS,
        description="How often a prompt is trained, each time with another seed for the "
        "initialization and the order of rows: `seed`, `seed` + 1, … Splits, readout, learning "
        "rate and length are chosen once.",
    )
    combine_seeds: Literal["best", "ensemble"] = Field(
        "best",
        description="The result of several seeds. `best`: the one prompt that `best_metric` "
        "chooses by validation rows or folds; `ensemble`: all, whose probabilities are averaged "
        "(of generated texts, the commonest).",
    )
    keep_plain_head: bool = Field(
        default=False,
        description="Whether the prompt is compared with a plain head, a logistic regression on "
        "the states of the bare backbone, by validation rows or folds, and the artifact is that "
        "head alone, with a prompt of length 0, where no prompt was better.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Whether each layer is run again in the backward pass, which saves memory.",
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        "no", description="Autocast of the forward pass."
    )
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(
        [], description="Where metrics are logged too. Without them nothing leaves the machine."
    )


class CacheConfig(StrictModel):
    """How much is cached of the states that training does not change. 1 GB is 10^9 bytes."""

    memory_gb: NonNegativeFloat = Field(
        2.0,
        le=_MOST_GIGABYTES,
        description="Gigabytes; states up to this size are held in memory as well.",
    )
    disk_gb: NonNegativeFloat | None = Field(
        None,
        le=_MOST_GIGABYTES,
        description="Gigabytes of the files of all runs; the least recently used are deleted. 0: "
        "no files. Left out: 16, but no file of more than 2 GB, or of more than a tenth of the "
        "free disk.",
    )


class Recipe(StrictModel):
    """Everything that decides a run: `make_recipe`, `read_recipe` and `load_recipe` make one.

    Attributes:
        seed: of splits, samples, the initialization and the order of rows.
        backbone: the frozen model, and how it is loaded.
        data: where the rows come from.
        task: what the backbone's output is used for.
        method: how the prompt is parametrised while it is trained.
        train: how the prompt is trained.
        cache: how much is cached of the states that training does not change.

    Examples:
        >>> from softprompt.recipe import load_recipe
        >>> recipe = load_recipe(
        ...     {
        ...         "backbone": {"name": "builtin:minilm"},
        ...         "data": {"train": "reviews.csv"},
        ...         "task": {"kind": "classify"},
        ...         "method": {"name": "p-tuning-v2", "length": 40},
        ...     }
        ... )
        >>> recipe.method_settings.length
        40
    """

    # Multiplied by the steps of a run, a seed must still be in the range of torch's seeds.
    seed: int = Field(
        42,
        ge=0,
        lt=SEED_LIMIT,
        description="Decides splits, samples, the initialization and the order of rows.",
    )
    backbone: BackboneConfig = Field(description="The frozen model, and how it is loaded.")
    data: DataConfig = Field(description="Where the rows come from.")
    task: TaskConfig = Field(description="What the backbone's output is used for.")
    method: MethodConfig = Field(description="How the prompt is parametrised while it is trained.")
    train: TrainConfig = Field(TrainConfig(), description="How the prompt is trained.")
    cache: CacheConfig = Field(
        CacheConfig(),
        description="How much is cached of the states that training does not change.",
    )

    @property
    def method_settings(self) -> MethodSettings:
        """The method's own settings."""
        return cast(
            "MethodSettings",
            build_settings(METHODS[self.method.name], self.method.collect_settings()),
        )

    @property
    def task_settings(self) -> TaskSettings:
        """The task's own settings."""
        return build_settings(TASKS[self.task.kind], self.task.collect_settings())

    def as_data(self) -> dict[str, Any]:
        """Plain data without keys that are None, as in TOML and JSON.

        Returns:
            The tables by name.
        """
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
