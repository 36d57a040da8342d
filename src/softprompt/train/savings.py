"""What a run need not compute, in words: `check` tells it before the run does it."""

from collections.abc import Iterator

import torch

from softprompt.data.template import Field, Soft, parse
from softprompt.injection.segments import can_be_cut
from softprompt.prompt import InputPrompt, Prompt
from softprompt.tasks.verbalize import CausalWords
from softprompt.train.keep import Keeping, worth_keeping
from softprompt.train.prepare import Prepared


def savings(prepared: Prepared) -> tuple[str, ...]:
    """What is run once for many steps or many rows, and what is not scored."""
    return tuple(_all(prepared))


def _all(prepared: Prepared) -> Iterator[str]:
    keeping = worth_keeping(prepared)
    if keeping is not None:
        yield _kept(prepared, keeping)
    with torch.no_grad():
        prompt: Prompt = prepared.method()
    backbone = prepared.backbone
    in_front = isinstance(prompt, InputPrompt) and not prompt.layer
    if in_front and can_be_cut(backbone) and _is_in_front(prepared.template):
        head = _head(prepared)
        yield f"the first {head} tokens, which all rows share, are run once a step"
    task = prepared.task
    if isinstance(task, CausalWords) and task.words.single:
        words, vocabulary = len({*task.words.all}), backbone.geometry.vocabulary
        yield f"{words} of {vocabulary:,} words are scored, at one position a row"


def _kept(prepared: Prepared, keeping: Keeping) -> str:
    backbone, layer = prepared.backbone, keeping.layer
    if layer is None:
        what = "text before the prompt"
    elif layer == backbone.geometry.blocks:
        what = "the encoder"
    else:
        what = f"layers 0 to {layer - 1}"
    rows = f"{what} ({' and '.join(keeping.splits)} rows, {keeping.shape.lines:,} tokens)"
    size = f"{keeping.shape.size / 1e9:.2f} GB"
    match keeping.place:
        case "file":
            return f"{rows} is run once and kept in a file of {size}"
        case "memory":
            return f"{rows} is run once and kept in memory, {size}"
        case "nowhere":
            return (
                f"{rows} is run in every step: kept, it would take {size}, more than cache.memory "
                "and cache.disk allow"
            )


def _is_in_front(template: str) -> bool:
    pieces = parse(template).pieces
    return isinstance(next(p for p in pieces if isinstance(p, Soft | Field)), Soft)


def _head(prepared: Prepared) -> int:
    """How many tokens all training rows begin with."""
    rows = [v.ids for e in prepared.rows["train"].examples for v in e.variants]
    shortest = min(rows, key=len)
    return next(
        (at for at, token in enumerate(shortest) if any(row[at] != token for row in rows)),
        len(shortest),
    )
