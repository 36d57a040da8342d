"""Cache the states that training does not change, before the first step and for later runs."""

from collections.abc import Generator, Iterator, Mapping, Sequence
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
from softprompt.train.events import Callback, PrecomputeProgress, TrainingWarning
from softprompt.train.sampler import BatchSampler
from softprompt.train.setup import RunSetup, make_trainer
from softprompt.train.stages import notify
from softprompt.train.trainer import Trainer

Place = Literal["file", "memory", "nowhere"]

# Part of the cache's key. Increase it whenever the computation of states changes.
_SCHEMA = "1"
# The most padded tokens of a batch.
_BATCH_TOKENS = 4096
_GIGABYTE = 10**9


@dataclass(frozen=True, eq=False)
class PrecomputePlan:
    """The states to cache.

    Args:
        layer: whose input is cached; None for the keys and values of text before the prompt.
        splits: the splits whose rows are cached.
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
    unaffected = _find_unaffected(prepared, prompt)
    splits = [name for name in ("train", "validation") if _is_run_repeatedly(prepared, name)]
    if unaffected == "nothing" or not splits:
        return None
    layer = None if unaffected == "text" else unaffected
    task = prepared.task
    examples = chain.from_iterable(prepared.rows[name].examples for name in splits)
    pieces = _collect_pieces(task, examples, text_only=layer is None)
    if not pieces:
        return None
    shape = StateShape(
        rows=sum(len(piece.input_ids) for piece in pieces.values()),
        width=get_state_width(task.backbone, layer),
        dtype=task.backbone.dtype,
    )
    return PrecomputePlan(layer, tuple(splits), pieces, shape, _choose_place(prepared, shape))


def precompute(
    trainer: Trainer, prepared: RunSetup, *, plan: PrecomputePlan
) -> Iterator[PrecomputeProgress | TrainingWarning]:
    """Give a trainer the cached states, which are computed unless an earlier run has stored them.

    Args:
        trainer: its task is replaced by one with these states.
        prepared: the parts of the run.
        plan: what to cache, and where.

    Yields:
        The progress. If the states cannot be stored, a warning: they are then computed in every
        step.
    """
    if plan.place == "nowhere":
        return
    try:
        states = yield from _load_or_compute(prepared, plan, trainer.accelerator)
    except OSError as error:
        msg = (
            f"the states of {len(plan.pieces):,} texts ({plan.shape.size:,} bytes) could not be "
            f"cached in {_open_cache(prepared).folder}: {error.strerror or error}. They are "
            "computed in every step instead. Free some space, set SOFTPROMPT_CACHE to another "
            "folder, or set cache.disk_gb to 0 in the recipe."
        )
        yield TrainingWarning(trainer.step, msg)
    else:
        cached = CachedStates(plan.layer, _compute_spans(plan), states)
        trainer.task = trainer.task.with_cached_states(cached)


def share_cached_states(
    prepared: RunSetup, accelerator: Accelerator, *, callbacks: Sequence[Callback]
) -> RunSetup:
    """The parts with a task that reads the states that training does not change from a cache.

    All that is trained with the parts reads the same states: trials of learning rates, folds, and
    the runs of several seeds.

    Args:
        prepared: the parts of the run.
        accelerator: of the run.
        callbacks: called with the progress.
    """
    plan = None if has_cached_states(prepared) else plan_precompute(prepared)
    if plan is None:
        return prepared
    trainer = make_trainer(prepared, accelerator)
    for event in precompute(trainer, prepared, plan=plan):
        notify(callbacks, event)
    return replace(prepared, task=trainer.task)


def has_cached_states(prepared: RunSetup) -> bool:
    """Whether the task of a run reads states from a cache."""
    return isinstance(prepared.task.cached, CachedStates)


def _load_or_compute(
    prepared: RunSetup, plan: PrecomputePlan, accelerator: Accelerator
) -> Generator[PrecomputeProgress, None, Tensor]:
    """The states of all pieces, one row per token."""
    parts, shape = _compute_parts(prepared, plan, accelerator), plan.shape
    if plan.place == "memory":
        states = torch.empty(shape.rows, shape.width, dtype=shape.dtype)
        done = 0
        for part in parts:
            states[done : done + len(part)] = part
            done += len(part)
            yield PrecomputeProgress(done, shape.rows, shape.size)
        return states
    cache, key = _open_cache(prepared), _compute_cache_key(prepared, plan)
    with cache.lock(key):
        stored = cache.load(key, width=shape.width, dtype=shape.dtype)
        if stored is None:
            for done in cache.write(key, shape, parts=parts):
                yield PrecomputeProgress(done, shape.rows, shape.size)
            stored = cache.load(key, width=shape.width, dtype=shape.dtype)
    if stored is None:
        msg = "the file does not hold what was written to it"
        raise OSError(msg)
    return stored.clone() if _fits_in_memory(prepared, shape) else stored


def _find_unaffected(prepared: RunSetup, prompt: Prompt) -> Literal["text", "nothing"] | int:
    """What the prompt does not affect: the text before it, or the layers below a layer."""
    backbone, training = prepared.backbone, prepared.training
    has_noise = training.is_backbone_in_train_mode and backbone.dropout
    if has_noise or backbone.geometry.limits.padding is not None:
        return "nothing"
    soft_first = parse_template(prepared.template).starts_with_soft
    is_split = can_split(backbone) and not prepared.task.reads_whole_rows
    if isinstance(prompt, InputPrompt) and is_split and not soft_first:
        return "text"
    first, num_layers = find_first_affected_layer(prompt), backbone.geometry.num_layers
    return min(first, num_layers) if first and num_layers else "nothing"


def _is_run_repeatedly(prepared: RunSetup, split: str) -> bool:
    """Whether the rows of a split are run more than once."""
    rows = prepared.rows.get(split)
    if rows is None:
        return False
    if split == "validation" or prepared.folds or prepared.recipe.train.seeds > 1:
        return True  # at the start and at the end, in every fold, or with every seed
    sampler = BatchSampler([e.length for e in rows.examples], prepared.training)
    return sampler.count_steps() > len(sampler.draw_batches(0))


def _collect_pieces(
    task: Task, examples: Iterator[Example], *, text_only: bool
) -> dict[bytes, RenderedRow]:
    """The distinct rows, or their text before the prompt, longest first, by their keys."""
    pieces: dict[bytes, RenderedRow] = {}
    for example in examples:
        for row in task.list_training_rows(example):
            piece = _cut_at_prompt(row, task.backbone.geometry.vocab_size) if text_only else row
            types = () if text_only else piece.token_type_ids
            pieces[compute_row_key(piece.input_ids, types)] = piece
    return dict(sorted(pieces.items(), key=lambda item: (-len(item[1].input_ids), item[0])))


def _cut_at_prompt(row: RenderedRow, vocab_size: int) -> RenderedRow:
    """The row's text before its first soft token."""
    end = next(at for at, token in enumerate(row.input_ids) if token >= vocab_size)
    return replace(row, input_ids=row.input_ids[:end], token_type_ids=row.token_type_ids[:end])


