"""Rendered rows as numbers, which a cache on disk holds."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from softprompt._memory import pause_garbage_collection
from softprompt.data.rendering import RenderedRow
from softprompt.data.words import WordStates
from softprompt.tasks import Example
from softprompt.tasks.objectives import TargetValue

# Part of the cache's key. Increase it whenever the rendering of rows changes.
PACKING = "6"
# The forms of targets.
_INDEX, _INDICES, _NUMBERS = range(3)


def pack_examples(examples: Iterable[Example]) -> Int[Tensor, "S 1"]:
    """Convert examples to one column of numbers.

    Of each example: the number of its variants; of each variant, whether it is truncated and four
    lists; the form of the target, and the target; the words, if a task reads them. A list is its
    length and its values; a number of a regression is the two halves of its 64 bits. Then the text
    that a prediction is a part of, as the number of its bytes and these in groups of four, and the
    characters of its tokens. Last the number of options, the text of each, the number of those that
    have tokens, and their tokens.
    """
    numbers = array("i")  # of 32 bits each; a list of as many integers takes several times that
    tails: dict[tuple[tuple[int, ...], ...], array[int]] = {}
    for example in examples:
        numbers.append(len(example.variants))
        for variant, positions in zip(example.variants, example.read_positions, strict=True):
            numbers.extend((variant.truncated, len(variant.input_ids), *variant.input_ids))
            # All but the ids is the same for rows of the same lengths.
            lists = (variant.token_type_ids, variant.mask_positions, positions)
            if lists not in tails:
                tails[lists] = array("i", [n for part in lists for n in (len(part), *part)])
            numbers.extend(tails[lists])
        numbers.extend(_pack_target(example.target))
        numbers.extend(_pack_words(example.words))
        numbers.extend(_pack_text(example.text))
        numbers.append(2 * len(example.characters))
        numbers.extend(chain.from_iterable(example.characters))
        numbers.extend(_pack_options(example))
    return torch.from_numpy(np.array(numbers, dtype=np.int32))[:, None]


def _pack_target(target: TargetValue | None) -> Sequence[int]:
    """The form of a target, and its list."""
    if not isinstance(target, tuple):
        return (_INDEX, 1, target or 0)
    if any(isinstance(value, float) for value in target):
        halves = np.array(target, dtype=np.float64).view(np.int32).tolist()
        return (_NUMBERS, len(halves), *halves)
    return (_INDICES, len(target), *map(int, target))


def _pack_text(text: str) -> Sequence[int]:
    """The number of its bytes, and the list of these in groups of four."""
    content = text.encode()
    groups = np.frombuffer(content + b"\0" * (-len(content) % 4), dtype=np.int32).tolist()
    return (len(content), len(groups), *groups)


def _pack_options(example: Example) -> Iterator[int]:
    """The number of options, the text of each, and the same of their tokens."""
    yield len(example.options)
    for text in example.options:
        yield from _pack_text(text)
    yield len(example.option_ids)
    for ids in example.option_ids:
        yield len(ids)
        yield from ids


def _unpack_text(length: int, groups: tuple[int, ...]) -> str:
    return np.array(groups, dtype=np.int32).tobytes()[:length].decode()


def _unpack_target(form: int, values: tuple[int, ...]) -> TargetValue:
    if form == _INDEX:
        return values[0]
    if form == _INDICES:
        return values
    return tuple(np.array(values, dtype=np.int32).view(np.float64).tolist())


def _pack_words(words: WordStates | None) -> Iterator[int]:
    """The number of words, 0 without any; the text, and the lists of words and tokens."""
    if words is None:
        yield -1
        return
    yield len(words.words)
    for part in (
        [*map(ord, words.text)],
        [*chain.from_iterable(words.words)],
        [*chain.from_iterable(words.tokens)],
        *words.pieces,
    ):
        yield len(part)
        yield from part


def _unpack_words(count: int, take: Callable[[], tuple[int, ...]]) -> WordStates | None:
    if count < 0:
        return None
    text, words, tokens = "".join(map(chr, take())), take(), take()
    pieces = tuple(take() for _ in range(count))
    return WordStates(text, _pair_up(words), pieces, _pair_up(tokens))


def _pair_up(numbers: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def unpack_examples(packed: Int[Tensor, "S 1"]) -> list[Example]:
    """Convert packed numbers back to examples."""
    stream = iter(packed.flatten().tolist())

    def take() -> tuple[int, ...]:
        return tuple(islice(stream, next(stream)))

    def unpack(count: int) -> Example:
        variants, positions = [], []
        for _ in range(count):
            truncated = bool(next(stream))
            variants.append(RenderedRow(take(), take(), take(), truncated))
            positions.append(take())
        target, words = _unpack_target(next(stream), take()), _unpack_words(next(stream), take)
        text, ends = _unpack_text(next(stream), take()), iter(take())
        options = tuple(_unpack_text(next(stream), take()) for _ in range(next(stream)))
        option_ids = tuple(take() for _ in range(next(stream)))
        return Example(
            tuple(variants),
            tuple(positions),
            target,
            words=words,
            text=text,
            characters=tuple(zip(ends, ends, strict=True)),
            options=options,
            option_ids=option_ids,
        )

    with pause_garbage_collection():
        return [unpack(count) for count in stream]
