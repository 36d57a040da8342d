"""Rows of any tasks with a readout and any prompts, in as few forward passes as possible."""

from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.backbone.model import Backbone
from softprompt.data.chats import ChatRenderer, RowRenderer
from softprompt.data.messages import SYSTEM, USER, Message
from softprompt.errors import DataError
from softprompt.injection.capture import to_kv_prefixes
from softprompt.injection.compatibility import explain_unsplittable
from softprompt.injection.prefix_sharing import measure_common_prefix
from softprompt.prompt import InputPrompt, KVPrefix, Prompt, to
from softprompt.tasks import Classifier, Example, Prediction, Task
from softprompt.tasks.base import ReadoutTask
from softprompt.tasks.chooser import Chooser
from softprompt.tasks.classification import Seq2SeqVerbalizer
from softprompt.tasks.continuations import ContinuationChooser
from softprompt.tasks.heads import PooledHeadTask

_States = list[Float[Tensor, "K H"]]


@dataclass(frozen=True, eq=False)
class PromptedRow:
    """A rendered row with its task and its prompt.

    Args:
        task: that made the example.
        example: the row.
        prompt: of the row; None for the bare backbone.
    """

    task: ReadoutTask
    example: Example
    prompt: Prompt | None

    @property
    def width(self) -> int:
        """The positions of its longest variant, with those of a prefix."""
        prefix = self.prompt.length if isinstance(self.prompt, KVPrefix) else 0
        return self.example.length + prefix

    @property
    def cost(self) -> int:
        """The positions of all its variants."""
        return self.width * len(self.example.variants)


@dataclass(frozen=True, eq=False)
class BakedPrompt:
    """The keys and values of the tokens that every row of a task begins with.

    Args:
        prefix: of these tokens.
        head: their ids.
    """

    prefix: KVPrefix
    head: tuple[int, ...]

    def cut(self, example: Example) -> Example | None:
        """The example without these tokens; None if a row does not begin with them, or ends there.

        Args:
            example: rendered by the task.
        """
        length = len(self.head)
        for variant, positions in zip(example.variants, example.read_positions, strict=True):
            is_head = variant.input_ids[:length] == self.head and len(variant.input_ids) > length
            if not is_head or min(positions, default=length) < length:
                return None
        return replace(
            example,
            variants=tuple(
                replace(
                    v,
                    input_ids=v.input_ids[length:],
                    token_type_ids=v.token_type_ids[length:],
                    mask_positions=tuple(at - length for at in v.mask_positions if at >= length),
                )
                for v in example.variants
            ),
            read_positions=tuple(
                tuple(at - length for at in positions) for positions in example.read_positions
            ),
        )


def find_head(task: Task) -> tuple[int, ...] | None:
    """The ids that every row of a task begins with, if they hold all soft tokens of the template.

    Args:
        task: whose rows are looked at.

    Returns:
        The ids; None if rows do not begin with all soft tokens, or if the keys and values of the
        first tokens depend on what follows.
    """
    geometry = task.backbone.geometry
    if (
        geometry.architecture != "causal"
        or task.reads_whole_rows
        or explain_unsplittable(geometry) is not None
    ):
        return None
    renderer = task.renderers[0]
    rows = [ids for text in _PROBES for ids in _render_probe(renderer, text)]
    common = rows[0][: measure_common_prefix(rows)]
    soft = [at for at, token in enumerate(rows[0]) if token >= geometry.vocab_size]
    return common if soft and soft[-1] < len(common) else None


def _render_probe(renderer: RowRenderer, text: str) -> list[tuple[int, ...]]:
    """The rows of a text: of a conversation, with a system turn and without one."""
    fields = dict.fromkeys(renderer.template.fields, text)
    if not isinstance(renderer, ChatRenderer):
        return [renderer.render(fields).input_ids]
    rows = [renderer.render_messages([Message(USER, text)], fields, continues=True).input_ids]
    with suppress(DataError):  # some take no system turn
        both = [Message(SYSTEM, text), Message(USER, text)]
        rows.append(renderer.render_messages(both, fields, continues=True).input_ids)
    return rows


# Texts whose first tokens differ, also where a tokenizer joins them with the text before.
_PROBES = ("a", "Z", "7", "(")


def can_bake(prompt: Prompt) -> bool:
    """Whether a prompt has keys and values in all layers that can be computed once.

    Args:
        prompt: of any kind.
    """
    return isinstance(prompt, InputPrompt) and not prompt.start_layer and prompt.length > 0


