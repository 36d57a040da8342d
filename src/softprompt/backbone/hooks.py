"""Hooks into a transformers model: its input embeddings, its layers and its attention."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn, no_grad
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from softprompt.backbone.attention import AttentionCall, attend
from softprompt.backbone.layers import Layer

NAME = "softprompt"
_KEYWORD = "softprompt_call"


@runtime_checkable
class PassHook(Protocol):
    """The changes that a hook makes to one forward pass.

    Args:
        extra_outputs: the outputs other than hidden states of the first layer that was skipped;
            later skipped layers return them too.
    """

    extra_outputs: list[Any]

    def attend(self, module: nn.Module, attention: AttentionCall) -> AttentionCall:
        """The inputs to use instead in this attention module."""

    def on_layer(self, block: nn.Module, states: Tensor) -> tuple[Tensor, bool]:
        """The input to use instead in this layer, and whether to run the layer on it."""


@runtime_checkable
class PromptHook(Protocol):
    """A hook that changes a model's embeddings, layers and attention while it runs."""

    def embed(self, ids: Tensor, table: Callable[[Tensor], Tensor]) -> Tensor:
        """Embed ids, including those of soft tokens; ``table`` embeds the backbone's own tokens."""

    def get_position_shift(self, batch: int) -> Tensor | None:
        """The number of positions that each row is shifted by, ``[B]``; None if none is.

        Used for models that take no position ids.
        """

    def begin_pass(self, positions: Tensor) -> PassHook:
        """Start one forward pass.

        Args:
            positions: the positions of its tokens, ``[B or 1, T]``; of an encoder-decoder those of
                the decoder's tokens.
        """


_current: ContextVar[PromptHook | None] = ContextVar("softprompt_hook", default=None)


@contextmanager
def use_hook(hook: PromptHook) -> Iterator[None]:
    """Apply a hook to every forward pass that starts in this context."""
    token = _current.set(hook)
    try:
        yield
    finally:
        _current.reset(token)


def get_current_hook() -> PromptHook | None:
    """The hook of this context, if there is one."""
    return _current.get()


def attach_pass(tensor: Tensor, call: PassHook) -> None:
    """Attach a pass to a tensor, for layers that do not pass keyword arguments on."""
    setattr(tensor, _KEYWORD, call)


def get_attached_pass(kwargs: Mapping[str, Any]) -> PassHook | None:
    """The pass among a layer's keyword arguments; BLOOM's is attached to its alibi tensor."""
    call: PassHook | None = kwargs.get(_KEYWORD, getattr(kwargs.get("alibi"), _KEYWORD, None))
    return call


def install_hooks(model: PreTrainedModel) -> bool:
    """Install the hooks for embeddings and attention in a model, once, when it is loaded.

    Returns:
        Whether its attention uses transformers' attention interface. If not (DeBERTa; BLOOM, which
        has :mod:`~softprompt.backbone.families.bloom`), only the embeddings have a hook.
    """
    for table in _tables(model):
        table.forward = partial(_embed, table.forward)
    if not model._can_set_attn_implementation():  # noqa: SLF001  # transformers' only way to ask
        return False
    model.set_attn_implementation(NAME)
    for entrance in _entrances(model):
        entrance.register_forward_pre_hook(_pass_on, with_kwargs=True)
    return True


def hook_layers(blocks: Sequence[Layer]) -> None:
    """Install the hook that changes the input of layers, or skips them."""
    for block in {id(b.module): b for b in blocks}.values():
        block.module.forward = partial(_layer, block.module.forward, block)


def hook_positions(table: nn.Module) -> None:
    """Install the hook that shifts the positions of a decoder that takes no position ids."""
    table.forward = partial(_shifted_positions, table.forward)


def _stacks(model: PreTrainedModel) -> list[PreTrainedModel]:
    """The encoder and decoder of a model that has both."""
    if not model.config.is_encoder_decoder:
        return []
    return [model.get_encoder(), model.get_decoder()]


def _tables(model: PreTrainedModel) -> list[nn.Module]:
    tables = [m.get_input_embeddings() for m in (model, *_stacks(model))]
    return list({id(t): t for t in tables}.values())


def _entrances(model: PreTrainedModel) -> list[nn.Module]:
    return list({id(m): m for m in (model, model.base_model, *_stacks(model))}.values())


