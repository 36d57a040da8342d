"""Every attention call of a pass, told as it is with the prompt in it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from softprompt.backbone.attention import Attention
from softprompt.backbone.model import Backbone, Inputs
from softprompt.backbone.seam import Listener, Pass, listening
from softprompt.errors import PromptError
from softprompt.injection.run import assign, positions
from softprompt.prompt import Prompt

Told = Callable[[int, Attention], None]


@torch.no_grad()
def observe(backbone: Backbone, inputs: Inputs, *, prompt: Prompt, told: Told) -> None:
    """Run a backbone on rows with a prompt, and tell what attends to what.

    Args:
        inputs: of an encoder-decoder with what its decoder is fed.
        told: given the number of each attention site, in the order of their calls, and what it
            attends to: the prompt's keys before the row's own, the mask to match.

    Raises:
        PromptError: the backbone has an attention of its own, or the prompt does not fit it.
    """
    if not backbone.geometry.sites:
        msg = (
            f"{backbone.geometry.family} has an attention of its own, whose shares cannot be read. "
            "Look at the prompt's nearest words and at how far it moved instead."
        )
        raise PromptError(msg)
    given = assign(backbone, inputs, prompts=[prompt])
    where = positions(backbone, inputs, given=given)
    with listening(_Observer(given, told)):
        backbone.hidden(inputs, positions=where)


@dataclass
class _Observer:
    """A listener that changes what another one changes, and tells it."""

    below: Listener
    told: Told
    count: int = field(default=0, init=False)

    def embed(self, ids: Tensor, table: Callable[[Tensor], Tensor]) -> Tensor:
        return self.below.embed(ids, table)

    def moved(self, batch: int) -> Tensor | None:
        return self.below.moved(batch)

    def call(self, positions: Tensor) -> Pass:
        return _ObservedPass(self, self.below.call(positions))


@dataclass
class _ObservedPass:
    observer: _Observer
    below: Pass
    more: list[Any] = field(default_factory=list)

    def attend(self, module: nn.Module, attention: Attention) -> Attention:
        seen = self.below.attend(module, attention)
        self.observer.told(self.observer.count, seen)
        self.observer.count += 1
        return seen

    def enter(self, block: nn.Module, states: Tensor) -> tuple[Tensor, bool]:
        return self.below.enter(block, states)
