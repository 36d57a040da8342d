"""Text to tokens, so that no text from outside can become a special token.

A tokenizer recognises its special tokens (``[MASK]``, ``</s>``, ``<|im_start|>``) wherever their
strings stand. That is wanted in a template and never in a row.
"""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, cast

from tokenizers.pre_tokenizers import Metaspace, PreTokenizer, Sequence
from transformers import PreTrainedTokenizerBase


class Token(NamedTuple):
    """One token of a text and the characters that it stands for, ``start`` to before ``end``."""

    id: int
    start: int
    end: int

    def moved(self, by: int) -> "Token":
        """The same token in a longer text."""
        return Token(self.id, self.start + by, self.end + by)


@dataclass(frozen=True)
class Special:
    """A special token and whether it swallows the whitespace beside it."""

    id: int
    left: bool
    right: bool


@dataclass(frozen=True, eq=False)
class Encoder:
    """A tokenizer in the three forms that are needed; make one with :func:`encoder`.

    Args:
        head: for text at the beginning of a sequence.
        inner: for text behind a special token. Differs for tokenizers (Llama's) that mark the
            beginning of a sequence as they mark the beginning of a word.
        tail: for the rest of a word: never marks a beginning.
        specials: special tokens by their string.
        forbidden: ids that no text may become.
    """

    head: PreTrainedTokenizerBase
    inner: PreTrainedTokenizerBase
    tail: PreTrainedTokenizerBase
    specials: Mapping[str, Special]
    forbidden: frozenset[int]

    def encode(self, text: str, *, first: bool) -> list[Token]:
        """Tokenise a text that stands at the beginning of its sequence (``first``) or behind."""
        return list(_safe(self, text, tokenizer=self.head if first else self.inner, shift=0))


def encoder(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """Prepare a tokenizer.

    Args:
        tokenizer: a fast tokenizer; it is not changed.

    Returns:
        The encoder.
    """
    special = {
        token.content: Special(index, left=token.lstrip, right=token.rstrip)
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special or token.content in tokenizer.all_special_tokens
    }
    tail, schemes = _unmarked(tokenizer)
    return Encoder(
        head=tokenizer,
        inner=tail if "first" in schemes else tokenizer,
        tail=tail,
        specials=special,
        # The unknown token is what a text may well become.
        forbidden=frozenset(s.id for s in special.values()) - {tokenizer.unk_token_id},
    )


def _unmarked(tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedTokenizerBase, set[str]]:
    """The tokenizer without its mark for a beginning, and how it used to set that mark."""
    if not any(_metaspaces(tokenizer)):
        return tokenizer, set()
    twin = deepcopy(tokenizer)
    found = list(_metaspaces(twin))
    schemes = {part.prepend_scheme for part in found}
    for part in found:
        part.prepend_scheme = "never"
    return twin, schemes


def _metaspaces(tokenizer: PreTrainedTokenizerBase) -> Iterator[Metaspace]:
    outer: PreTokenizer | None = tokenizer.backend_tokenizer.pre_tokenizer
    match outer:
        case Metaspace():
            yield outer
        case Sequence():
            # It can be iterated over, though its type stub does not say so.
            parts = cast("Iterable[PreTokenizer]", outer)
            yield from (part for part in parts if isinstance(part, Metaspace))
        case _:
            return


def _safe(
    encoder: Encoder, text: str, *, tokenizer: PreTrainedTokenizerBase, shift: int
) -> Iterator[Token]:
    """Tokens of a text, with offsets moved up by ``shift``, none of them forbidden.

    ``split_special_tokens`` keeps the tokenizer from looking for special strings. A Unigram model
    (T5's) may still find ``</s>``, an ordinary entry of its vocabulary: such a piece is cut in two
    and tokenised again.
    """
    if not text:
        return
    found = tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    offsets = found["offset_mapping"]
    tokens = [Token(i, a, b) for i, (a, b) in zip(found["input_ids"], offsets, strict=True)]
    bad = [token for token in tokens if token.id in encoder.forbidden]
    cuts = [token.start + 1 for token in bad if token.end - token.start > 1]
    if not cuts:
        # One character that is a special token by itself can only be left out.
        kept = [token for token in tokens if token not in bad] if bad else tokens
        yield from (token.moved(shift) for token in kept) if shift else kept
        return
    borders = [0, *cuts, len(text)]
    for number, (start, end) in enumerate(pairwise(borders)):
        part = tokenizer if number == 0 else encoder.tail
        yield from _safe(encoder, text[start:end], tokenizer=part, shift=shift + start)
