"""Hooks into a transformers model: its input embeddings, its layers and its attention."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn, no_grad
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from softprompt.backbone.attention import (
    SELECTING_KEYWORDS,
    AttentionCall,
    attend,
    run_kernel,
)
from softprompt.backbone.layers import Layer, find_body

NAME = "softprompt"
# For families that do not support sdpa, whose masks are additive.
NAME_EAGER = "softprompt_eager"
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

    def replace_soft(self, ids: Tensor) -> Tensor:
        """Ids for further tables that look tokens up, in which soft tokens have no row."""

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
# The pass that is running, for layers and attention that do not receive it as a keyword argument.
_running: ContextVar[PassHook | None] = ContextVar("softprompt_pass", default=None)


@contextmanager
def use_hook(hook: PromptHook) -> Iterator[None]:
    """Apply a hook to every forward pass that starts in this context."""
    token = _current.set(hook)
    try:
        yield
    finally:
        _current.reset(token)


@dataclass(frozen=True, eq=False)
class FreeVectors:
    """Vectors that stand for tokens of rows: the id -1 - k has vector k, and any token may be one.

    Such an id is that of a word for everything but the embedding table: readouts, masks, prompts.

    Args:
        vectors: ``[S, E]``, as the table embeds tokens; they may need a gradient.
        tokens: ``[S]``, the token that each stands for in further tables.
    """

    vectors: Tensor
    tokens: Tensor

    def embed(self, ids: Tensor, *, table: Callable[[Tensor], Tensor]) -> Tensor:
        """Look ids up in the table and among the vectors."""
        embedded = table(self.replace(ids))
        return torch.where(
            (ids < 0)[..., None], self._find(self.vectors, ids).to(embedded), embedded
        )

    def replace(self, ids: Tensor) -> Tensor:
        """Ids for tables that have no row for these vectors."""
        return torch.where(ids < 0, self._find(self.tokens, ids).to(ids), ids)

    def _find(self, values: Tensor, ids: Tensor) -> Tensor:
        return values[(-1 - ids).clamp(min=0)]


_free_vectors: ContextVar[FreeVectors | None] = ContextVar("softprompt_vectors", default=None)


@contextmanager
def use_free_vectors(vectors: FreeVectors) -> Iterator[None]:
    """Embed negative ids as these vectors in this context, whatever hook is in use."""
    token = _free_vectors.set(vectors)
    try:
        yield
    finally:
        _free_vectors.reset(token)


def get_current_hook() -> PromptHook | None:
    """The hook of this context, if there is one."""
    return _current.get()


def attach_pass(tensor: Tensor, pass_hook: PassHook) -> None:
    """Attach a pass to a tensor, for layers that do not forward keyword arguments."""
    setattr(tensor, _KEYWORD, pass_hook)


def get_attached_pass(kwargs: Mapping[str, Any]) -> PassHook | None:
    """The pass of a layer: among its keyword arguments, running, or attached to one of them.

    Some families do not forward keyword arguments to their layers, or layers to their attention.
    """
    alibi = getattr(kwargs.get("alibi"), _KEYWORD, None)  # BLOOM's
    pass_hook: PassHook | None = kwargs.get(_KEYWORD) or _running.get() or alibi
    return pass_hook


def install_hooks(model: PreTrainedModel, *, tables: Sequence[nn.Module] = ()) -> bool:
    """Install the hooks for embeddings and attention in a model, once, when it is loaded.

    Args:
        model: the model.
        tables: further modules that look up token ids in a table (Gemma 3n has one for each
            layer). A soft token counts as token 0 there.

    Returns:
        Whether its attention uses transformers' attention interface. If not, only the embeddings
        have one; some such families have one of their own in :mod:`~softprompt.backbone.families`.
    """
    for table in list_input_tables(model):
        table.forward = partial(_embed, table.forward)
    for table in tables:
        table.register_forward_pre_hook(_replace_soft, with_kwargs=True)
    if not model._can_set_attn_implementation():  # noqa: SLF001  # transformers' only way to ask
        return False
    model.set_attn_implementation(NAME if model._supports_sdpa else NAME_EAGER)  # noqa: SLF001
    hook_entry_modules(model)
    return True


def hook_entry_modules(model: PreTrainedModel) -> None:
    """Install the hooks that start and end a pass."""
    for module in _list_entry_modules(model):
        parameters = inspect.signature(module.forward).parameters.values()
        takes_keywords = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        add_pass = partial(_add_pass, takes_keywords=takes_keywords)
        module.register_forward_pre_hook(add_pass, with_kwargs=True)
        module.register_forward_hook(_end_pass, always_call=True)


def wrap_method(
    modules: Iterable[nn.Module],
    name: str,
    *,
    function: Callable[..., Any],
    arguments: Sequence[object] = (),
) -> None:
    """Replace a method of modules by a function that can call it.

    Args:
        modules: whose method is replaced.
        name: of the method.
        function: called with the method, the module, the further arguments, and what the method is
            called with.
        arguments: the further arguments.
    """
    for module in modules:
        vars(module)[name] = partial(function, getattr(module, name), module, *arguments)


def hook_layers(layers: Sequence[Layer]) -> None:
    """Install the hook that changes the input of layers, or skips them."""
    for layer in {id(layer.module): layer for layer in layers}.values():
        layer.module.forward = partial(_run_layer, layer.module.forward, layer)


def hook_positions(table: nn.Module) -> None:
    """Install the hook that shifts the positions of a decoder that takes no position ids."""
    table.forward = partial(_embed_shifted_positions, table.forward)


def _list_stacks(model: PreTrainedModel) -> list[PreTrainedModel]:
    """The encoder and decoder of a model that has both."""
    if not model.config.is_encoder_decoder:
        return []
    return [model.get_encoder(), model.get_decoder()]


def list_input_tables(model: PreTrainedModel) -> list[nn.Module]:
    """The input embedding tables of a model; an encoder-decoder may have two."""
    tables = [m.get_input_embeddings() for m in (model, *_list_stacks(model))]
    return list({id(t): t for t in tables}.values())


def _list_entry_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that a forward pass can start in."""
    return list({id(m): m for m in (model, find_body(model), *_list_stacks(model))}.values())


