"""What a run would do, before it does it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields

from softprompt.backbone.model import Geometry
from softprompt.data import Field, Soft, Template, parse
from softprompt.methods.defaults import Defaults
from softprompt.prompt import InputPrompt, KVPrefix, Prompt
from softprompt.train.keep import worth_keeping
from softprompt.train.prepare import Prepared, initial
from softprompt.train.rows import Rows
from softprompt.train.savings import savings


@dataclass(frozen=True)
class Split:
    """The rows of one split.

    Args:
        rows: how many.
        labels: how many of each; empty for free text.
        mean_tokens: of a row, soft tokens included.
        max_tokens: likewise.
        cut: rows that are too long and lose text.
    """

    rows: int
    labels: Mapping[str, int]
    mean_tokens: float
    max_tokens: int
    cut: int


@dataclass(frozen=True)
class Setting:
    """A setting of the run and who decided it."""

    value: object
    source: str


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Args:
        backbone: its name, family and kind.
        parameters: of the backbone, that are run.
        shapes: what the prompt has to fit, and its own.
        method: its name.
        template: as used, also where the recipe leaves it to its default.
        soft_tokens: P.
        where: they stand.
        trainable: parameters, a trained head's included.
        splits: by name.
        settings: by name, with the source of each.
        steps: in all.
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
    splits: Mapping[str, Split]
    settings: Mapping[str, Setting]
    steps: int
    savings: tuple[str, ...]


def plan(prepared: Prepared, *, steps: int) -> Plan:
    """What the run of these parts would do.

    Args:
        steps: of its optimiser, in all.
    """
    backbone, task = prepared.backbone, prepared.task
    prompt = prepared.method()
    trained = [*prepared.method.parameters()]
    trained += [] if task.head is None else [*task.head.parameters()]
    dtype = str(backbone.dtype).removeprefix("torch.")
    geometry = backbone.geometry
    return Plan(
        backbone=f"{backbone.name} ({geometry.family}, {geometry.kind}, {dtype})",
        parameters=task.parameters,
        shapes=shapes(prompt, geometry),
        method=prepared.recipe.method.name,
        template=prepared.template,
        soft_tokens=prompt.length,
        where=_where(prompt, parse(prepared.template), sites=geometry.sites),
        trainable=sum(p.numel() for p in trained),
        splits={n: _split(rows, labelled=bool(task.labels)) for n, rows in prepared.rows.items()},
        settings=_settings(prepared),
        steps=steps,
        savings=savings(prepared, worth_keeping(prepared)),
    )


def shapes(prompt: Prompt, geometry: Geometry) -> str:
    """The shapes that a prompt has to fit, and its own."""
    tensors = ", ".join(f"{name} {[*t.shape]}" for name, t in prompt.tensors().items())
    place = f"hidden size {geometry.hidden_size}, embeddings of {geometry.embedding_size}"
    if geometry.blocks:
        place = f"{geometry.blocks} layers, {place}"
    if geometry.sites:
        heads = f"{geometry.heads} key/value heads of {geometry.head_size}"
        place = f"{place}, {geometry.sites} attention sites with {heads}"
    return f"{place}; prompt: {tensors}"


def trained_share(trained: int, backbone: int) -> str:
    """How much is trained of all that is run, as PEFT says it.

    >>> trained_share(1_351_938, 354_310_144)
    'trainable 1,351,938 of 355,662,082 (0.38 %)'
    """
    whole = trained + backbone
    return f"trainable {trained:,} of {whole:,} ({100 * trained / whole:.2g} %)"


def _split(rows: Rows, *, labelled: bool) -> Split:
    lengths = [example.length for example in rows.examples]
    counts = dict(sorted(Counter(rows.truth).items())) if labelled else {}
    return Split(len(lengths), counts, sum(lengths) / len(lengths), max(lengths), rows.cut)


def _where(prompt: Prompt, template: Template, *, sites: int) -> str:
    match prompt:
        case KVPrefix(layers=layers):
            return f"as keys and values on {len(layers)} of {sites} layers"
        case InputPrompt():
            pass
    soft = [at for at, piece in enumerate(template.pieces) if isinstance(piece, Soft)]
    text = [at for at, piece in enumerate(template.pieces) if isinstance(piece, Field)]
    late = f", from layer {prompt.layer} on" if prompt.layer else ""
    if max(soft) < min(text):
        return f"in front of the row's text{late}"
    place = "behind" if min(soft) > max(text) else "around"
    return f"{place} the row's text{late}"


def _settings(prepared: Prepared) -> dict[str, Setting]:
    recipe, usual = prepared.recipe, prepared.usual
    given = {k for k in recipe.train.model_fields_set if dict(recipe.train)[k] is not None}
    by_method = {f.name for f in fields(Defaults)}
    start = type(initial(recipe, labels=prepared.task.labels, usual=usual)).__name__
    own = recipe.method.initialise is not None
    found = {
        "initialise": Setting(start, "recipe" if own else "default: words where there are some")
    }
    for name in (f.name for f in fields(prepared.training)):
        source = usual.source if name in by_method else "default"
        decided = name in given or (name == "seed" and "seed" in recipe.model_fields_set)
        found[name] = Setting(vars(prepared.training)[name], "recipe" if decided else source)
    return found
