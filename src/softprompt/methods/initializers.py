"""Initialization: the prompt before its first training step.

N(0, 1) and the first rows of the vocabulary are deliberately not offered: both are common, and
with both, prompts often do not converge (Lester et al. 2021, Fig. 3b; see
docs/explanation/initialization.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, assert_never

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softprompt.backbone.model import Backbone
from softprompt.data.tokenizer import check_ids, make_text_encoder
from softprompt.errors import PromptError
from softprompt.injection.capture import capture_keys_and_values
from softprompt.injection.compatibility import check_layer_exists
from softprompt.injection.site_shapes import clear_unread
from softprompt.injection.state_cache import compute_states
from softprompt.prompt import InputPrompt, KVPrefix, Prompt, detach_copy, to

PromptKind = Literal["input", "kv"]

_COMMON_IDS = 5000


@dataclass(frozen=True)
class FromVocabulary:
    """Embeddings of tokens, sampled without replacement from the first 5,000 of the vocabulary.

    Source: Lester et al. 2021, section 3.2 ("sampled vocabulary").

    Examples:
        >>> FromVocabulary()
        FromVocabulary()
    """


@dataclass(frozen=True)
class FromLabels:
    """The mean embedding of each label word's tokens; further soft tokens as `FromVocabulary`.

    Source: Lester et al. 2021, section 3.2 ("class label").

    Args:
        words: the label words, with the space before them, if any.

    Examples:
        >>> FromLabels((" bad", " good")).words
        (' bad', ' good')
    """

    words: tuple[str, ...]


@dataclass(frozen=True)
class FromText:
    """The embeddings of a text's tokens, repeated or truncated to the prompt's length.

    A prefix gets the keys and values of these tokens.

    Source: Li & Liang 2021, section 7.4, for prefixes; also Cartridges, 2025.

    Args:
        text: at least one word.

    Examples:
        >>> FromText("Classify the review by its sentiment.").text
        'Classify the review by its sentiment.'
    """

    text: str


@dataclass(frozen=True)
class FromRandom:
    """Normal noise with the root mean square of the embedding table; for a prefix, N(0, 0.02).

    Source: P-tuning v2's code, for prefixes.

    Examples:
        >>> FromRandom()
        FromRandom()
    """


@dataclass(frozen=True, eq=False)
class FromPrompt:
    """Another trained prompt, of the same kind, length and shapes.

    Source: Vu et al. 2022 (SPoT).

    Args:
        prompt: the prompt to start from.

    Examples:
        >>> from softprompt.prompt import InputPrompt
        >>> FromPrompt(InputPrompt(torch.zeros(10, 64))).prompt.length
        10
    """

    prompt: Prompt


@dataclass(frozen=True)
class FromDemonstrations:
    """The keys and values of labeled training rows, for a prefix on a causal backbone.

    The prompt starts as the hard prompt with these rows as its examples, and is as long as they
    are; the method's own length is not used. In training, the soft tokens that were made of a row
    are hidden from it, unless there are fewer than four rows.

    Source: Lu et al. 2025 ("Context Tuning for In-Context Optimization", CT-KV).

    Args:
        rows: the number of rows, balanced by label. None: 16, or as many as there are and fit.

    Examples:
        >>> FromDemonstrations(rows=8).rows
        8
    """

    rows: int | None = None


Initializer = FromVocabulary | FromLabels | FromText | FromRandom | FromPrompt | FromDemonstrations


def initialize_prompt(
    backbone: Backbone,
    init: Initializer,
    *,
    kind: PromptKind,
    length: int,
    layers: Sequence[int] = (),
    generator: torch.Generator,
) -> Prompt:
    """Make the initial prompt, in fp32 on the CPU.

    Args:
        backbone: the backbone to train on.
        init: the initialization.
        kind: ``input`` for vectors among the input embeddings, ``kv`` for keys and values.
        length: P, the number of soft tokens.
        layers: the attention sites of a prefix, or the layers that see vectors; empty for all of
            the latter.
        generator: a generator on the CPU; the same seed gives the same prompt on every machine.

    Raises:
        PromptError: the text has no tokens, the prompt to start from has another kind or shape, or
            the rows to start from are not known here.
        TemplateError: the tokenizer makes an id that the embedding table does not have.
    """
    layer = min(layers, default=0) if kind == "input" else 0
    check_layer_exists(backbone.geometry, layer)
    match init:
        case FromDemonstrations():
            msg = (
                "a prompt starts from demonstrations only in a run, which has the rows. Use fit, "
                "setup_run or a recipe; or give the tokens' keys and values with FromPrompt."
            )
            raise PromptError(msg)
        case FromPrompt(prompt=prompt):
            return _adapt_prompt(prompt, kind, length, layers)
        case FromRandom() if kind == "kv":
            return _draw_prefix(backbone, length, layers, generator)
        case FromRandom():
            return _draw_vectors(backbone, length, layer, generator)
        case FromVocabulary():
            ids = _sample_ids(backbone, length, generator)
        case FromText(text=text):
            ids = _repeat(_tokenize(backbone, text), length)
        case FromLabels(words=words) if kind == "input":
            vectors = _embed_labels(backbone, words, length, generator=generator, layer=layer)
            return InputPrompt(vectors, layer)
        case FromLabels(words=words):
            ids = _repeat(_join_words(backbone, words), length)
        case _:
            assert_never(init)
    if kind == "input":
        return InputPrompt(_embed(backbone, ids, layer), layer)
    return _select_layers(capture_keys_and_values(backbone, ids), layers)


def _adapt_prompt(prompt: Prompt, kind: PromptKind, length: int, layers: Sequence[int]) -> Prompt:
    """Copy a prompt, with the wanted layers only."""
    names: dict[PromptKind, str] = {"input": "vectors", "kv": "keys and values"}
    actual: PromptKind = "input" if isinstance(prompt, InputPrompt) else "kv"
    if actual != kind or prompt.length != length:
        remedy = "Start from a prompt of the same kind."
        if actual == kind and prompt.length:
            where = "write {{soft:{0}}} in the template" if kind == "input" else "set length = {0}"
            remedy = (
                f"A prompt is not cut or repeated, since its soft tokens were trained together: "
                f"{where.format(prompt.length)}, or start from a prompt of {length}."
            )
        msg = (
            f"the prompt to start from consists of {names[actual]} of {prompt.length} soft tokens, "
            f"but the method trains {names[kind]} of {length}. {remedy}"
        )
        raise PromptError(msg)
    if isinstance(prompt, KVPrefix):
        missing = sorted(set(layers) - set(prompt.sites))
        if missing:
            msg = (
                f"the prompt to start from has no keys and values on layers {missing}. Train on "
                f"its layers: {list(prompt.sites)}."
            )
            raise PromptError(msg)
        index = [prompt.sites.index(layer) for layer in layers]
        selected = replace(
            prompt, keys=prompt.keys[index], values=prompt.values[index], sites=tuple(layers)
        )
        return _copy_in_fp32(selected)
    expected = min(layers, default=0)
    if prompt.start_layer != expected:
        same = f"{prompt.start_layer}:" if prompt.start_layer else "all"
        msg = (
            f"the prompt to start from enters at layer {prompt.start_layer}, but the method's "
            f'prompt enters at layer {expected}. Set layers = "{same}" for the method.'
        )
        raise PromptError(msg)
    return _copy_in_fp32(prompt)


def _copy_in_fp32(prompt: Prompt) -> Prompt:
    """A copy on the CPU; an artifact may hold 16 bits, and a prompt may be on another device."""
    return to(detach_copy(prompt), dtype=torch.float32, device="cpu")


def _embed(backbone: Backbone, ids: Int[Tensor, " P"], layer: int) -> Float[Tensor, "P W"]:
    """The input embeddings of tokens, or their hidden states at a later layer."""
    if not layer:
        return backbone.embed(ids).cpu()
    # One more token comes first, because models have extreme values in the first state of a row.
    options = (backbone.tokenizer.bos_token_id, backbone.tokenizer.cls_token_id)
    first = next((token for token in options if token is not None), int(ids[0]))
    row = backbone.make_single_row(torch.cat([torch.tensor([first]), ids]))
    return compute_states(backbone, row, layer=layer, prompt=None)[0, 1:].float().cpu()


def _draw_vectors(
    backbone: Backbone, length: int, layer: int, generator: torch.Generator
) -> InputPrompt:
    geometry = backbone.geometry
    scale, width = geometry.embedding_rms, geometry.embedding_size
    if layer:
        states = _embed(backbone, _sample_ids(backbone, 32, generator), layer)
        scale, width = float(states.pow(2).mean().sqrt()), geometry.layer_width
    noise = torch.randn(length, width, generator=generator)
    return InputPrompt(noise * scale, layer)


def _draw_prefix(
    backbone: Backbone, length: int, layers: Sequence[int], generator: torch.Generator
) -> KVPrefix:
    shape = (len(layers), backbone.geometry.num_kv_heads, length, backbone.geometry.head_dim)
    keys = torch.randn(shape, generator=generator) * 0.02
    values = torch.randn(shape, generator=generator) * 0.02
    return clear_unread(backbone.geometry, KVPrefix(keys, values, tuple(layers)))


def _select_layers(prefix: KVPrefix, layers: Sequence[int]) -> KVPrefix:
    index = list(layers)
    return KVPrefix(prefix.keys[index].cpu(), prefix.values[index].cpu(), tuple(layers))


def _tokenize(backbone: Backbone, text: str) -> Int[Tensor, " P"]:
    """The ids of the recipe's text, in which special tokens may be written, as in a template."""
    ids: list[int] = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
    return _check_tokens(backbone, text, ids)


