"""Describe a run before its first step: parameters, settings, rows, and what is cached."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import torch

from softprompt.backbone.model import Geometry
from softprompt.data import Field, SoftTokens, Template, parse_template
from softprompt.injection.prefix_sharing import can_split, measure_common_prefix
from softprompt.methods.defaults import Defaults
from softprompt.prompt import InputPrompt, KVPrefix, Prompt
from softprompt.tasks.classification import CausalVerbalizer
from softprompt.train.datasets import RenderedRows
from softprompt.train.events import PrecomputePlanned, PrecomputeProgress, Started, TrainingWarning
from softprompt.train.precompute import PrecomputePlan, plan_precompute, precompute
from softprompt.train.setup import RunSetup
from softprompt.train.stages import resolve_initializer
from softprompt.train.trainer import Trainer


def prepare_caches(
    trainer: Trainer, prepared: RunSetup
) -> Iterator[Started | PrecomputePlanned | PrecomputeProgress | TrainingWarning]:
    """Describe a run, and cache the states that training does not change, before its first step."""
    yield _started(trainer, prepared)
    # A last validation reads the same cached states as the earlier ones, bit for bit.
    if trainer.stop_reason() is not None and not trainer.validation_due:
        return
    keeping = plan_precompute(prepared)
    yield PrecomputePlanned(describe_savings(prepared, keeping), trainer.step)
    if keeping is not None:
        yield from precompute(trainer, prepared, keeping=keeping)


def _started(trainer: Trainer, prepared: RunSetup) -> Started:
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
    )


def describe_shapes(prompt: Prompt, geometry: Geometry) -> str:
    """Describe the shapes that a prompt has to fit, and its own."""
    tensors = ", ".join(f"{name} {[*t.shape]}" for name, t in prompt.to_tensors().items())
    place = f"hidden size {geometry.hidden_size}, embeddings of {geometry.embedding_size}"
    if geometry.num_layers:
        place = f"{geometry.num_layers} layers, {place}"
    if geometry.num_attention_sites:
        heads = f"{geometry.num_kv_heads} key/value heads of {geometry.head_dim}"
        place = f"{place}, {geometry.num_attention_sites} attention sites with {heads}"
    return f"{place}; prompt: {tensors}"


def describe_savings(prepared: RunSetup, keeping: PrecomputePlan | None) -> tuple[str, ...]:
    """Describe what is run once for many steps or rows, and what is not scored."""
    return tuple(_iterate_savings(prepared, keeping))


def _iterate_savings(prepared: RunSetup, keeping: PrecomputePlan | None) -> Iterator[str]:
    if keeping is not None:
        yield _describe_cache(prepared, keeping)
    with torch.no_grad():
        prompt: Prompt = prepared.method()
    backbone = prepared.backbone
    cached = keeping is not None and keeping.place != "nowhere" and "train" in keeping.splits
    if isinstance(prompt, InputPrompt) and not prompt.start_layer and can_split(backbone):
        if parse_template(prepared.template).starts_with_soft:
            rows = [v.input_ids for e in prepared.rows["train"].examples for v in e.variants]
            head = measure_common_prefix(rows)
            yield f"the first {head} tokens, which all rows share, are run once per step"
        elif not cached:
            yield "text before the prompt is run forward only"
    task = prepared.task
    if isinstance(task, CausalVerbalizer) and task.words.all_single_token:
        words, vocabulary = len({*task.words.all}), backbone.geometry.vocab_size
        yield f"{words} of {vocabulary:,} words are scored, at one position per row"


def _describe_cache(prepared: RunSetup, keeping: PrecomputePlan) -> str:
    backbone, layer = prepared.backbone, keeping.layer
    if layer is None:
        what = "text before the prompt"
    elif layer == backbone.geometry.num_layers:
        what = "the encoder"
    else:
        what = f"layers 0 to {layer - 1}"
    rows = f"{what} ({' and '.join(keeping.splits)} rows, {keeping.shape.rows:,} tokens)"
    size = f"{keeping.shape.size / 1e9:.2f} GB"
    match keeping.place:
        case "file":
            return f"{rows} is run once and cached in a file of {size}"
        case "memory":
            return f"{rows} is run once and cached in memory, {size}"
        case "nowhere":
            return (
                f"{rows} is run in every step: a cache would take {size}, more than "
                "cache.memory_gb and cache.disk_gb allow"
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
        backbone: its name, family and kind.
        parameters: the number of the backbone's that are run.
        shapes: that the prompt has to fit, and its own.
        method: its name.
        template: the recipe's or the default one.
        soft_tokens: their number, P.
        where: their place.
        trainable: the number of parameters, with those of a trained head.
        splits: by name.
        settings: by name, with the source of each.
        steps: of the whole run.
        savings: what is run once for many steps or rows, and what is not scored.
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
        where=_where(prompt, parse_template(prepared.template), sites=geometry.num_attention_sites),
        trainable=sum(p.numel() for p in trained),
        splits={n: _split(rows, labelled=bool(task.labels)) for n, rows in prepared.rows.items()},
        settings=_settings(prepared),
        steps=steps,
        savings=describe_savings(prepared, plan_precompute(prepared)),
    )


def compute_trainable_share(trained: int, backbone: int) -> str:
    """Describe how many parameters are trained, as PEFT prints it.

    >>> compute_trainable_share(1_351_938, 354_310_144)
    'trainable 1,351,938 of 355,662,082 (0.38 %)'
    """
    whole = trained + backbone
    return f"trainable {trained:,} of {whole:,} ({100 * trained / whole:.2g} %)"


def _split(rows: RenderedRows, *, labelled: bool) -> SplitSummary:
    lengths = [example.length for example in rows.examples]
    counts = dict(sorted(Counter(rows.truth).items())) if labelled else {}
    return SplitSummary(
        len(lengths), counts, sum(lengths) / len(lengths), max(lengths), rows.truncated
    )


def _where(prompt: Prompt, template: Template, *, sites: int) -> str:
    match prompt:
        case KVPrefix(sites=layers):
            return f"as keys and values on {len(layers)} of {sites} layers"
        case InputPrompt():
            pass
    soft = [at for at, piece in enumerate(template.pieces) if isinstance(piece, SoftTokens)]
    text = [at for at, piece in enumerate(template.pieces) if isinstance(piece, Field)]
    late = f", from layer {prompt.start_layer} on" if prompt.start_layer else ""
    if max(soft) < min(text):
        return f"in front of the row's text{late}"
    place = "behind" if min(soft) > max(text) else "around"
    return f"{place} the row's text{late}"


def _settings(prepared: RunSetup) -> dict[str, Setting]:
    recipe, defaults = prepared.recipe, prepared.defaults
    given = {k for k in recipe.train.model_fields_set if dict(recipe.train)[k] is not None}
    by_method = {f.name for f in fields(Defaults)}
    start = type(
        resolve_initializer(recipe, labels=prepared.task.labels, defaults=defaults)
    ).__name__
    own = recipe.method.init is not None
    found = {"init": Setting(start, "recipe" if own else "default: label words if there are some")}
    for name in (f.name for f in fields(prepared.training)):
        source = defaults.source if name in by_method else "default"
        decided = name in given or (name == "seed" and "seed" in recipe.model_fields_set)
        found[name] = Setting(vars(prepared.training)[name], "recipe" if decided else source)
    return found
