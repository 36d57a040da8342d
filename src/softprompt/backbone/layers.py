"""The parts of a model: its body below the head, and its layers, found by trial."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

_STATES_NDIM = 3  # [B, T, width]


def find_body(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a model below its head.

    It is the child that the family names as its base model; where that name is wrong (Llama 4),
    the child that holds the input embedding table.
    """
    body = cast("PreTrainedModel", model.base_model)
    if body is not model or model.config.is_encoder_decoder:
        return body
    table = model.get_input_embeddings()
    inner = [
        child
        for child in model.children()
        if isinstance(child, PreTrainedModel) and any(m is table for m in child.modules())
    ]
    return inner[0] if len(inner) == 1 else body


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer of a model.

    Args:
        module: its module.
        num_outputs: the number of outputs in the tuple that it returns; 0 if it returns a tensor.
        has_extra_outputs: whether one of them is more than hidden states and None; T5's layers
            return a position bias.
        width: the width of the hidden states.
    """

    module: nn.Module
    num_outputs: int
    has_extra_outputs: bool
    width: int


def find_layers(
    body: nn.Module, attentions: Sequence[nn.Module], *, run: Callable[[], object]
) -> list[Layer]:
    """Find the layer of each attention call, in order.

    A layer is the outermost module that is called once per attention call and turns hidden states
    into hidden states of the same shape.

    Args:
        body: the model without its head.
        attentions: the attention modules in the order of their calls.
        run: a function that runs the model once.

    Returns:
        The layers; an empty list if one of them cannot be determined.
    """
    # `modules` lists outer modules first.
    outer = {id(a): [m for m in body.modules() if _contains(m, a)] for a in attentions}
    candidates = {id(m): m for modules in outer.values() for m in modules}
    attention_calls = Counter(id(m) for a in attentions for m in outer[id(a)])
    calls: dict[int, list[tuple[int, bool, int]]] = defaultdict(list)
    hooks = [
        module.register_forward_hook(partial(_record_call, calls), with_kwargs=True)
        for module in candidates.values()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    layers = list[Layer]()
    for attention in attentions:
        matches = [m for m in outer[id(attention)] if len(calls[id(m)]) == attention_calls[id(m)]]
        if not matches:
            return []
        layers.append(Layer(matches[0], *calls[id(matches[0])][0]))
    return layers


def _contains(module: nn.Module, inner: nn.Module) -> bool:
    return module is not inner and any(m is inner for m in module.modules())


def _record_call(
    calls: dict[int, list[tuple[int, bool, int]]],
    module: nn.Module,
    args: tuple[Any, ...],
    _kwargs: object,
    output: object,
) -> None:
    """Record a call that turns hidden states into hidden states: its outputs, and the width."""
    count = len(output) if isinstance(output, tuple) else 0
    first, *rest = output if isinstance(output, tuple) else (output,)
    states = args[0] if args else None
    if not isinstance(first, Tensor) or not isinstance(states, Tensor):
        return
    if states.shape == first.shape and states.ndim == _STATES_NDIM:
        has_extra_outputs = any(other is not None for other in rest)
        calls[id(module)].append((count, has_extra_outputs, states.shape[-1]))
