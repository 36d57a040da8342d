"""Keys, values and attention read from a forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from softprompt.backbone.attention import AttentionCall
from softprompt.backbone.hooks import PassHook, PromptHook, use_hook
from softprompt.backbone.model import Backbone, BatchInputs, Geometry
from softprompt.errors import PromptError
from softprompt.injection.compatibility import explain_unsplittable
from softprompt.injection.forward import assign_prompts, compute_position_ids
from softprompt.injection.site_shapes import pad_to_prefix
from softprompt.injection.state_cache import compute_keys_and_values
from softprompt.prompt import InputPrompt, KVPrefix, Prompt


@torch.no_grad()
def capture_keys_and_values(
    backbone: Backbone, ids: Int[Tensor, " P"], *, prompt: Prompt | None = None
) -> KVPrefix:
    """Capture the keys and values that every attention site computes for one row of ids.

    Args:
        backbone: the backbone; an encoder-decoder's decoder gets the same ids.
        ids: the token ids ``[P]``, including those of soft tokens.
        prompt: the prompt of the row, if it has one.

    Returns:
        A prefix in fp32, as long as the row.

    Raises:
        PromptError: the keys and values of this backbone cannot be read.
    """
    (pair,) = _capture_rows(backbone, ids[None], [prompt])
    return KVPrefix(*pair, tuple(range(len(pair[0]))))


def _capture_rows(
    backbone: Backbone, ids: Int[Tensor, "R P"], prompts: Sequence[Prompt | None]
) -> list[tuple[Tensor, Tensor]]:
    """The keys and values ``[L, N, P, D]`` of each row, in fp32."""
    if (limit := backbone.geometry.limits.prefix) is not None:
        msg = (
            f"{backbone.geometry.model_type} {limit}, so its keys and values cannot be read. Use "
            "prompt-tuning or p-tuning."
        )
        raise PromptError(msg)
    inputs = backbone.make_single_row(ids[0])
    if len(ids) > 1:  # of a causal backbone
        ids = ids.to(backbone.device)
        inputs = BatchInputs(ids, torch.ones_like(ids))
    rows = torch.arange(len(ids))
    pairs = compute_keys_and_values(backbone, inputs, prompts=prompts, rows=rows)
    if any(keys.shape[2] != ids.shape[1] for keys, _ in pairs):
        msg = (
            f"{backbone.geometry.model_type} has keys and values that several tokens share, so "
            "those of each token cannot be read. Initialize the prompt at random."
        )
        raise PromptError(msg)
    whole = [[pad_to_prefix(backbone.geometry, t.float()) for t in pair] for pair in pairs]
    keys, values = (torch.stack(tensors, dim=1) for tensors in zip(*whole, strict=True))
    return list(zip(keys, values, strict=True))


def to_kv_prefix(backbone: Backbone, prompt: InputPrompt, *, head: Int[Tensor, " P"]) -> KVPrefix:
    """Bake an input prompt: compute the keys and values of the tokens that all rows begin with.

    Rows can then be run without these tokens, with the same result. This needs a causal backbone,
    in which later tokens do not change the keys and values of earlier ones. Sliding windows apply
    to the prefix as they do to its tokens.

    Args:
        backbone: the backbone that the prompt was trained on.
        prompt: the trained prompt, on the input embeddings.
        head: the ids ``[P]`` that every row begins with, including soft tokens (V + k) and special
            tokens.

    Returns:
        A prefix of P positions, with ``shift_positions`` set.

    Raises:
        PromptError: the prompt enters at a later layer, the backbone is not causal, or it cannot
            shift a row's positions.

    Examples:
        >>> vocabulary = backbone.geometry.vocab_size
        >>> prompt = InputPrompt(backbone.embed(torch.tensor([5, 6, 7])))
        >>> prefix = to_kv_prefix(backbone, prompt, head=torch.arange(3) + vocabulary)
        >>> prefix.length, prefix.shift_positions
        (3, True)
    """
    (prefix,) = to_kv_prefixes(backbone, [prompt], heads=head[None])
    return prefix


@torch.no_grad()
def to_kv_prefixes(
    backbone: Backbone, prompts: Sequence[InputPrompt], *, heads: Int[Tensor, "R P"]
) -> list[KVPrefix]:
    """Bake several prompts in one pass, as `to_kv_prefix` does one.

    Args:
        backbone: the backbone that the prompts were trained on.
        prompts: the trained prompts.
        heads: for each prompt the ids that every row begins with.

    Returns:
        A prefix for each prompt, in fp32, with memory of its own.

    Raises:
        PromptError: as `to_kv_prefix`.
    """
    for prompt in prompts:
        _check_bakeable(backbone.geometry, prompt)
    pairs = _capture_rows(backbone, heads, prompts)
    return [
        KVPrefix(keys.clone(), values.clone(), tuple(range(len(keys))), shift_positions=True)
        for keys, values in pairs
    ]


def _check_bakeable(geometry: Geometry, prompt: InputPrompt) -> None:
    if prompt.start_layer:
        msg = (
            f"a prompt that enters at layer {prompt.start_layer} cannot be baked: it has no keys "
            "and values in the layers below. Run it with its soft tokens."
        )
        raise PromptError(msg)
    if geometry.architecture != "causal":
        msg = (
            f"a prompt for {geometry.model_type} cannot be baked: its tokens see what comes after "
            "them, so their keys and values differ from row to row. Run it with its soft tokens."
        )
        raise PromptError(msg)
    reason = explain_unsplittable(geometry)
    if reason is not None:
        msg = (
            f"a prompt for {geometry.model_type} cannot be baked: it {reason}. Run it with its "
            "soft tokens."
        )
        raise PromptError(msg)


AttentionCallback = Callable[[int, AttentionCall], None]


@torch.no_grad()
def observe_attention(
    backbone: Backbone, inputs: BatchInputs, *, prompt: Prompt, callback: AttentionCallback
) -> None:
    """Run a backbone on rows with a prompt, and pass each attention call to a function.

    Args:
        backbone: the backbone.
        inputs: the rows; of an encoder-decoder with ``decoder_input_ids``.
        prompt: the prompt of all rows.
        callback: called with the number of each attention site, in the order of their calls, and
            its inputs, in which the prompt's keys come before the row's own.

    Raises:
        PromptError: the attention of this backbone cannot be read, or the prompt does not fit it.
    """
    if (limit := backbone.geometry.limits.prefix) is not None:
        msg = (
            f"{backbone.geometry.model_type} {limit}, so its attention weights cannot be read. "
            "Look at the prompt's nearest words and its distance from initialization instead."
        )
        raise PromptError(msg)
    row_prompts = assign_prompts(backbone, inputs, prompts=[prompt])
    positions = compute_position_ids(backbone, inputs, hook=row_prompts)
    with use_hook(_Observer(row_prompts, callback)):
        backbone.compute_hidden_states(inputs, positions=positions)


@dataclass
class _Observer:
    """A hook that applies another one, and passes each attention call to a function."""

    inner: PromptHook
    callback: AttentionCallback
    count: int = field(default=0, init=False)

    def embed(self, ids: Tensor, table: Callable[[Tensor], Tensor]) -> Tensor:
        return self.inner.embed(ids, table)

    def replace_soft(self, ids: Tensor) -> Tensor:
        return self.inner.replace_soft(ids)

    def get_position_shift(self, batch: int) -> Tensor | None:
        return self.inner.get_position_shift(batch)

    def begin_pass(self, positions: Tensor) -> PassHook:
        return _ObservedPass(self, self.inner.begin_pass(positions))


@dataclass
class _ObservedPass:
    observer: _Observer
    inner: PassHook
    extra_outputs: list[Any] = field(default_factory=list)

    def attend(self, module: nn.Module, attention: AttentionCall) -> AttentionCall:
        extended = self.inner.attend(module, attention)
        self.observer.callback(self.observer.count, extended)
        self.observer.count += 1
        return extended

    def on_layer(self, block: nn.Module, states: Tensor) -> tuple[Tensor, bool]:
        return self.inner.on_layer(block, states)
