"""The plan of a comparison: variants of one recipe that differ only in what is trained.

A comparison is described by a recipe, or by a comparison file that names its recipe under ``base``.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from softprompt._parsing import parse_toml
from softprompt.data import parse_template
from softprompt.errors import RecipeError, format_unknown
from softprompt.methods import METHODS, MultitaskPromptTuning
from softprompt.recipe import (
    Recipe,
    RecipeSource,
    StrictModel,
    explain_validation_error,
    load_recipe,
    make_recipe,
)
from softprompt.train.templates import make_hard_template

# What a variant trains: a prompt, all weights of the backbone, or LoRA weights.
VariantKind = Literal["prompt", "fine-tuning", "lora"]
Tuned = Literal["fine-tuning", "lora"]
TUNED: tuple[Tuned, ...] = ("fine-tuning", "lora")

BASELINES = ("majority", "hard-prompt", "linear-probe", *TUNED)

# Soft tokens where neither template nor method sets their number.
_DEFAULT_LENGTH = 20
# Settings of [train] that depend on the method.
_METHOD_KEYS = {
    "learning_rate",
    "optimizer",
    "optimizer_args",
    "weight_decay",
    "lr_scheduler",
    "warmup_ratio",
}


@dataclass(frozen=True)
class Variant:
    """One of the things compared: a recipe, and what it trains.

    Args:
        name: in the report.
        recipe: with the first seed.
        kind: what is trained; the method of a prompt is in the recipe.
    """

    name: str
    recipe: Recipe
    kind: VariantKind = "prompt"

    @property
    def folder(self) -> str:
        """The beginning of the names of its runs' folders."""
        return to_folder_name(self.name)

    @property
    def cache_key(self) -> str:
        """A digest of its settings."""
        facts = f"{self.kind} {self.recipe.model_dump_json()}"
        return blake2b(facts.encode(), digest_size=8).hexdigest()


def to_folder_name(name: str) -> str:
    """The name with each run of unusual characters replaced by a hyphen."""
    return re.sub(r"[^\w.-]+", "-", name)


def make_method_variants(recipe: Recipe, methods: Sequence[str]) -> list[Variant]:
    """One variant of a recipe for each method.

    The recipe's own method keeps its settings. Another method gets the same number of soft tokens,
    either as its ``length`` or in front of the template, and its own defaults for the optimizer,
    the learning rate and the schedule.

    Raises:
        RecipeError: there is no such method, or one is named twice.
    """
    faults = [
        format_unknown("method", name, options=METHODS) for name in methods if name not in METHODS
    ]
    twice = sorted({name for name in methods if methods.count(name) > 1})
    faults += [f"method {name!r} is named twice. Name it once." for name in twice]
    if faults:
        raise RecipeError(faults)
    return [Variant(name, with_method(recipe, name)) for name in methods]


def make_finetune_variants(recipe: Recipe, kinds: Sequence[Tuned]) -> list[Variant]:
    """Variants that train the backbone itself, with the template of the hard prompt."""
    if not kinds:
        return []
    data = recipe.as_data()
    if recipe.task_settings.template is not None:
        data["task"]["template"] = make_hard_template(recipe, recipe.task_settings.template)
    data["train"] = _select_shared_keys(data)
    tuned = make_recipe(data)
    return [Variant(kind, tuned, kind) for kind in kinds]


def with_method(recipe: Recipe, name: str) -> Recipe:
    """A recipe with another method, and the same number of soft tokens."""
    if name == recipe.method.name:
        return recipe
    data = recipe.as_data()
    method: dict[str, Any] = {"name": name}
    if recipe.method.init is not None:
        method["init"] = data["method"]["init"]
    template = recipe.task_settings.template
    parsed = None if template is None else parse_template(template)
    length = recipe.method.collect_settings().get("length", _DEFAULT_LENGTH)
    if parsed is not None and parsed.soft_length:
        length = parsed.soft_length
    if METHODS[name].prompt_kind == "kv":
        method["length"] = length
        if parsed is not None:
            data["task"]["template"] = parsed.replace_soft_tokens("")
    elif parsed is not None and not parsed.soft_length:
        data["task"]["template"] = f"{{soft:{length}}}{template}"
    return make_recipe(data | {"method": method, "train": _select_shared_keys(data)})


