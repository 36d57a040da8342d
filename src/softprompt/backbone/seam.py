"""Where prompts get into a transformers model: its input table and its attention function.

The seam knows no prompt. It asks the current :class:`Listener`, if there is one, and is otherwise
the bare model. The listener stands in a context variable, so threads do not see each other's; at
the model's entrance it is turned into a keyword argument, which gradient checkpointing keeps for
the second forward pass that it runs when the context is long gone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn, no_grad
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from softprompt.backbone.attention import Attention, attend
from softprompt.backbone.blocks import Block

NAME = "softprompt"
_KEYWORD = "softprompt_call"


@runtime_checkable
class Pass(Protocol):
    """One pass through the model, as a listener changes it.

    Args:
        more: what the first layer that was left out hands on beside its states, for the others.
    """

    more: list[Any]

    def attend(self, module: nn.Module, attention: Attention) -> Attention:
        """What this attention module attends to instead."""

    def enter(self, block: nn.Module, states: Tensor) -> tuple[Tensor, bool]:
        """What a block is given instead, and whether it is run or hands that on as it is."""


@runtime_checkable
class Listener(Protocol):
    """What changes the embeddings, the blocks and the attention of a model while it runs."""

    def embed(self, ids: Tensor, table: Callable[[Tensor], Tensor]) -> Tensor:
        """Embed ids, soft ones included; ``table`` embeds the backbone's own."""

    def moved(self, batch: int) -> Tensor | None:
        """By how much each of so many rows is moved up, ``[B]``; None if none is.

        Asked where the model takes no position ids.
        """

    def call(self, positions: Tensor) -> Pass:
        """Begin one pass through the model, whose tokens stand at these positions.

        Args:
            positions: ``[B or 1, T]``; a decoder's are its own tokens'.
        """


_current: ContextVar[Listener | None] = ContextVar("softprompt_listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let ``listener`` change every pass that starts in this context."""
    token = _current.set(listener)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Listener | None:
    """Who listens in this context."""
    return _current.get()


def ride(tensor: Tensor, call: Pass) -> None:
    """Let a pass go along with a tensor, where layers are handed no keyword of ours."""
    setattr(tensor, _KEYWORD, call)


def riding(given: Mapping[str, Any]) -> Pass | None:
    """The pass that comes with a layer's keyword arguments; BLOOM's rides on its alibi."""
    call: Pass | None = given.get(_KEYWORD, getattr(given.get("alibi"), _KEYWORD, None))
    return call


def install(model: PreTrainedModel) -> bool:
    """Open the seam in a model, once, at load.

    Returns:
        Whether its attention goes through transformers' attention interface. Where it does not
        (DeBERTa; BLOOM, which :mod:`~softprompt.backbone.bloom` opens), only the input table is.
    """
    for table in _tables(model):
        table.forward = partial(_embed, table.forward)
    if not model._can_set_attn_implementation():  # noqa: SLF001  # transformers' only way to ask
        return False
    model.set_attn_implementation(NAME)
    for entrance in _entrances(model):
        entrance.register_forward_pre_hook(_pass_on, with_kwargs=True)
    return True


def open_blocks(blocks: Sequence[Block]) -> None:
    """Let listeners change what these layers are given, and leave layers out."""
    for block in {id(b.module): b for b in blocks}.values():
        block.module.forward = partial(_block, block.module.forward, block)


def open_positions(table: nn.Module) -> None:
    """Let listeners move the rows of a decoder that takes no position ids."""
    table.forward = partial(_placed, table.forward)


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
    listener = _current.get()
    return table(ids) if listener is None else listener.embed(ids, table)


def _pass_on(
    _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    listener = _current.get()
    positions = _positions(kwargs)
    # Where they are not known here, the pass begins further in.
    if listener is None or positions is None or _KEYWORD in kwargs:
        return None
    return args, kwargs | {_KEYWORD: listener.call(positions)}


def _positions(kwargs: dict[str, Any]) -> Tensor | None:
    """Where the tokens of a pass stand: as told, else behind those that a cache holds."""
    told: Tensor | None = kwargs.get("position_ids")
    if told is not None:
        return told
    named = (kwargs.get(name) for name in ("decoder_input_ids", "input_ids"))
    ids = next((given for given in named if given is not None), None)
    if ids is None:
        return None
    cache = kwargs.get("past_key_values")
    held = 0 if cache is None else cache.get_seq_length()
    return torch.arange(ids.shape[1], device=ids.device)[None] + held


def _placed(
    forward: Callable[..., Tensor],
    rows: Tensor | tuple[int, int],
    *args: Any,  # noqa: ANN401  # transformers' own arguments, passed on untouched
    **kwargs: Any,  # noqa: ANN401
) -> Tensor:
    listener = _current.get()
    batch = len(rows) if isinstance(rows, Tensor) else rows[0]
    moved = None if listener is None else listener.moved(batch)
    if moved is None:
        return forward(rows, *args, **kwargs)
    # It takes the same positions for all rows; so all are asked for, one after the other.
    where = kwargs["position_ids"] + moved[:, None]
    found = forward(rows, *args, **kwargs | {"position_ids": where.flatten()})
    return found.reshape(*where.shape, -1)


def _block(
    forward: Callable[..., Any],
    block: Block,
    states: Tensor,
    *args: Any,  # noqa: ANN401  # transformers' own arguments, passed on untouched
    **kwargs: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    call = riding(kwargs)
    if call is None:
        return forward(states, *args, **kwargs)
    states, awake = call.enter(block.module, states)
    if awake:
        return forward(states, *args, **kwargs)
    if not block.more:
        return states
    if not call.more:
        with no_grad():
            _, *call.more = forward(states, *args, **kwargs)
    return (states, *call.more)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,  # noqa: ANN401  # transformers' own keyword arguments, passed on untouched
) -> tuple[Tensor, None]:
    call: Pass | None = kwargs.pop(_KEYWORD, None)
    if call is not None:
        is_causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        bias, window = kwargs.get("position_bias"), kwargs.get("sliding_window")
        plain = Attention(
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