def _embed(table: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    hook = _current.get()
    return table(ids) if hook is None else hook.embed(ids, table)


def _pass_on(
    _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    hook = _current.get()
    positions = _positions(kwargs)
    # If they are not known here, the pass begins in an inner module.
    if hook is None or positions is None or _KEYWORD in kwargs:
        return None
    return args, kwargs | {_KEYWORD: hook.begin_pass(positions)}


def _positions(kwargs: dict[str, Any]) -> Tensor | None:
    """The positions of the tokens of a pass: the explicit ones, else those after the cache's."""
    explicit: Tensor | None = kwargs.get("position_ids")
    if explicit is not None:
        return explicit
    options = (kwargs.get(name) for name in ("decoder_input_ids", "input_ids"))
    ids = next((tensor for tensor in options if tensor is not None), None)
    if ids is None:
        return None
    cache = kwargs.get("past_key_values")
    cached = 0 if cache is None else cache.get_seq_length()
    return torch.arange(ids.shape[1], device=ids.device)[None] + cached


def _shifted_positions(
    forward: Callable[..., Tensor],
    rows: Tensor | tuple[int, int],
    *args: Any,  # noqa: ANN401  # transformers' own arguments, passed on untouched
    **kwargs: Any,  # noqa: ANN401
) -> Tensor:
    hook = _current.get()
    batch = len(rows) if isinstance(rows, Tensor) else rows[0]
    shift = None if hook is None else hook.get_position_shift(batch)
    if shift is None:
        return forward(rows, *args, **kwargs)
    # The table takes one list of positions for all rows, so those of all rows are concatenated.
    positions = kwargs["position_ids"] + shift[:, None]
    embedded = forward(rows, *args, **kwargs | {"position_ids": positions.flatten()})
    return embedded.reshape(*positions.shape, -1)


def _layer(
    forward: Callable[..., Any],
    block: Layer,
    states: Tensor,
    *args: Any,  # noqa: ANN401  # transformers' own arguments, passed on untouched
    **kwargs: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    call = get_attached_pass(kwargs)
    if call is None:
        return forward(states, *args, **kwargs)
    states, is_run = call.on_layer(block.module, states)
    if is_run:
        return forward(states, *args, **kwargs)
    if not block.has_extra_outputs:
        return states
    if not call.extra_outputs:
        with no_grad():
            _, *call.extra_outputs = forward(states, *args, **kwargs)
    return (states, *call.extra_outputs)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,  # noqa: ANN401  # transformers' own keyword arguments, passed on untouched
) -> tuple[Tensor, None]:
    call: PassHook | None = kwargs.pop(_KEYWORD, None)
    if call is not None:
        is_causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        bias, window = kwargs.get("position_bias"), kwargs.get("sliding_window")
        plain = AttentionCall(
            query,
            key,
            value,
            attention_mask,
            bool(causal),
            bias,
            window,
            scaling=kwargs.get("scaling"),
        )
        return attend(module, call.attend(module, plain), options=kwargs), None
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output, None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)


@dataclass
class Recorder:
    """A hook that changes nothing, and records attention calls or the input of a layer.

    Args:
        stop_at: another hook that is applied first; None for the bare model.
        until: the first layer that is skipped, and whose input is recorded; None to run all layers
            and record the attention calls.
    """

    stop_at: PromptHook | None = None
    until: int | None = None
    calls: list[tuple[nn.Module, AttentionCall]] = field(default_factory=list, init=False)
    layer_inputs: list[Tensor] = field(default_factory=list, init=False)

    def embed(self, ids: Tensor, table: Callable[[Tensor], Tensor]) -> Tensor:
        """Embed as the inner hook does."""
        return table(ids) if self.stop_at is None else self.stop_at.embed(ids, table)

    def get_position_shift(self, batch: int) -> Tensor | None:
        """Shift as the inner hook does."""
        return None if self.stop_at is None else self.stop_at.get_position_shift(batch)

    def begin_pass(self, positions: Tensor) -> PassHook:
        """Record one pass."""
        return _Recorded(self, None if self.stop_at is None else self.stop_at.begin_pass(positions))


class _Recorded:
    """One pass. Not a dataclass, because FSDP copies dataclasses among the arguments."""

    def __init__(self, recorder: Recorder, below: PassHook | None) -> None:
        self.recorder, self.below = recorder, below
        self.extra_outputs: list[Any] = []
        self.entered = 0

    def attend(self, module: nn.Module, attention: AttentionCall) -> AttentionCall:
        if self.recorder.until is None:
            self.recorder.calls.append((module, attention))
        return replace(attention) if self.below is None else self.below.attend(module, attention)

    def on_layer(self, block: nn.Module, states: Tensor) -> tuple[Tensor, bool]:
        number, until = self.entered, self.recorder.until
        self.entered += 1
        if number == until:
            self.recorder.layer_inputs.append(states)
        if until is not None and number >= until:
            return states, False
        return (states, True) if self.below is None else self.below.on_layer(block, states)