def _select_shared_keys(data: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of ``[train]`` that all variants share."""
    return {key: value for key, value in data.get("train", {}).items() if key not in _METHOD_KEYS}


# All variants share the rows, the backbone, the task and the budget.
_SHARED_TABLES = {"seed", "backbone", "data", "cache"}
_SHARED_KEYS = {
    *(f"task.{key}" for key in ("kind", "label_column", "target_column", "choices", "labels")),
    *(
        f"train.{key}"
        for key in ("max_steps", "epochs", "batch_size", "max_tokens_per_batch", "best_metric")
    ),
    *(f"train.{key}" for key in ("eval_every_steps", "max_eval_rows", "early_stopping_patience")),
}


class VariantConfig(StrictModel):
    """A table ``[[variants]]``: the recipe with another method or other settings."""

    name: str
    method: str | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)


class ComparisonConfig(StrictModel):
    """A comparison file."""

    base: str = Field(description="the recipe that all variants share, relative to this file")
    methods: list[str] | None = None
    variants: list[VariantConfig] = Field(default_factory=list)
    baselines: list[str] = Field(default_factory=lambda: [*BASELINES])
    num_seeds: PositiveInt = 5
    lr_multipliers: list[PositiveFloat] = Field(default_factory=lambda: [0.3, 1.0, 3.0])
    search_fraction: float = Field(0.1, gt=0, le=1)
    time_budget_seconds: PositiveFloat | None = None


@dataclass(frozen=True)
class ComparisonPlan:
    """A comparison before it is run.

    Args:
        base: the recipe that all variants share.
        variants: everything that is trained with steps, baselines last.
        baselines: those without training steps, by name.
        num_seeds: how often each variant is trained.
        lr_multipliers: of the learning rate, to search.
        search_fraction: of the steps, for each multiplier of the search.
        time_budget_seconds: of training steps for each run; None for the recipe's steps.
    """

    base: Recipe
    variants: tuple[Variant, ...]
    baselines: tuple[str, ...]
    num_seeds: int
    lr_multipliers: tuple[float, ...]
    search_fraction: float
    time_budget_seconds: float | None


def read_plan(source: RecipeSource, changes: Sequence[str] = (), **options: Any) -> ComparisonPlan:  # noqa: ANN401  # checked as the file is
    """Read a recipe or a comparison file, which is recognized by its key ``base``.

    Args:
        source: the file, or the same as a mapping or a recipe.
        changes: of the recipe, as for :func:`softprompt.recipe.read_recipe`.
        **options: keys that override those of the comparison file; None overrides nothing.

    Raises:
        RecipeError: the comparison or its recipe has faults.
    """
    overrides = {name: value for name, value in options.items() if value is not None}
    table, recipe = _locate_recipe(source)
    try:
        config = ComparisonConfig.model_validate({**table, **overrides})
    except ValidationError as error:
        raise RecipeError(explain_validation_error(error, owner=ComparisonConfig)) from error
    base = load_recipe(recipe, changes)
    faults = _find_faults(config)
    if faults:
        raise RecipeError(faults)
    return _make_plan(base, config)


def _locate_recipe(source: RecipeSource) -> tuple[Mapping[str, Any], RecipeSource]:
    """The keys of a comparison file, and the recipe that all variants share."""
    match source:
        case str() | Path():
            path = Path(source)
            table = _read_table(path)
            if isinstance(table.get("base"), str):
                return table, path.parent / table["base"]
            if "recipe" in table:  # the old name of `base`, which is reported as a fault
                return table, path
            return {"base": path.name}, path
        case Mapping() if "base" in source:
            return {**source, "base": "in memory"}, source["base"]
        case Mapping() if "recipe" in source:
            return source, source
        case _:
            return {"base": "in memory"}, source


def _make_plan(base: Recipe, config: ComparisonConfig) -> ComparisonPlan:
    methods = config.methods
    if methods is None:
        # Multitask prompt tuning is for several tasks; it is compared where it is named.
        single = [name for name in METHODS if name != MultitaskPromptTuning.name]
        methods = [] if config.variants else single
    tuned = [kind for kind in TUNED if kind in config.baselines]
    variants = [
        *make_method_variants(base, methods),
        *_make_custom_variants(base, config.variants),
        *make_finetune_variants(base, tuned),
    ]
    for variant in variants:
        check_budget(variant.recipe)
    return ComparisonPlan(
        base=base,
        variants=tuple(variants),
        baselines=tuple(name for name in config.baselines if name not in TUNED),
        num_seeds=config.num_seeds,
        lr_multipliers=tuple(config.lr_multipliers),
        search_fraction=config.search_fraction,
        time_budget_seconds=config.time_budget_seconds,
    )


def check_budget(recipe: Recipe) -> None:
    """Check that a run is one training of a given number of steps, as all variants get the same.

    Args:
        recipe: of a variant.

    Raises:
        RecipeError: the number depends on the run, or a run trains several seeds.
    """
    keys = ("epochs", "auto"), ("lr_scheduler", "plateau")
    faults = [
        f'train.{key} = "{value}": the steps of each run would depend on its own rows or '
        "validations, but a comparison gives all variants the same. Give a number of epochs, and "
        "another schedule."
        for key, value in keys
        if dict(recipe.train)[key] == value
    ]
    if recipe.train.seeds > 1:
        faults.append(
            "train.seeds: a comparison trains every variant with several seeds itself. Take it "
            "out, and set the comparison's own seeds (num_seeds, --seeds)."
        )
    if faults:
        raise RecipeError(faults)


def _make_custom_variants(base: Recipe, configs: Sequence[VariantConfig]) -> list[Variant]:
    variants, faults = [], []
    for config in configs:
        try:
            variants.append(_make_custom_variant(base, config))
        except RecipeError as error:
            faults += [f"variant {config.name!r}: {fault}" for fault in error.faults]
    if faults:
        raise RecipeError(faults)
    return variants


def _make_custom_variant(base: Recipe, config: VariantConfig) -> Variant:
    method = config.method
    if method is not None and method not in METHODS:
        raise RecipeError([format_unknown("method", method, options=METHODS)])
    data = (base if method is None else with_method(base, method)).as_data()
    for path, value in config.overrides.items():
        *parents, key = path.split(".")
        table = data
        for at, parent in enumerate(parents, start=1):
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                where = ".".join(parents[:at])
                raise RecipeError([f"{where!r} is a value, not a table. Set {where!r} itself."])
        table[key] = value
    return Variant(config.name, make_recipe(data))


def are_valid_multipliers(multipliers: Sequence[float]) -> bool:
    """Whether these are one or more distinct positive numbers."""
    are_positive = all(0 < multiplier < float("inf") for multiplier in multipliers)
    return bool(multipliers) and are_positive and len({*multipliers}) == len(multipliers)


def find_multiplier_faults(multipliers: Sequence[float]) -> list[str]:
    """The fault of multipliers of a learning rate; empty if they are valid."""
    if are_valid_multipliers(multipliers):
        return []
    fault = (
        f"lr_multipliers {[*multipliers]} are not distinct positive numbers. Give such as "
        "[0.3, 1, 3]."
    )
    return [fault]


def _find_faults(config: ComparisonConfig) -> list[str]:
    """The faults of a comparison that its types do not exclude."""
    faults = [*_find_name_faults(config), *find_multiplier_faults(config.lr_multipliers)]
    for variant in config.variants:
        faults += _find_override_faults(variant)
    return faults


def _find_name_faults(config: ComparisonConfig) -> Iterator[str]:
    """Unknown names, and names that are not distinct."""
    for name in config.baselines:
        if name not in BASELINES:
            yield format_unknown("baseline", name, options=BASELINES)
    for name in config.methods or ():
        if name not in METHODS:
            yield format_unknown("method", name, options=METHODS)
    names = [
        *(config.methods or ()),
        *(variant.name for variant in config.variants),
        *config.baselines,
    ]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{name!r} is named twice. Give each variant and baseline a different name."
    folders = [to_folder_name(name) for name in {*names}]
    for folder in sorted({folder for folder in folders if folders.count(folder) > 1}):
        yield f"two names map to the same folder name {folder!r}. Change one."


def _find_override_faults(variant: VariantConfig) -> Iterator[str]:
    """Overrides of keys that all variants share, and of whole tables."""
    for key in sorted(variant.overrides):
        if key.split(".")[0] in _SHARED_TABLES or key in _SHARED_KEYS:
            yield (
                f"variant {variant.name!r} sets {key}, but all variants share the rows, the "
                "backbone, the task and the budget. Set it in the recipe, or make another "
                "comparison."
            )
    for key, value in sorted(variant.overrides.items()):
        if isinstance(value, dict) and key in Recipe.model_fields:
            yield (
                f"variant {variant.name!r} sets all of {key!r}. Set single keys, such as "
                f'"{key}.name" = …, so that the other keys are unchanged.'
            )


def _read_table(path: Path) -> Mapping[str, Any]:
    """A file's keys; its faults are reported when it is read as a recipe."""
    try:
        return parse_toml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
