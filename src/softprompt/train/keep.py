"""What no step of a run changes is computed before its first one, and kept for later runs."""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from importlib.metadata import version
from itertools import accumulate, chain
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from softprompt.backbone.fingerprint import exact_digest
from softprompt.data.batch import like_length
from softprompt.data.cache import Shape, Shelf, users_shelf
from softprompt.data.template import parse
from softprompt.data.tokenise import Tokenised
from softprompt.injection.kept import Kept, first_layer, key_of, lines_of, width_of
from softprompt.injection.segments import can_be_cut
from softprompt.prompt import InputPrompt, Prompt, detached
from softprompt.tasks import Example, Task
from softprompt.tasks.layout import padded
from softprompt.train.events import Caching, Warned
from softprompt.train.order import Order
from softprompt.train.prepare import Prepared
from softprompt.train.trainer import Trainer

Place = Literal["file", "memory", "nowhere"]

_SCHEMA = "1"
_TOKENS = 4096
_GIGA = 10**9


@dataclass(frozen=True, eq=False)
class Keeping:
    """What is worth keeping of a run.

    Args:
        layer: whose input is kept; None for the keys and values of text before the prompt.
        splits: whose rows.
        pieces: the rows, or what stands before the prompt in them, longest first, by their keys.
        shape: of all their lines.
        place: where they are kept; nowhere if neither budget allows it. A sharded backbone's are
            not written to a file, since all processes must compute them together.
    """

    layer: int | None
    splits: tuple[str, ...]
    pieces: Mapping[bytes, Tokenised]
    shape: Shape
    place: Place


def worth_keeping(prepared: Prepared) -> Keeping | None:
    """What a run computes more than once and need not."""
    with torch.no_grad():
        prompt: Prompt = prepared.method()
    found = _layer(prepared, prompt)
    splits = [name for name in ("train", "validation") if _again(prepared, name)]
    if found == "none" or not splits:
        return None
    layer = None if found == "text" else found
    task = prepared.task
    examples = chain.from_iterable(prepared.rows[name].examples for name in splits)
    pieces = _pieces(task, examples, text=layer is None)
    if not pieces:
        return None
    shape = Shape(
        lines=sum(len(piece.ids) for piece in pieces.values()),
        width=width_of(task.backbone, layer),
        dtype=task.backbone.dtype,
    )
    return Keeping(layer, tuple(splits), pieces, shape, _place(prepared, shape))


def keep(trainer: Trainer, prepared: Prepared, *, keeping: Keeping) -> Iterator[Caching | Warned]:
    """Let a trainer find what none of its steps changes; it is computed if no earlier run did.

    Yields:
        How far it is. If it cannot be kept, a warning: it is then computed in every step.
    """
    if keeping.place == "nowhere":
        return
    try:
        lines = yield from _lines(prepared, keeping, trainer.accelerator)
    except OSError as error:
        msg = (
            f"the states of {len(keeping.pieces):,} texts ({keeping.shape.size:,} bytes) could not "
            f"be kept in {_shelf(prepared).folder}: {error.strerror or error}. They are computed "
            "in every step instead. Free some space, set SOFTPROMPT_CACHE to another folder, or "
            "cache.disk to 0."
        )
        yield Warned(trainer.step, msg)
    else:
        kept = Kept(keeping.layer, _places(keeping), lines)
        trainer.task = trainer.task.keeping(kept)


def _lines(
    prepared: Prepared, keeping: Keeping, accelerator: Accelerator
) -> Generator[Caching, None, Tensor]:
    parts, shape = _computed(prepared, keeping, accelerator), keeping.shape
    if keeping.place == "memory":
        lines = torch.empty(shape.lines, shape.width, dtype=shape.dtype)
        done = 0
        for part in parts:
            lines[done : done + len(part)] = part
            done += len(part)
            yield Caching(done, shape.lines, shape.size)
        return lines
    shelf, mark = _shelf(prepared), _mark(prepared, keeping)
    with shelf.locked(mark):
        found = shelf.open(mark, width=shape.width, dtype=shape.dtype)
        if found is None:
            for done in shelf.fill(mark, shape, parts=parts):
                yield Caching(done, shape.lines, shape.size)
            found = shelf.open(mark, width=shape.width, dtype=shape.dtype)
    if found is None:
        msg = "the file was not what was written to it"
        raise OSError(msg)
    return found.clone() if _is_small(prepared, shape) else found


