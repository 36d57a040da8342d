"""A listener that changes nothing and keeps what it hears."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from softprompt.backbone.attention import Attention
from softprompt.backbone.seam import Listener, Pass


@dataclass
class Recorder:
    """A listener that changes nothing and keeps each attention call.

    Args:
        below: another listener that goes first; None for the bare model.
        until: the first block that is left out, what it is given being kept instead; None to run
            them all.
    """

    below: Listener | None = None
    until: int | None = None
    calls: list[tuple[nn.Module, Attention]] = field(default_factory=list, init=False)
    given: list[Tensor] = field(default_factory=list, init=False)

    def embed(self, ids: Tensor, table: Callable[[Tensor], Tensor]) -> Tensor:
        """Embed as the listener below does."""
        return table(ids) if self.below is None else self.below.embed(ids, table)

    def moved(self, batch: int) -> Tensor | None:
        """As the listener below moves them."""
        return None if self.below is None else self.below.moved(batch)

    def call(self, positions: Tensor) -> Pass:
        """Record one pass."""
        return _Recorded(self, None if self.below is None else self.below.call(positions))


class _Recorded:
    """One pass. No dataclass: FSDP makes copies of those that it finds among the arguments."""

    def __init__(self, recorder: Recorder, below: Pass | None) -> None:
        self.recorder, self.below = recorder, below
        self.more: list[Any] = []
        self.entered = 0

    def attend(self, module: nn.Module, attention: Attention) -> Attention:
        if self.recorder.until is None:
            self.recorder.calls.append((module, attention))
        return replace(attention) if self.below is None else self.below.attend(module, attention)

    def enter(self, block: nn.Module, states: Tensor) -> tuple[Tensor, bool]:
        number, until = self.entered, self.recorder.until
        self.entered += 1
        if number == until:
            self.recorder.given.append(states)
        if until is not None and number >= until:
            return states, False
        return (states, True) if self.below is None else self.below.enter(block, states)
