"""States that no prompt reaches: computed once, and found again by the rows' own tokens."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.backbone.model import Backbone, Inputs
from softprompt.backbone.record import Recorder
from softprompt.backbone.seam import listening
from softprompt.backbone.shard import fetch_for
from softprompt.injection.run import assign, positions
from softprompt.prompt import InputPrompt, KVPrefix, Prompt


@dataclass(frozen=True, eq=False)
class Kept:
    """States of many rows, one line a token.

    Args:
        layer: whose input they are; as many as there are layers for an encoder's output; None for
            the keys and values of all attention sites.
        places: where the lines of a row begin and how many there are, by :func:`key_of`.
        lines: may lie in a memory-mapped file.
    """

    layer: int | None
    places: Mapping[bytes, tuple[int, int]]
    lines: Float[Tensor, "S W"]

    def find(self, keys: Sequence[bytes], *, device: torch.device) -> Tensor | None:
        """The lines of these rows ``[B, T, W]``, padded with zeros on the right.

        None if some row is not among them.
        """
        if not all(key in self.places for key in keys):
            return None
        places = [self.places[key] for key in keys]
        width = max(count for _, count in places)
        found = self.lines.new_zeros(len(keys), width, self.lines.shape[1])
        for row, (begin, count) in zip(found, places, strict=True):
            row[:count] = self.lines[begin : begin + count]
        return found.to(device)


def key_of(ids: Sequence[int], types: Sequence[int] = ()) -> bytes:
    """What a row is found by: a hash of its tokens and their types."""
    text = array("q", ids).tobytes() + b"|" + array("q", types).tobytes()
    return blake2b(text, digest_size=16).digest()


def first_layer(prompt: Prompt | None) -> int | None:
    """The first layer at which a prompt has any effect; None if there is none."""
    match prompt:
        case None:
            return None
        case InputPrompt(layer=layer):
            return layer
        case KVPrefix():
            return 0 if prompt.shifted else min(prompt.layers)


def width_of(backbone: Backbone, layer: int | None) -> int:
    """How many numbers there are in a line."""
    geometry = backbone.geometry
    if layer is None:
        return geometry.sites * 2 * geometry.heads * geometry.head_size
    return geometry.block_size


@torch.no_grad()
def lines_of(
    backbone: Backbone, inputs: Inputs, *, layer: int | None, prompt: Prompt | None
) -> Float[Tensor, "B T W"]:
    """The lines of rows, computed.

    Args:
        prompt: whose soft tokens the rows have, though none enters before ``layer``.
    """
    if layer is None:
        found = keys_and_values(backbone, inputs, prompt=prompt)
        pairs = [torch.stack(pair, dim=1) for pair in found]
        # [B, L, 2, N, T, D] to [B, T, L, 2, N, D]
        return torch.stack(pairs, dim=1).permute(0, 4, 1, 2, 3, 5).flatten(2)
    given = assign(backbone, inputs, prompts=[prompt])
    if layer == backbone.geometry.blocks:
        with listening(given):
            return backbone.encode(inputs)
    recorder = Recorder(below=given, until=layer)
    where = positions(backbone, inputs, given=given)
    with listening(recorder):
        if backbone.geometry.kind == "encoder-decoder":
            backbone.encode(inputs)
        else:
            backbone.hidden(inputs, positions=where)
    return recorder.given[0]


def keys_and_values(
    backbone: Backbone, inputs: Inputs, *, prompt: Prompt | None = None
) -> list[tuple[Tensor, Tensor]]:
    """The keys and values ``[B, N, T, D]`` at every attention site, with their graph, if any."""
    given = assign(backbone, inputs, prompts=[prompt])
    recorder = Recorder(below=given)
    with listening(recorder):
        backbone.hidden(inputs, positions=positions(backbone, inputs, given=given))
    found = [(seen.key, seen.value) for _, seen in recorder.calls]
    fetch_for(backbone, found[-1])
    return found