def _compute_spans(plan: PrecomputePlan) -> dict[bytes, tuple[int, int]]:
    """Where the states of each piece begin, and how many there are, by its key."""
    lengths = [len(piece.input_ids) for piece in plan.pieces.values()]
    begins = accumulate(lengths, initial=0)
    return dict(zip(plan.pieces, zip(begins, lengths, strict=False), strict=True))


def _choose_place(prepared: RunSetup, shape: StateShape) -> Place:
    if not prepared.backbone.sharded and _open_cache(prepared).has_room(shape):
        return "file"
    return "memory" if _fits_in_memory(prepared, shape) else "nowhere"


def _fits_in_memory(prepared: RunSetup, shape: StateShape) -> bool:
    return shape.size <= prepared.recipe.cache.memory_gb * _GIGABYTE


def _open_cache(prepared: RunSetup) -> DiskCache:
    return open_user_cache(prepared.recipe.cache.disk_gb)


def _compute_cache_key(prepared: RunSetup, plan: PrecomputePlan) -> str:
    """A digest of everything that the states depend on."""
    backbone = prepared.backbone
    facts = (
        _SCHEMA,
        digest_weights(backbone.model),
        backbone.device.type,
        prepared.recipe.train.mixed_precision,
        prepared.recipe.backbone.quantization_config,
        plan.layer,
        version("torch"),
        version("transformers"),
    )
    digest = blake2b(repr(facts).encode(), digest_size=16)
    for key in plan.pieces:
        digest.update(key)
    return digest.hexdigest()


def _compute_parts(
    prepared: RunSetup, plan: PrecomputePlan, accelerator: Accelerator
) -> Iterator[Tensor]:
    """All states, in the order of the pieces; the batches are the same in every run."""
    backbone, layer = prepared.backbone, plan.layer
    with torch.no_grad():
        prompt = None if layer is None else detach_copy(prepared.method())
    pieces = [*plan.pieces.values()]
    lengths = [len(piece.input_ids) for piece in pieces]
    for batch in group_by_length(lengths, size=len(lengths), seed=None, max_tokens=_BATCH_TOKENS):
        rows = [pieces[i] for i in batch]
        inputs = pad_rows(backbone, rows)
        with accelerator.autocast():
            padded = compute_states(backbone, inputs, layer=layer, prompt=prompt)
        states = [part[: len(row.input_ids)] for part, row in zip(padded, rows, strict=True)]
        yield torch.cat(states).to("cpu", plan.shape.dtype)
