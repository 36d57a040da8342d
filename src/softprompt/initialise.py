"""What a prompt is before its first step.

Never N(0, 1) and never the first rows of the vocabulary: both are common, and both are what makes
prompts "not converge" (Lester et al. 2021, Fig. 3b; `reference` in docs/explanation/initialise.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, assert_never

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softprompt.backbone.model import Backbone
from softprompt.errors import PromptError
from softprompt.injection.capture import capture
from softprompt.injection.check import check_layer
from softprompt.injection.kept import lines_of
from softprompt.prompt import InputPrompt, KVPrefix, Prompt, detached

Shape = Literal["input", "kv"]

_COMMON = 5000


@dataclass(frozen=True)
class FromVocabulary:
    """Rows of the table, sampled without replacement from its first 5,000 ids.

    Source: Lester et al. 2021, section 3.2 ("sampled vocabulary").
    """


@dataclass(frozen=True)
class FromLabels:
    """The mean embedding of each label's tokens, then sampled vocabulary.

    Source: Lester et al. 2021, section 3.2 ("class label").
    """

    words: tuple[str, ...]


@dataclass(frozen=True)
class FromText:
    """The tokens of a text, repeated or cut to the prompt's length; for a prefix, their keys and
    values (Li & Liang 2021, section 7.4; cartridges 2025).
    """  # noqa: D205  # one sentence

    text: str


@dataclass(frozen=True)
class FromRandom:
    """Normal noise at the scale of the embedding table; for a prefix, N(0, 0.02).

    Source: P-tuning v2's code for the prefix; the scale of real tokens for vectors.
    """


@dataclass(frozen=True, eq=False)
class FromPrompt:
    """Another trained prompt (SPoT, Vu et al. 2022): the same kind, length and shapes."""

    prompt: Prompt


Initial = FromVocabulary | FromLabels | FromText | FromRandom | FromPrompt


def initial_prompt(
    backbone: Backbone,
    initial: Initial,
    *,
    shape: Shape,
    length: int,
    layers: Sequence[int] = (),
    generator: torch.Generator,
) -> Prompt:
    """The prompt that training starts from, in fp32 on the CPU.

    Args:
        shape: vectors among the inputs, or keys and values.
        length: P.
        layers: the attention sites of a prefix, or the layers that see vectors; none for all.
        generator: on the CPU; the same seed gives the same prompt on every machine.

    Raises:
        PromptError: the text has no tokens, or the given prompt has another kind or shape.
    """
    layer = min(layers, default=0) if shape == "input" else 0
    check_layer(backbone.geometry, layer)
    match initial:
        case FromPrompt(prompt=prompt):
            return _given(prompt, shape, length, layers)
        case FromRandom() if shape == "kv":
            return _random_prefix(backbone, length, layers, generator)
        case FromRandom():
            return _random_vectors(backbone, length, layer, generator)
        case FromVocabulary():
            ids = _sampled(backbone, length, generator)
        case FromText(text=text):
            ids = _cycled(_tokens(backbone, text), length)
        case FromLabels(words=words) if shape == "input":
            made = _label_vectors(backbone, words, length, generator=generator, layer=layer)
            return InputPrompt(made, layer)
        case FromLabels(words=()):
            msg = (
                "keys and values cannot start from label words, as there are none. Add a "
                "verbalizer, or start from text or vocabulary."
            )
            raise PromptError(msg)
        case FromLabels(words=words):
            tokens = torch.cat([_tokens(backbone, word) for word in words])
            ids = _cycled(tokens, length)
        case _:
            assert_never(initial)
    if shape == "input":
        return InputPrompt(_vectors(backbone, ids, layer), layer)
    return _on_layers(capture(backbone, ids), layers)


def _given(prompt: Prompt, shape: Shape, length: int, layers: Sequence[int]) -> Prompt:
    kind: Shape = "input" if isinstance(prompt, InputPrompt) else "kv"
    if kind != shape or prompt.length != length:
        msg = (
            f"the artifact to start from is a {type(prompt).__name__} of {prompt.length} soft "
            f"tokens, but the method trains {'vectors' if shape == 'input' else 'keys and values'} "
            f"of {length}. Start from an artifact of the same kind and length."
        )
        raise PromptError(msg)
    if isinstance(prompt, KVPrefix):
        missing = sorted(set(layers) - set(prompt.layers))
        if missing:
            msg = (
                f"the artifact to start from has no keys and values on layers {missing}. Train on "
                f"its layers: {list(prompt.layers)}."
            )
            raise PromptError(msg)
        index = [prompt.layers.index(layer) for layer in layers]
        chosen = replace(
            prompt, keys=prompt.keys[index], values=prompt.values[index], layers=tuple(layers)
        )
        return detached(chosen)
    wanted = min(layers, default=0)
    if prompt.layer != wanted:
        msg = (
            f"the artifact to start from enters at layer {prompt.layer}, but the method's enters "
            f'at {wanted}. Set method.layers = "{prompt.layer}:", or "all" for layer 0.'
        )
        raise PromptError(msg)
    return detached(prompt)


def _vectors(backbone: Backbone, ids: Int[Tensor, " P"], layer: int) -> Float[Tensor, "P W"]:
    """Tokens as the input embeds them, or as a later layer is given them."""
    if not layer:
        return backbone.embed(ids).cpu()
    # One token goes first: models pour extreme values into the first state of any row.
    own = (backbone.tokenizer.bos_token_id, backbone.tokenizer.cls_token_id)
    first = next((token for token in own if token is not None), int(ids[0]))
    row = backbone.one_row(torch.cat([torch.tensor([first]), ids]))
    return lines_of(backbone, row, layer=layer, prompt=None)[0, 1:].float().cpu()


def _random_vectors(
    backbone: Backbone, length: int, layer: int, generator: torch.Generator
) -> InputPrompt:
    geometry = backbone.geometry
    scale, width = geometry.embedding_rms, geometry.embedding_size
    if layer:
        words = _vectors(backbone, _sampled(backbone, 32, generator), layer)
        scale, width = float(words.pow(2).mean().sqrt()), geometry.block_size
    noise = torch.randn(length, width, generator=generator)
    return InputPrompt(noise * scale, layer)


def _random_prefix(
    backbone: Backbone, length: int, layers: Sequence[int], generator: torch.Generator
) -> KVPrefix:
    size = (len(layers), backbone.geometry.heads, length, backbone.geometry.head_size)
    keys = torch.randn(size, generator=generator) * 0.02
    values = torch.randn(size, generator=generator) * 0.02
    return KVPrefix(keys, values, tuple(layers))


def _on_layers(prefix: KVPrefix, layers: Sequence[int]) -> KVPrefix:
    index = list(layers)
    return KVPrefix(prefix.keys[index].cpu(), prefix.values[index].cpu(), tuple(layers))


def _tokens(backbone: Backbone, text: str) -> Int[Tensor, " P"]:
    ids: list[int] = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        msg = f"the text to initialise from, {text!r}, has no tokens. Give at least one word."
        raise PromptError(msg)
    return torch.tensor(ids)


def _cycled(ids: Int[Tensor, " n"], length: int) -> Int[Tensor, " P"]:
    return ids.repeat(-(-length // len(ids)))[:length]


def _sampled(backbone: Backbone, length: int, generator: torch.Generator) -> Int[Tensor, " P"]:
    special = set(backbone.tokenizer.all_special_ids)
    # A table may have rows to spare behind the tokenizer's last token; they are no words.
    top = min(_COMMON, backbone.geometry.vocabulary, len(backbone.tokenizer))
    usual = torch.tensor([i for i in range(top) if i not in special])
    order = torch.randperm(len(usual), generator=generator)
    return _cycled(usual[order], length)


def _label_vectors(
    backbone: Backbone,
    words: Sequence[str],
    length: int,
    *,
    generator: torch.Generator,
    layer: int,
) -> Float[Tensor, "P W"]:
    tokens = [_tokens(backbone, word) for word in words][:length]
    means = [_vectors(backbone, ids, layer).mean(dim=0) for ids in tokens]
    rest = length - len(means)
    sampled = _vectors(backbone, _sampled(backbone, max(rest, 1), generator), layer)[:rest]
    return torch.cat([torch.stack(means), sampled]) if means else sampled