def _tokenize_words(backbone: Backbone, words: Sequence[str]) -> list[Int[Tensor, " n"]]:
    """The ids of each label word; labels are from the data, so none becomes a special token."""
    encoder = make_text_encoder(backbone.tokenizer, vocab_size=backbone.geometry.vocab_size)
    return [_check_tokens(backbone, word, encoder.encode(word)) for word in words]


def _join_words(backbone: Backbone, words: Sequence[str]) -> Int[Tensor, " n"]:
    """The ids of all label words, one after the other.

    Raises:
        PromptError: there are none.
    """
    if not words:
        msg = (
            "keys and values cannot be initialized from label words, as there are none. Add a "
            "verbalizer, or choose text or vocabulary."
        )
        raise PromptError(msg)
    return torch.cat(_tokenize_words(backbone, words))


def _check_tokens(backbone: Backbone, text: str, ids: Sequence[int]) -> Int[Tensor, " P"]:
    if not ids:
        msg = f"the text to initialize from, {text!r}, has no tokens. Give at least one word."
        raise PromptError(msg)
    check_ids(ids, vocab_size=backbone.geometry.vocab_size)
    return torch.tensor(ids)


def _repeat(ids: Int[Tensor, " n"], length: int) -> Int[Tensor, " P"]:
    return ids.repeat(-(-length // len(ids)))[:length]


def _sample_ids(backbone: Backbone, length: int, generator: torch.Generator) -> Int[Tensor, " P"]:
    special = set(backbone.tokenizer.all_special_ids)
    # An embedding table may have more rows than the tokenizer has tokens.
    count = min(_COMMON_IDS, backbone.geometry.vocab_size, len(backbone.tokenizer))
    candidates = torch.tensor([i for i in range(count) if i not in special])
    order = torch.randperm(len(candidates), generator=generator)
    return _repeat(candidates[order], length)


def _embed_labels(
    backbone: Backbone,
    words: Sequence[str],
    length: int,
    *,
    generator: torch.Generator,
    layer: int,
) -> Float[Tensor, "P W"]:
    tokens = _tokenize_words(backbone, words)[:length]
    means = [_embed(backbone, ids, layer).mean(dim=0) for ids in tokens]
    rest = length - len(means)
    sampled = _embed(backbone, _sample_ids(backbone, max(rest, 1), generator), layer)[:rest]
    return torch.cat([torch.stack(means), sampled]) if means else sampled
