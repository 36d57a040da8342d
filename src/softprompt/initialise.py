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
        layers: the attention sites of a prefix.
        generator: on the CPU; the same seed gives the same prompt on every machine.

    Raises:
        PromptError: the text has no tokens, or the given prompt has another kind or shape.
    """
    match initial:
        case FromPrompt(prompt=prompt):
            return _given(prompt, shape, length, layers)
        case FromRandom() if shape == "kv":
            return _random_prefix(backbone, length, layers, generator)
        case FromRandom():
            size = (length, backbone.geometry.embedding_size)
            noise = torch.randn(size, generator=generator) * backbone.geometry.embedding_rms
            return InputPrompt(noise)
        case FromVocabulary():
            ids = _sampled(backbone, length, generator)
        case FromText(text=text):
            ids = _cycled(_tokens(backbone, text), length)
        case FromLabels(words=words) if shape == "input":
            return InputPrompt(_label_vectors(backbone, words, length, generator))
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
        return InputPrompt(backbone.embed(ids).cpu())
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
    return detached(prompt)


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
    backbone: Backbone, words: Sequence[str], length: int, generator: torch.Generator
) -> Float[Tensor, "P E"]:
    means = [backbone.embed(_tokens(backbone, word)).mean(dim=0).cpu() for word in words][:length]
    rest = length - len(means)
    sampled = backbone.embed(_sampled(backbone, max(rest, 1), generator)).cpu()[:rest]
    return torch.cat([torch.stack(means), sampled]) if means else sampled
