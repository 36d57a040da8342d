"""Cache the states that training does not change, before the first step and for later runs."""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from importlib.metadata import version
from itertools import accumulate, chain
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from softprompt.backbone.fingerprint import digest_weights
from softprompt.data.collate import group_by_length
from softprompt.data.disk_cache import DiskCache, StateShape, open_user_cache
from softprompt.data.rendering import RenderedRow
from softprompt.data.template import parse_template
from softprompt.injection.prefix_sharing import can_split
from softprompt.injection.state_cache import (
    CachedStates,
    compute_row_key,
    compute_states,
    find_first_affected_layer,
    get_state_width,
)
from softprompt.prompt import InputPrompt, Prompt, detach_copy
from softprompt.tasks import Example, Task
from softprompt.tasks.base import pad_rows
from softprompt.train.events import PrecomputeProgress, TrainingWarning
from softprompt.train.sampler import BatchSampler
from softprompt.train.setup import RunSetup
from softprompt.train.trainer import Trainer

Place = Literal["file", "memory", "nowhere"]

_SCHEMA = "1"
_TOKENS = 4096
_GIGA = 10**9


@dataclass(frozen=True, eq=False)
class PrecomputePlan:
    """The states to cache.

    Args:
        layer: whose input is cached; None for the keys and values of text before the prompt.
        splits: the splits with these rows.
        pieces: the rows, or their text before the prompt, longest first, by their keys.
        shape: of all states.
        place: where they are stored; nowhere if neither budget allows it. Those of a sharded
            backbone are not written to a file, since all processes must compute them together.
    """

    layer: int | None
    splits: tuple[str, ...]
    pieces: Mapping[bytes, RenderedRow]
    shape: StateShape
    place: Place


def plan_precompute(prepared: RunSetup) -> PrecomputePlan | None:
    """Plan what to cache of a run; None if nothing is computed more than once."""
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
    shape = StateShape(
        rows=sum(len(piece.input_ids) for piece in pieces.values()),
        width=get_state_width(task.backbone, layer),
        dtype=task.backbone.dtype,
    )
    return PrecomputePlan(layer, tuple(splits), pieces, shape, _place(prepared, shape))


def precompute(
    trainer: Trainer, prepared: RunSetup, *, keeping: PrecomputePlan
) -> Iterator[PrecomputeProgress | TrainingWarning]:
    """Give a trainer the cached states, which are computed unless an earlier run has stored them.

    Yields:
        The progress. If the states cannot be stored, a warning: they are then computed in every
        step.
    """
    if keeping.place == "nowhere":
        return
    try:
        lines = yield from _lines(prepared, keeping, trainer.accelerator)
    except OSError as error:
        msg = (
            f"the states of {len(keeping.pieces):,} texts ({keeping.shape.size:,} bytes) could not "
            f"be cached in {_open_cache(prepared).folder}: {error.strerror or error}. They are "
            "computed "
            "in every step instead. Free some space, set SOFTPROMPT_CACHE to another folder, or "
            "cache.disk_gb to 0."
        )
        yield TrainingWarning(trainer.step, msg)
    else:
        states = CachedStates(keeping.layer, _places(keeping), lines)
        trainer.task = trainer.task.with_cached_states(states)


def _lines(
    prepared: RunSetup, keeping: PrecomputePlan, accelerator: Accelerator
) -> Generator[PrecomputeProgress, None, Tensor]:
    parts, shape = _computed(prepared, keeping, accelerator), keeping.shape
    if keeping.place == "memory":
        lines = torch.empty(shape.rows, shape.width, dtype=shape.dtype)
        done = 0
        for part in parts:
            lines[done : done + len(part)] = part
            done += len(part)
            yield PrecomputeProgress(done, shape.rows, shape.size)
        return lines
    cache, key = _open_cache(prepared), _cache_key(prepared, keeping)
    with cache.lock(key):
        found = cache.load(key, width=shape.width, dtype=shape.dtype)
        if found is None:
            for done in cache.write(key, shape, parts=parts):
                yield PrecomputeProgress(done, shape.rows, shape.size)
            found = cache.load(key, width=shape.width, dtype=shape.dtype)
    if found is None:
        msg = "the file does not hold what was written to it"
        raise OSError(msg)
    return found.clone() if _is_small(prepared, shape) else found