def _embed(table: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    hook, free = _current.get(), _free_vectors.get()
    look_up = table if free is None else partial(free.embed, table=table)
    return look_up(ids) if hook is None else hook.embed(ids, look_up)


def _replace_soft(
    _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    hook, free = _current.get(), _free_vectors.get()
    if hook is None and free is None:
        return None

    def replace(value: object) -> object:
        if not isinstance(value, Tensor) or value.dtype not in {torch.int64, torch.int32}:
            return value
        ids = value if free is None else free.replace(value)
        return ids if hook is None else hook.replace_soft(ids)

    return tuple(map(replace, args)), {name: replace(value) for name, value in kwargs.items()}


def _add_pass(
    _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, takes_keywords: bool
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Start a pass, and add it to the keyword arguments, which transformers hands to the layers."""
    hook = _current.get()
    positions = _find_positions(kwargs)
    # If the positions are not known here, the pass begins in an inner module.
    if hook is None or positions is None or _KEYWORD in kwargs:
        return None
    pass_hook = hook.begin_pass(positions)
    _running.set(pass_hook)
    return (args, kwargs | {_KEYWORD: pass_hook}) if takes_keywords else None


def _end_pass(_module: nn.Module, _args: object, _output: object) -> None:
    _running.set(None)


def _find_positions(kwargs: dict[str, Any]) -> Tensor | None:
    """The positions of the tokens of a pass: the explicit ones, else those after the cache's."""
    explicit: Tensor | None = kwargs.get("position_ids")
    if explicit is not None:
        return explicit
    candidates = (kwargs.get(name) for name in ("decoder_input_ids", "input_ids"))
    ids = next((tensor for tensor in candidates if tensor is not None), None)
    if ids is None:
        return None
    cache = kwargs.get("past_key_values")
    cached = 0 if cache is None else cache.get_seq_length()
    return torch.arange(ids.shape[1], device=ids.device)[None] + cached


def _embed_shifted_positions(
    forward: Callable[..., Tensor],
    ids: Tensor | tuple[int, int],
    *args: Any,  # noqa: ANN401  # transformers' own arguments, passed on untouched
    **kwargs: Any,  # noqa: ANN401
) -> Tensor:
    hook = _current.get()
    batch = len(ids) if isinstance(ids, Tensor) else ids[0]  # Pegasus passes the ids' shape
    shift = None if hook is None else hook.get_position_shift(batch)
    if shift is None:
        return forward(ids, *args, **kwargs)
    # The table takes one list of positions for all rows, so those of all rows are concatenated.
    positions = kwargs["position_ids"] + shift[:, None]
    embedded = forward(ids, *args, **kwargs | {"position_ids": positions.flatten()})
    return embedded.reshape(*positions.shape, -1)


def _run_layer(
    forward: Callable[..., Any],
    layer: Layer,
    states: Tensor,
    *args: Any,  # noqa: ANN401  # transformers' own arguments, passed on untouched
    **kwargs: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    pass_hook = get_attached_pass(kwargs)
    if pass_hook is None:
        return forward(states, *args, **kwargs)
    states, must_run = pass_hook.on_layer(layer.module, states)
    if must_run:
        with _checkpoint_in_pass(layer.module, pass_hook):
            return _run_in_pass(pass_hook, partial(forward, **kwargs), states, *args)
    if not layer.num_outputs:
        return states
    if not layer.has_extra_outputs:
        return (states, *[None] * (layer.num_outputs - 1))
    if not pass_hook.extra_outputs:
        with no_grad():
            _, *pass_hook.extra_outputs = forward(states, *args, **kwargs)
    return (states, *pass_hook.extra_outputs)


@contextmanager
def _checkpoint_in_pass(module: nn.Module, pass_hook: PassHook) -> Iterator[None]:
    """Keep the pass for a layer that gradient checkpointing runs again, when it has ended.

    transformers checkpoints what is inside `forward`, so no hook of the layer runs then.
    """
    name = "_gradient_checkpointing_func"
    checkpoint = vars(module).get(name)
    if checkpoint is None:
        yield
        return
    vars(module)[name] = lambda run, *args: checkpoint(partial(_run_in_pass, pass_hook, run), *args)
    try:
        yield
    finally:
        vars(module)[name] = checkpoint


def _run_in_pass(pass_hook: PassHook, run: Callable[..., Any], *args: Any) -> Any:  # noqa: ANN401
    token = _running.set(pass_hook)
    try:
        return run(*args)
    finally:
        _running.reset(token)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,  # noqa: ANN401  # transformers' own keyword arguments, passed on untouched
) -> tuple[Tensor, None]:
    pass_hook: PassHook | None = kwargs.pop(_KEYWORD, None) or _running.get()
    is_causal = kwargs.get("is_causal")
    call = AttentionCall(
        query,
        key,
        value,
        attention_mask,
        causal=bool(getattr(module, "is_causal", True) if is_causal is None else is_causal),
        bias=_find_bias(module, kwargs),
        window=kwargs.get("sliding_window"),
        scaling=kwargs.get("scaling"),
        selects_keys=any(kwargs.get(name) is not None for name in SELECTING_KEYWORDS),
    )
    if pass_hook is None:
        return run_kernel(module, call, options=kwargs), None
    return attend(module, pass_hook.attend(module, call), options=kwargs), None


def _find_bias(module: nn.Module, kwargs: Mapping[str, Any]) -> Tensor | None:
    """The bias of an attention call.

    Gradient checkpointing makes whatever a layer returns require a gradient, also the bias of T5
    and its kin, which depends on distances alone, so that a frozen one needs none.
    """
    bias: Tensor | None = kwargs.get("position_bias")
    is_by_distance = hasattr(module, "has_relative_attention_bias")
    if bias is None or not bias.requires_grad or not is_by_distance:
        return bias
    return bias if any(p.requires_grad for p in module.parameters()) else bias.detach()


for _name, _mask in ((NAME, sdpa_mask), (NAME_EAGER, eager_mask)):
    ALL_ATTENTION_FUNCTIONS.register(_name, _attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_name, _mask)


@dataclass
class Recorder:
    """A hook that changes nothing, and records attention calls or the input of a layer.

    Args:
        inner: another hook that is applied too; None for the bare model.
        until: the first layer that is skipped, and whose input is recorded; None to run all layers
            and record the attention calls.
    """

    inner: PromptHook | None = None
    until: int | None = None
    calls: list[tuple[nn.Module, AttentionCall]] = field(default_factory=list, init=False)
    layer_inputs: list[Tensor] = field(default_factory=list, init=False)

    def embed(self, ids: Tensor, table: Callable[[Tensor], Tensor]) -> Tensor:
        """Embed as the inner hook does."""
        return table(ids) if self.inner is None else self.inner.embed(ids, table)

    def replace_soft(self, ids: Tensor) -> Tensor:
        """Replace as the inner hook does."""
        return ids if self.inner is None else self.inner.replace_soft(ids)

    def get_position_shift(self, batch: int) -> Tensor | None:
        """Shift as the inner hook does."""
        return None if self.inner is None else self.inner.get_position_shift(batch)

    def begin_pass(self, positions: Tensor) -> PassHook:
        """Record one pass."""
        return _RecordedPass(self, None if self.inner is None else self.inner.begin_pass(positions))


class _RecordedPass:
    """One pass. Not a dataclass, because FSDP copies dataclasses among the arguments."""

    def __init__(self, recorder: Recorder, inner: PassHook | None) -> None:
        self.recorder, self.inner = recorder, inner
        self.extra_outputs: list[Any] = []
        self.layers_entered = 0

    def attend(self, module: nn.Module, attention: AttentionCall) -> AttentionCall:
        if self.recorder.until is None:
            self.recorder.calls.append((module, attention))
        return attention if self.inner is None else self.inner.attend(module, attention)

    def on_layer(self, block: nn.Module, states: Tensor) -> tuple[Tensor, bool]:
        number, until = self.layers_entered, self.recorder.until
        self.layers_entered += 1
        if number == until:
            self.recorder.layer_inputs.append(states)
        if until is not None and number >= until:
            return states, False
        return (states, True) if self.inner is None else self.inner.on_layer(block, states)
