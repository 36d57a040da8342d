"""The layers of a model, found by what they do: one attention, states in, states out."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

_STATES = 3  # axes


@dataclass(frozen=True, eq=False)
class Block:
    """A layer.

    Args:
        module: what is called.
        more: whether it hands more on than states; T5's hand on their position bias.
        width: of the states.
    """

    module: nn.Module
    more: bool
    width: int


def find_blocks(
    body: nn.Module, attentions: Sequence[nn.Module], *, run: Callable[[], object]
) -> list[Block]:
    """For each attention call, in order, the layer that it is made in.

    A layer is the outermost module that is called once for each of these calls and turns hidden
    states into hidden states of the same shape.

    Args:
        body: what the layers are in.
        attentions: the attention modules in the order of their calls.
        run: runs the model once.

    Returns:
        The layers; none at all if one cannot be told.
    """
    within = {id(a): [m for m in body.modules() if _holds(m, a)] for a in attentions}
    outer = {id(m): m for modules in within.values() for m in modules}
    attended = Counter(id(m) for a in attentions for m in within[id(a)])
    seen: dict[int, list[tuple[bool, int]]] = defaultdict(list)
    hooks = [
        module.register_forward_hook(partial(_note, seen), with_kwargs=True)
        for module in outer.values()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for attention in attentions:
        # `modules` goes from the outside in.
        layers = [m for m in within[id(attention)] if len(seen[id(m)]) == attended[id(m)]]
        if not layers:
            return []
        more, width = seen[id(layers[0])][0]
        found.append(Block(layers[0], more=more, width=width))
    return found


def _holds(module: nn.Module, inner: nn.Module) -> bool:
    return module is not inner and any(m is inner for m in module.modules())


def _note(
    seen: dict[int, list[tuple[bool, int]]],
    module: nn.Module,
    args: tuple[Any, ...],
    _kwargs: object,
    output: object,
) -> None:
    """Note a call that turns states into states."""
    first, *rest = output if isinstance(output, tuple) else (output,)
    given = args[0] if args else None
    if not isinstance(first, Tensor) or not isinstance(given, Tensor):
        return
    if given.shape == first.shape and given.ndim == _STATES:
        seen[id(module)].append((bool(rest), given.shape[-1]))