def _layer(prepared: RunSetup, prompt: Prompt) -> Literal["text", "none"] | int:
    """What the prompt does not affect: text before it, or layers below it."""
    backbone, training = prepared.backbone, prepared.training
    if training.awake and backbone.dropout:
        return "none"
    soft_first = parse_template(prepared.template).starts_with_soft
    if isinstance(prompt, InputPrompt) and can_split(backbone) and not soft_first:
        return "text"
    first, blocks = find_first_affected_layer(prompt), backbone.geometry.num_layers
    return min(first, blocks) if first and blocks else "none"


def _again(prepared: RunSetup, split: str) -> bool:
    """Whether the rows of a split are run more than once."""
    rows = prepared.rows.get(split)
    if rows is None:
        return False
    if split == "validation":
        return True  # at the start and at the end, at least
    order = BatchSampler([e.length for e in rows.examples], prepared.training)
    return order.count_steps() > len(order.draw_batches(0))


def _pieces(task: Task, examples: Iterator[Example], *, text: bool) -> dict[bytes, RenderedRow]:
    found: dict[bytes, RenderedRow] = {}
    for example in examples:
        for row in task.count_training_rows(example):
            piece = _text(row, task.backbone.geometry.vocab_size) if text else row
            found[compute_row_key(piece.input_ids, () if text else piece.token_type_ids)] = piece
    return dict(sorted(found.items(), key=lambda item: (-len(item[1].input_ids), item[0])))


def _text(row: RenderedRow, vocabulary: int) -> RenderedRow:
    at = next(at for at, token in enumerate(row.input_ids) if token >= vocabulary)
    return replace(row, input_ids=row.input_ids[:at], token_type_ids=row.token_type_ids[:at])


def _places(keeping: PrecomputePlan) -> dict[bytes, tuple[int, int]]:
    lengths = [len(piece.input_ids) for piece in keeping.pieces.values()]
    begins = accumulate(lengths, initial=0)
    return dict(zip(keeping.pieces, zip(begins, lengths, strict=False), strict=True))


def _place(prepared: RunSetup, shape: StateShape) -> Place:
    if not prepared.backbone.sharded and _open_cache(prepared).has_room(shape):
        return "file"
    return "memory" if _is_small(prepared, shape) else "nowhere"


def _is_small(prepared: RunSetup, shape: StateShape) -> bool:
    return shape.size <= prepared.recipe.cache.memory_gb * _GIGA


def _open_cache(prepared: RunSetup) -> DiskCache:
    return open_user_cache(prepared.recipe.cache.disk_gb)


def _cache_key(prepared: RunSetup, keeping: PrecomputePlan) -> str:
    """A digest of everything that the states depend on."""
    backbone = prepared.backbone
    facts = (
        _SCHEMA,
        digest_weights(backbone.model),
        backbone.device.type,
        prepared.recipe.train.mixed_precision,
        prepared.recipe.backbone.quantization_config,
        keeping.layer,
        version("torch"),
        version("transformers"),
    )
    whole = blake2b(repr(facts).encode(), digest_size=16)
    for key in keeping.pieces:
        whole.update(key)
    return whole.hexdigest()


def _computed(
    prepared: RunSetup, keeping: PrecomputePlan, accelerator: Accelerator
) -> Iterator[Tensor]:
    """All states, in the order of the pieces; the batches are the same in every run."""
    backbone, layer = prepared.backbone, keeping.layer
    with torch.no_grad():
        prompt = None if layer is None else detach_copy(prepared.method())
    every = [*keeping.pieces.values()]
    lengths = [len(piece.input_ids) for piece in every]
    for batch in group_by_length(lengths, size=len(lengths), seed=None, max_tokens=_TOKENS):
        pieces = [every[i] for i in batch]
        inputs = pad_rows(backbone, pieces)
        with accelerator.autocast():
            found = compute_states(backbone, inputs, layer=layer, prompt=prompt)
        states = [line[: len(p.input_ids)] for line, p in zip(found, pieces, strict=True)]
        yield torch.cat(states).to("cpu", keeping.shape.dtype)
