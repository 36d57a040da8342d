"""What a run need not compute: told by `check` and before the first step, then done."""

from collections.abc import Iterator

import torch

from softprompt.data.template import parse
from softprompt.injection.segments import can_be_cut, common_length
from softprompt.prompt import InputPrompt, Prompt
from softprompt.tasks.verbalize import CausalWords
from softprompt.train.events import Caching, Planned, Warned
from softprompt.train.keep import Keeping, keep, worth_keeping
from softprompt.train.prepare import Prepared
from softprompt.train.trainer import Trainer


def begin(trainer: Trainer, prepared: Prepared) -> Iterator[Planned | Caching | Warned]:
    """What is said and done before a run's first step."""
    # A last validation reads what is kept as those before it did: to the last bit.
    if trainer.ended() is not None and not trainer.due:
        return
    keeping = worth_keeping(prepared)
    yield Planned(savings(prepared, keeping), trainer.step)
    if keeping is not None:
        yield from keep(trainer, prepared, keeping=keeping)


def savings(prepared: Prepared, keeping: Keeping | None) -> tuple[str, ...]:
    """What is run once for many steps or many rows, and what is not scored."""
    return tuple(_all(prepared, keeping))


def _all(prepared: Prepared, keeping: Keeping | None) -> Iterator[str]:
    if keeping is not None:
        yield _kept(prepared, keeping)
    with torch.no_grad():
        prompt: Prompt = prepared.method()
    backbone = prepared.backbone
    kept = keeping is not None and keeping.place != "nowhere" and "train" in keeping.splits
    if isinstance(prompt, InputPrompt) and not prompt.layer and can_be_cut(backbone):
        if parse(prepared.template).soft_first:
            rows = [v.ids for e in prepared.rows["train"].examples for v in e.variants]
            head = common_length(rows)
            yield f"the first {head} tokens, which all rows share, are run once a step"
        elif not kept:
            yield "text before the prompt is run forward only"
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