def _layer(prepared: Prepared, prompt: Prompt) -> Literal["text", "none"] | int:
    """What does not depend on the prompt: text before it, or layers below it."""
    backbone, training = prepared.backbone, prepared.training
    if training.awake and backbone.dropout:
        return "none"
    soft_first = parse(prepared.template).soft_first
    if isinstance(prompt, InputPrompt) and can_be_cut(backbone) and not soft_first:
        return "text"
    first, blocks = first_layer(prompt), backbone.geometry.blocks
    return min(first, blocks) if first and blocks else "none"


def _again(prepared: Prepared, split: str) -> bool:
    """Whether the rows of a split are run more than once."""
    rows = prepared.rows.get(split)
    if rows is None:
        return False
    if split == "validation":
        return True  # at the start and at the end, at least
    order = Order([e.length for e in rows.examples], prepared.training)
    return order.steps() > len(order.batches(0))


def _pieces(task: Task, examples: Iterator[Example], *, text: bool) -> dict[bytes, Tokenised]:
    found: dict[bytes, Tokenised] = {}
    for example in examples:
        for row in task.rows_run(example):
            piece = _text(row, task.backbone.geometry.vocabulary) if text else row
            found[key_of(piece.ids, () if text else piece.types)] = piece
    return dict(sorted(found.items(), key=lambda item: (-len(item[1].ids), item[0])))


def _text(row: Tokenised, vocabulary: int) -> Tokenised:
    at = next(at for at, token in enumerate(row.ids) if token >= vocabulary)
    return replace(row, ids=row.ids[:at], types=row.types[:at])


def _places(keeping: Keeping) -> dict[bytes, tuple[int, int]]:
    lengths = [len(piece.ids) for piece in keeping.pieces.values()]
    begins = accumulate(lengths, initial=0)
    return dict(zip(keeping.pieces, zip(begins, lengths, strict=False), strict=True))


def _place(prepared: Prepared, shape: Shape) -> Place:
    if not prepared.backbone.sharded and _shelf(prepared).fits(shape):
        return "file"
    return "memory" if _is_small(prepared, shape) else "nowhere"


def _is_small(prepared: Prepared, shape: Shape) -> bool:
    return shape.size <= prepared.recipe.cache.memory * _GIGA


def _shelf(prepared: Prepared) -> Shelf:
    return users_shelf(prepared.recipe.cache.disk)


def _mark(prepared: Prepared, keeping: Keeping) -> str:
    """What tells these lines from any others: everything that their numbers depend on."""
    backbone = prepared.backbone
    facts = (
        _SCHEMA,
        exact_digest(backbone.model),
        backbone.device.type,
        prepared.recipe.train.mixed_precision,
        prepared.recipe.backbone.quantization,
        keeping.layer,
        version("torch"),
        version("transformers"),
    )
    whole = blake2b(repr(facts).encode(), digest_size=16)
    for key in keeping.pieces:
        whole.update(key)
    return whole.hexdigest()


def _computed(prepared: Prepared, keeping: Keeping, accelerator: Accelerator) -> Iterator[Tensor]:
    """All lines, in the pieces' order; the batches are the same in every run of these rows."""
    backbone, layer = prepared.backbone, keeping.layer
    with torch.no_grad():
        prompt = None if layer is None else detached(prepared.method())
    every = [*keeping.pieces.values()]
    lengths = [len(piece.ids) for piece in every]
    for batch in like_length(lengths, size=len(lengths), seed=None, budget=_TOKENS):
        pieces = [every[i] for i in batch]
        inputs = padded(backbone, pieces)
        with accelerator.autocast():
            found = lines_of(backbone, inputs, layer=layer, prompt=prompt)
        kept = [line[: len(p.ids)] for line, p in zip(found, pieces, strict=True)]
        yield torch.cat(kept).to("cpu", keeping.shape.dtype)