def bake_prompts(
    backbone: Backbone, prompts: Sequence[InputPrompt], *, heads: Sequence[tuple[int, ...]]
) -> list[BakedPrompt]:
    """Bake prompts, those with heads of the same length together.

    Args:
        backbone: of the prompts.
        prompts: that `can_bake`, on the backbone's device.
        heads: of each prompt's task, by `find_head`.

    Returns:
        The baked prompts, in the dtype of the backbone.
    """
    baked: dict[int, BakedPrompt] = {}
    for length in {len(head) for head in heads}:
        at = [index for index, head in enumerate(heads) if len(head) == length]
        ids = torch.tensor([heads[index] for index in at], device=backbone.device)
        prefixes = to_kv_prefixes(backbone, [prompts[index] for index in at], heads=ids)
        for index, prefix in zip(at, prefixes, strict=True):
            baked[index] = BakedPrompt(to(prefix, dtype=backbone.dtype), heads[index])
    return [baked[index] for index in range(len(heads))]


def predict_mixed(rows: Sequence[PromptedRow]) -> list[Prediction]:
    """Predict rows of any tasks with a readout, and of any prompts.

    Rows share a forward pass if their states are read in the same way: at positions of the row
    (label words in it, options that continue it, and heads on one state), pooled by the mean,
    pooled by the maximum, in a decoder that gets the same beginnings of label words, or in one that
    gets options.

    Args:
        rows: at least one, all on one backbone.

    Returns:
        The predictions, in the rows' order.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(_find_readout(row.task), []).append(index)
    predictions: dict[int, Prediction] = {}
    with torch.no_grad():
        for readout, indices in groups.items():
            chosen = [rows[i] for i in indices]
            compute = _compute_at_positions if readout == "positions" else _compute_together
            predictions |= zip(indices, _read(chosen, compute(chosen)), strict=True)
    return [predictions[i] for i in range(len(rows))]


def _find_readout(task: ReadoutTask) -> Hashable:
    """What must be equal for rows to share a forward pass."""
    match task:
        case Seq2SeqVerbalizer():
            return task.plan.continuations, task.plan.offsets
        case ContinuationChooser() if task.is_decoder:
            return "options"
        case PooledHeadTask() if task.reads_whole_rows:
            return task.pooling, isinstance(task, Chooser)
        case _:
            return "positions"


def _assign_prompts(
    rows: Sequence[PromptedRow], backbone: Backbone
) -> tuple[list[Prompt | None], Tensor | None]:
    """The distinct prompts, and the index of each row's; None if there is only one."""
    numbers: dict[int, int] = {}
    prompts: list[Prompt | None] = []
    for row in rows:
        if id(row.prompt) not in numbers:
            numbers[id(row.prompt)] = len(prompts)
            prompts.append(row.prompt)
    if len(prompts) == 1:
        return prompts, None
    index = [numbers[id(row.prompt)] for row in rows]
    return prompts, torch.tensor(index, device=backbone.device)


def _compute_at_positions(rows: Sequence[PromptedRow]) -> _States:
    """Run all variants of all rows in one pass, and read the positions of each."""
    task = rows[0].task
    prompts, index = _assign_prompts(rows, task.backbone)
    return task.compute_row_states([row.example for row in rows], prompts, rows=index)


def _compute_together(rows: Sequence[PromptedRow]) -> _States:
    """Run rows whose tasks read states in the same way."""
    task = rows[0].task
    prompts, index = _assign_prompts(rows, task.backbone)
    if isinstance(task, Chooser):
        return task.compute_option_states([row.example for row in rows], prompts, rows=index)
    if not isinstance(task, Classifier):
        raise TypeError(task)
    return list(task.compute_states([row.example for row in rows], prompts, rows=index))


def _read(rows: Sequence[PromptedRow], states: _States) -> list[Prediction]:
    """Let each task read its rows' states, all of them at once."""
    by_task: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        by_task.setdefault(id(row.task), []).append(index)
    predictions: dict[int, Prediction] = {}
    for indices in by_task.values():
        examples, read = [rows[i].example for i in indices], [states[i] for i in indices]
        found = rows[indices[0]].task.read_rows(examples, read)
        predictions |= zip(indices, found, strict=True)
    return [predictions[i] for i in range(len(rows))]
