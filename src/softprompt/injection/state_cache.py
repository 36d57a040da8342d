"""Hidden states that no prompt changes: computed once, and looked up by the rows' tokens."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softprompt.backbone.hooks import Recorder, use_hook
from softprompt.backbone.model import Backbone, BatchInputs
from softprompt.backbone.sharding import prefetch_last_layer
from softprompt.injection.forward import assign_prompts, compute_position_ids
from softprompt.injection.site_shapes import pad_to_prefix
from softprompt.prompt import InputPrompt, KVPrefix, Prompt


@dataclass(frozen=True, eq=False)
class CachedStates:
    """States of many rows, one vector per token.

    Args:
        layer: the layer whose input the states are; the number of layers for an encoder's output;
            None for the keys and values of all attention sites.
        spans: the first vector and the number of vectors of each row, by :func:`compute_row_key`.
        states: the vectors of all rows, concatenated; they may be in a memory-mapped file.
    """

    layer: int | None
    spans: Mapping[bytes, tuple[int, int]]
    states: Float[Tensor, "S W"]

    def find(self, keys: Sequence[bytes], *, device: torch.device) -> Tensor | None:
        """The states of these rows ``[B, T, W]``, padded with zeros on the right.

        None if a row is not in the cache.
        """
        if not all(key in self.spans for key in keys):
            return None
        spans = [self.spans[key] for key in keys]
        longest = max(count for _, count in spans)
        padded = self.states.new_zeros(len(keys), longest, self.states.shape[1])
        for row, (begin, count) in zip(padded, spans, strict=True):
            row[:count] = self.states[begin : begin + count]
        return padded.to(device)


def compute_row_key(ids: Sequence[int], types: Sequence[int] = ()) -> bytes:
    """The key of a row: a hash of its tokens and their types."""
    text = array("q", ids).tobytes() + b"|" + array("q", types).tobytes()
    return blake2b(text, digest_size=16).digest()


def find_first_affected_layer(prompt: Prompt | None) -> int | None:
    """The first layer at which a prompt has an effect; None without a prompt."""
    match prompt:
        case None:
            return None
        case InputPrompt(start_layer=layer):
            return layer
        case KVPrefix():
            return 0 if prompt.shift_positions else min(prompt.sites)


def get_state_width(backbone: Backbone, layer: int | None) -> int:
    """The number of values per token, W."""
    geometry = backbone.geometry
    if layer is None:
        return geometry.num_attention_sites * 2 * geometry.num_kv_heads * geometry.head_dim
    return geometry.layer_width


@torch.no_grad()
def compute_states(
    backbone: Backbone, inputs: BatchInputs, *, layer: int | None, prompt: Prompt | None
) -> Float[Tensor, "B T W"]:
    """Compute the states of rows, as `CachedStates` stores them.

    Args:
        backbone: the backbone.
        inputs: the rows.
        layer: the layer whose input to compute; the number of layers for an encoder's output; None
            for the keys and values of all attention sites.
        prompt: the prompt of the rows' soft tokens, none of which enters before ``layer``.
    """
    if layer is None:
        pairs = compute_keys_and_values(backbone, inputs, prompts=[prompt])
        whole = [[pad_to_prefix(backbone.geometry, t) for t in pair] for pair in pairs]
        stacked = torch.stack([torch.stack(pair, dim=1) for pair in whole], dim=1)
        # [B, L, 2, N, T, D] to [B, T, L, 2, N, D]
        return stacked.permute(0, 4, 1, 2, 3, 5).flatten(2)
    hook = assign_prompts(backbone, inputs, prompts=[prompt])
    if layer == backbone.geometry.num_layers:
        with use_hook(hook):
            return backbone.encode(inputs)
    recorder = Recorder(inner=hook, until=layer)
    positions = compute_position_ids(backbone, inputs, hook=hook)
    with use_hook(recorder):
        if backbone.geometry.architecture == "encoder-decoder":
            backbone.encode(inputs)
        else:
            backbone.compute_hidden_states(inputs, positions=positions)
    return recorder.layer_inputs[0]


def compute_keys_and_values(
    backbone: Backbone,
    inputs: BatchInputs,
    *,
    prompts: Sequence[Prompt | None] = (None,),
    rows: Int[Tensor, " B"] | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Compute the keys and values ``[B, N, T, D]`` at every attention site, with their graph."""
    hook = assign_prompts(backbone, inputs, prompts=prompts, rows=rows)
    recorder = Recorder(inner=hook)
    with use_hook(recorder):
        backbone.compute_hidden_states(
            inputs, positions=compute_position_ids(backbone, inputs, hook=hook)
        )
    pairs = [(call.key, call.value) for _, call in recorder.calls]
    prefetch_last_layer(backbone, pairs[-1])
    return pairs
