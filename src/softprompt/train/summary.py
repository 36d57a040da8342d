"""Describe a run before its first step: parameters, settings, rows, and what is cached."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from math import ceil

import torch

from softprompt.backbone.model import Geometry
from softprompt.data import Field, SoftTokens, Template, parse_template
from softprompt.data.template import TurnText
from softprompt.injection.prefix_sharing import can_split, measure_common_prefix
from softprompt.methods.defaults import Defaults
from softprompt.prompt import InputPrompt, KVPrefix, Prompt
from softprompt.tasks import Objective
from softprompt.tasks.base import HeadTask
from softprompt.tasks.classification import CausalVerbalizer
from softprompt.tasks.heads import PooledHeadTask
from softprompt.train.config import choose_length
from softprompt.train.datasets import RenderedRows
from softprompt.train.events import PrecomputePlanned, PrecomputeProgress, Started, TrainingWarning
from softprompt.train.initialization import resolve_initializer
from softprompt.train.precompute import (
    PrecomputePlan,
    has_cached_states,
    plan_precompute,
    precompute,
)
from softprompt.train.rate_search import MULTIPLIERS
from softprompt.train.readout import describe_choice
from softprompt.train.setup import RunSetup
from softprompt.train.trainer import Trainer


def prepare_caches(
    trainer: Trainer, prepared: RunSetup, *, final_rows: int = 0
) -> Iterator[Started | PrecomputePlanned | PrecomputeProgress | TrainingWarning]:
    """Describe a run, and cache the states that training does not change, before its first step.

    Args:
        trainer: its task is replaced by one with the cached states.
        prepared: the parts of the run.
        final_rows: the number of rows that are evaluated after the last step.
    """
    yield replace(_make_started(trainer, prepared), final_rows=final_rows)
    if not trainer.step and prepared.is_first_seed:
        for message in (*prepared.slips, *prepared.warnings):
            yield TrainingWarning(trainer.step, message)
    # If only the last validation is left, it reads the cached states too, as those before it did.
    if trainer.stop_reason() is not None and not trainer.validation_due:
        return
    plan = plan_precompute(prepared)
    if prepared.is_first_seed:
        yield PrecomputePlanned(describe_savings(prepared, plan), trainer.step)
    if plan is not None and not has_cached_states(prepared):
        yield from precompute(trainer, prepared, plan=plan)


def _make_started(trainer: Trainer, prepared: RunSetup) -> Started:
    rows = {"train": trainer.rows}
    if trainer.validation is not None:
        rows["validation"] = trainer.validation
    with torch.no_grad():
        prompt: Prompt = prepared.method()
    return Started(
        step=trainer.step,
        total_steps=trainer.total,
        rows={name: len(split.examples) for name, split in rows.items()},
        truncated={name: split.truncated for name, split in rows.items()},
        trainable_parameters=sum(
            p.numel() for p in trainer.modules.parameters() if p.requires_grad
        ),
        backbone_parameters=trainer.task.parameters,
        shapes=describe_shapes(prompt, prepared.backbone.geometry),
        best_metric=trainer.training.best_metric,
        validations=trainer.count_validations(),
        notes=prepared.notes if prepared.is_first_seed else (),
    )


def describe_shapes(prompt: Prompt, geometry: Geometry) -> str:
    """Describe the shapes that a prompt has to fit, and its own."""
    tensors = ", ".join(f"{name} {[*t.shape]}" for name, t in prompt.to_tensors().items())
    shapes = f"hidden size {geometry.hidden_size}, embeddings of {geometry.embedding_size}"
    if geometry.num_layers:
        shapes = f"{geometry.num_layers} layers, {shapes}"
    if geometry.num_attention_sites:
        heads = f"{geometry.num_kv_heads} key/value heads of {geometry.head_dim}"
        shapes = f"{shapes}, {geometry.num_attention_sites} attention sites with {heads}"
    return f"{shapes}; prompt: {tensors}"


def describe_savings(prepared: RunSetup, plan: PrecomputePlan | None) -> tuple[str, ...]:
    """Describe what is run once for many steps or rows, and what is not scored."""
    return tuple(_iterate_savings(prepared, plan))


def _iterate_savings(prepared: RunSetup, plan: PrecomputePlan | None) -> Iterator[str]:
    if plan is not None:
        yield _describe_cache(prepared, plan)
    with torch.no_grad():
        prompt: Prompt = prepared.method()
    backbone = prepared.backbone
    is_cached = plan is not None and plan.place != "nowhere" and "train" in plan.splits
    is_split = can_split(backbone) and not prepared.task.reads_whole_rows
    if isinstance(prompt, InputPrompt) and not prompt.start_layer and is_split:
        if parse_template(prepared.template).starts_with_soft:
            rows = [v.input_ids for e in prepared.rows["train"].examples for v in e.variants]
            shared = measure_common_prefix(rows)
            yield f"the first {shared} tokens, which all rows share, are run once per step"
        elif not is_cached:
            yield "text before the prompt is run forward only"
    yield from _describe_limits(backbone.geometry, prompt)
    task = prepared.task
    if isinstance(task, CausalVerbalizer) and task.words.all_single_token:
        words, vocabulary = len({*task.words.all}), backbone.geometry.vocab_size
        yield f"{words} of {vocabulary:,} words are scored, at one position per row"


def _describe_limits(geometry: Geometry, prompt: Prompt) -> Iterator[str]:
    """Describe what this backbone is run without, and why."""
    name, limits = geometry.model_type, geometry.limits
    if limits.padding is not None:
        yield f"rows of equal length only are run together: {name} {limits.padding}"
    if limits.split is not None and isinstance(prompt, InputPrompt):
        yield f"rows are run whole: {name} {limits.split}"
    if limits.words is not None and isinstance(prompt, InputPrompt):
        yield f"soft tokens that start from words are only near them: {name} {limits.words}"


def _describe_cache(prepared: RunSetup, plan: PrecomputePlan) -> str:
    layer, verb = plan.layer, "is"
    if layer is None:
        what = "text before the prompt"
    elif layer == prepared.backbone.geometry.num_layers:
        what = "the encoder"
    elif layer == 1:
        what = "layer 0"
    else:
        what, verb = f"layers 0 to {layer - 1}", "are"
    rows = f"{what} ({' and '.join(plan.splits)} rows, {plan.shape.rows:,} tokens) {verb} run"
    size = f"{plan.shape.size / 1e9:.2f} GB"
    match plan.place:
        case "file":
            return f"{rows} once and cached in a file of {size}"
        case "memory":
            return f"{rows} once and cached in memory, {size}"
        case "nowhere" if prepared.recipe.cache.disk_gb is None:
            return (
                f"{rows} in every step: a cache would take {size}, and a file of more than 2 GB or "
                "a tenth of the free disk is written only if the recipe allows it; to cache them, "
                f"set cache.disk_gb = {ceil(plan.shape.size / 1e9)} or more"
            )
        case "nowhere":
            return (
                f"{rows} in every step: a cache would take {size}, more than cache.memory_gb and "
                "cache.disk_gb allow"
            )


@dataclass(frozen=True)
class SplitSummary:
    """The rows of one split.

    Args:
        rows: their number.
        labels: the number of rows of each; empty for free text.
        mean_tokens: of a row, with soft tokens.
        max_tokens: of a row, with soft tokens.
        truncated: the number of rows that are too long and lose text.
    """

    rows: int
    labels: Mapping[str, int]
    mean_tokens: float
    max_tokens: int
    truncated: int


@dataclass(frozen=True)
class Setting:
    """A setting of the run, and where it comes from."""

    value: object
    source: str


@dataclass(frozen=True)
class RunSummary:
    """The plan of a run.

    Args:
        backbone: its name, model type, architecture and precision.
        parameters: the number of the backbone's parameters that are run.
        shapes: that the prompt has to fit, and its own.
        method: its name.
        template: the recipe's or the default one.
        soft_tokens: their number, P.
        where: where they are, such as "in front of the row's text".
        trainable: the number of parameters, with those of a trained head.
        splits: by name.
        settings: by name, with the source of each.
        steps: of the whole run.
        savings: what is run once for many steps or rows, and what is not scored.
        warnings: about the rows and the initialization.
        notes: on what the initialization took from an artifact.
    """

    backbone: str
    parameters: int
    shapes: str
    method: str
    template: str
    soft_tokens: int
    where: str
    trainable: int
    splits: Mapping[str, SplitSummary]
    settings: Mapping[str, Setting]
    steps: int
    savings: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def summarize_run(prepared: RunSetup, *, steps: int) -> RunSummary:
    """Summarize the run of these parts.

    Args:
        prepared: the parts.
        steps: of its optimizer.
    """
    backbone, task = prepared.backbone, prepared.task
    prompt = prepared.method()
    trained = [*prepared.method.parameters()]
    trained += [] if task.head is None else [*task.head.parameters()]
    dtype = str(backbone.dtype).removeprefix("torch.")
    geometry = backbone.geometry
    return RunSummary(
        backbone=f"{backbone.name} ({geometry.model_type}, {geometry.architecture}, {dtype})",
        parameters=task.parameters,
        shapes=describe_shapes(prompt, geometry),
        method=prepared.recipe.method.name,
        template=prepared.template,
        soft_tokens=prompt.length,
        where=_describe_placement(
            prompt, parse_template(prepared.template), num_sites=geometry.num_attention_sites
        ),
        trainable=sum(p.numel() for p in trained),
        splits={
            name: _summarize_split(rows, task.objective) for name, rows in prepared.rows.items()
        },
        settings=_collect_settings(prepared),
        steps=steps,
        savings=describe_savings(prepared, plan_precompute(prepared)),
        warnings=prepared.warnings,
        notes=prepared.notes,
    )


def compute_trainable_share(trained: int, backbone: int) -> str:
    """Describe how many parameters are trained, as PEFT prints it.

    >>> compute_trainable_share(1_351_938, 354_310_144)
    'trainable 1,351,938 of 355,662,082 (0.38 %)'
    """
    total = trained + backbone
    return f"trainable {trained:,} of {total:,} ({100 * trained / total:.2g} %)"


def _summarize_split(rows: RenderedRows, objective: Objective) -> SplitSummary:
    lengths = [example.length for example in rows.examples]
    counts = dict(sorted(objective.count_labels(rows.truth).items()))
    return SplitSummary(
        len(lengths), counts, sum(lengths) / len(lengths), max(lengths), rows.truncated
    )


def _describe_placement(prompt: Prompt, template: Template, *, num_sites: int) -> str:
    match prompt:
        case KVPrefix(sites=sites):
            return f"as keys and values on {len(sites)} of {num_sites} layers"
        case InputPrompt():
            pass
    soft = [at for at, piece in enumerate(template.pieces) if isinstance(piece, SoftTokens)]
    text = [at for at, piece in enumerate(template.pieces) if isinstance(piece, Field | TurnText)]
    layers = f", from layer {prompt.start_layer} on" if prompt.start_layer else ""
    if max(soft) < min(text):
        return f"in front of the row's text{layers}"
    place = "behind" if min(soft) > max(text) else "around"
    return f"{place} the row's text{layers}"


def _collect_settings(prepared: RunSetup) -> dict[str, Setting]:
    recipe, defaults = prepared.recipe, prepared.defaults
    in_recipe = {k for k in recipe.train.model_fields_set if dict(recipe.train)[k] is not None}
    in_recipe |= {"seed"} & recipe.model_fields_set
    in_recipe |= {"keep_dropout"} & recipe.backbone.model_fields_set
    in_recipe |= {"token_dropout"} & {*recipe.method.collect_settings()}
    by_method = {f.name for f in fields(Defaults)}
    init = type(resolve_initializer(recipe, labels=prepared.task.labels, defaults=defaults))
    settings = {
        "init": Setting(
            init.__name__,
            "default: label words if there are some" if recipe.method.init is None else "recipe",
        )
    }
    settings |= _describe_head(prepared) | _describe_seeds(prepared)
    automatic = _describe_automatic(prepared)
    for name in (f.name for f in fields(prepared.training)):
        default = defaults.source if name in by_method else "default"
        source = "recipe" if name in in_recipe else default
        settings[name] = automatic.get(name, Setting(vars(prepared.training)[name], source))
    return settings


def _describe_seeds(prepared: RunSetup) -> dict[str, Setting]:
    """The seeds, where there are several, and what becomes of them."""
    train, first = prepared.recipe.train, prepared.recipe.seed
    if train.seeds == 1:
        return {}
    kept = "the best is kept" if train.combine_seeds == "best" else "an ensemble of all is kept"
    return {"seeds": Setting(f"{first} to {first + train.seeds - 1}, {kept}", "recipe")}


def _describe_automatic(prepared: RunSetup) -> dict[str, Setting]:
    """The settings that ``"auto"`` stands for, or how they will be chosen."""
    recipe, training = prepared.recipe, prepared.training
    settings = {}
    if recipe.train.epochs == "auto":
        chosen = choose_length(recipe, len(prepared.rows["train"].examples))
        named = {name for name, value in recipe.train if value is not None} - {"epochs"}
        settings = {
            name: Setting(vars(training)[name], 'epochs = "auto"') for name in chosen.keys() - named
        }
        settings["epochs"] = Setting(training.epochs, 'epochs = "auto"')
    if recipe.train.learning_rate == "auto":
        low, high = (
            training.learning_rate * factor for factor in (min(MULTIPLIERS), max(MULTIPLIERS))
        )
        source = "auto: short runs before the first step choose a multiple of the usual rate"
        settings["learning_rate"] = Setting(f"{low:.2g} to {high:.2g}", source)
    return settings


def _describe_head(prepared: RunSetup) -> dict[str, Setting]:
    """The readout of a trained head, or how it will be chosen, and what the head starts as."""
    task, choice = prepared.task, prepared.readout
    if not isinstance(task, HeadTask):
        return {}
    named = "head_init" in prepared.recipe.train.model_fields_set
    start = "regression" if prepared.fits_head else "random"
    if prepared.takes_head:
        start = "artifact"
    found = {"head_init": Setting(start, "recipe" if named else "default")}
    if not isinstance(task, PooledHeadTask):
        return found
    if choice is not None:
        pooling = Setting(choice.pooling, choice.reason)
    elif not prepared.has_open_readout:
        pooling = Setting(task.pooling, "recipe")
    else:
        source = describe_choice(task, prepared.rows, template=prepared.template)
        pooling = Setting("auto", source)
    return {"pooling": pooling} | found
