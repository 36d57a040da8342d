"""A tokenizer for which no text becomes a special token, and the special tokens of a row."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from threading import RLock
from typing import NamedTuple, cast
from weakref import WeakValueDictionary

from tokenizers import normalizers, pre_tokenizers
from tokenizers.normalizers import Normalizer, Prepend
from tokenizers.pre_tokenizers import Metaspace, PreTokenizer
from transformers import BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from softprompt.errors import DataError, TemplateError

# Held while a tokenizer is used: rows may be tokenised in two threads, and no tokenizer can be set
# up in one while it runs in another. There is one lock, since its forms are partly the same.
_USE = RLock()


class Token(NamedTuple):
    """One token of a text, with its characters ``[start, end)``."""

    id: int
    start: int
    end: int

    def shift(self, by: int) -> "Token":
        """The same token, with offsets increased by ``by``."""
        return Token(self.id, self.start + by, self.end + by)


@dataclass(frozen=True)
class Special:
    """A special token.

    Args:
        id: its id.
        lstrip: whether the tokenizer removes whitespace at the end of the text before it.
        rstrip: whether it removes whitespace at the beginning of the text after it.
    """

    id: int
    lstrip: bool
    rstrip: bool


@dataclass(frozen=True, eq=False)
class SafeTokenizer:
    """A tokenizer in four forms; made by :func:`make_safe_tokenizer`.

    Args:
        head: for text at the beginning of a sequence.
        inner: for text after a special token. It is different for tokenizers (Llama's) that mark
            the beginning of a sequence like the beginning of a word.
        spaced: for text that continues a row and begins with white space. It is different for
            tokenizers (Llama 2's) that put a space before every text.
        tail: for the rest of a word; never marks a beginning.
        specials: the special tokens by their string.
        forbidden: the ids that no text may become.
    """

    head: PreTrainedTokenizerBase
    inner: PreTrainedTokenizerBase
    spaced: PreTrainedTokenizerBase
    tail: PreTrainedTokenizerBase
    specials: Mapping[str, Special]
    forbidden: frozenset[int]

    def encode(self, text: str, *, first: bool, continues: bool = False) -> list[Token]:
        """Tokenise a text.

        Args:
            text: to tokenise.
            first: whether it is at the beginning of its sequence.
            continues: whether it continues a row without a special token in between.
        """
        form = self.head if first else self.inner
        if continues and text[:1].isspace():
            form = self.spaced
        return list(_tokenize_safely(self, text, tokenizer=form, shift=0))

    def encode_all(
        self, texts: Sequence[str], *, first: bool, continues: bool = False
    ) -> list[Sequence[int] | None]:
        """The ids of texts, tokenised together.

        Args:
            texts: to tokenise.
            first: as in `encode`.
            continues: as in `encode`.

        Returns:
            The ids of each text; None if `encode` has to divide it.
        """
        form = self.head if first else self.inner
        ids: list[Sequence[int] | None] = [() for _ in texts]
        spaced = {at for at, text in enumerate(texts) if continues and text[:1].isspace()}
        others = [at for at in range(len(texts)) if at not in spaced]
        for tokenizer, chosen in ((self.spaced, sorted(spaced)), (form, others)):
            filled = [at for at in chosen if texts[at]]
            if filled:
                found = _tokenize_all(tokenizer, [texts[at] for at in filled])
                for at, tokens in zip(filled, found, strict=True):
                    ids[at] = None if not self.forbidden.isdisjoint(tokens) else tokens
        return ids


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, text: str | list[str], *, offsets: bool = False
) -> BatchEncoding:
    with _USE:
        encoding: BatchEncoding = tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=offsets,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
    return encoding


def _tokenize_all(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """The ids of texts. Without offsets and mappings it takes half the time."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or _has_own_call(type(tokenizer)):
        ids: list[list[int]] = _tokenize(tokenizer, texts)["input_ids"]
        return ids
    with _USE:
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def _has_own_call(kind: type[PreTrainedTokenizerFast]) -> bool:
    """Whether a class of tokenizers changes texts before it tokenises them."""
    return any(
        getattr(kind, name) is not getattr(PreTrainedTokenizerFast, name)
        for name in ("__call__", "_encode_plus")
    )


def list_special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, Special]:
    """The special tokens of a tokenizer by their string."""
    return {
        token.content: Special(index, lstrip=token.lstrip, rstrip=token.rstrip)
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special or token.content in tokenizer.all_special_tokens
    }


# The forms of tokenizers that are in use. Some are copies of a whole tokenizer, which all templates
# of a backbone share.
_KNOWN: WeakValueDictionary[int, SafeTokenizer] = WeakValueDictionary()


def make_safe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> SafeTokenizer:
    """Make a safe tokenizer.

    Args:
        tokenizer: a fast tokenizer; it is not changed.

    Returns:
        The safe tokenizer; the same one for as long as it is in use and the special tokens are the
        same.

    Raises:
        TemplateError: the tokenizer is not a fast one.
    """
    if not tokenizer.is_fast:
        msg = (
            f"the tokenizer {type(tokenizer).__name__} does not report the characters of a token. "
            "Load the fast tokenizer of this backbone."
        )
        raise TemplateError(msg)
    special = list_special_tokens(tokenizer)
    known = _KNOWN.get(id(tokenizer))
    if known is not None and known.head is tokenizer and known.specials == special:
        return known
    spaced = _remove_prepend(tokenizer)
    tail, schemes = _disable_word_marks(spaced)
    if isinstance(tokenizer.backend_tokenizer.pre_tokenizer, Metaspace):
        spaced = tail  # in a sequence, another part may have removed the space (T5's)
    safe = _KNOWN[id(tokenizer)] = SafeTokenizer(
        head=tokenizer,
        inner=tail if "first" in schemes else tokenizer,
        spaced=spaced,
        tail=tail,
        specials=special,
        # Text may become the unknown token.
        forbidden=frozenset(s.id for s in special.values()) - {tokenizer.unk_token_id},
    )
    return safe


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """Encodes text from outside: no text becomes a special token, and all ids are in the table.

    Args:
        tokenizer: for which no text becomes a special token.
        vocab_size: V, the rows of the backbone's embedding table.
    """

    tokenizer: SafeTokenizer
    vocab_size: int

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of a text that is an answer or continues a row.

        Raises:
            DataError: the text has half a character.
            TemplateError: the tokenizer makes an id that the embedding table does not have.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            msg = (
                f"the text {text!r} has half a character at index {error.start} (a lone "
                "surrogate). Give it valid Unicode."
            )
            raise DataError(msg) from error
        [found] = self.tokenizer.encode_all([text], first=True, continues=True)
        if found is None:
            tokens = self.tokenizer.encode(text, first=True, continues=True)
            found = [token.id for token in tokens]
        ids = tuple(found)
        check_ids(ids, vocab_size=self.vocab_size)
        return ids


def make_text_encoder(tokenizer: PreTrainedTokenizerBase, *, vocab_size: int) -> TextEncoder:
    """Make an encoder of text from outside.

    Args:
        tokenizer: a fast tokenizer; it is not changed.
        vocab_size: V, the rows of the backbone's embedding table.

    Raises:
        TemplateError: the tokenizer is not a fast one.
    """
    return TextEncoder(make_safe_tokenizer(tokenizer), vocab_size)


def check_ids(ids: Iterable[int], *, vocab_size: int) -> None:
    """Check that ids are in the embedding table.

    Args:
        ids: of a tokenizer.
        vocab_size: V, the rows of the backbone's embedding table.

    Raises:
        TemplateError: an id is not.
    """
    highest = max(ids, default=-1)
    if highest >= vocab_size:
        msg = (
            f"the tokenizer makes the id {highest}, but the backbone's embedding table has "
            f"{vocab_size} rows. Use the tokenizer that belongs to the backbone."
        )
        raise TemplateError(msg)


def _remove_prepend(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy that puts no space before a text; the tokenizer itself if it does not."""
    normalizer: Normalizer | None = tokenizer.backend_tokenizer.normalizer
    parts = [normalizer]
    if isinstance(normalizer, normalizers.Sequence):
        # It is iterable, although its type stub does not say so.
        parts = list(cast("Iterable[Normalizer]", normalizer))
    kept = [part for part in parts if not isinstance(part, Prepend)]
    if len(kept) == len(parts):
        return tokenizer
    copy = deepcopy(tokenizer)
    copy.backend_tokenizer.normalizer = normalizers.Sequence(kept)
    return copy


def _disable_word_marks(
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[PreTrainedTokenizerBase, set[str]]:
    """A copy that marks no beginnings of words, and the tokenizer's own schemes for that mark."""
    if not any(_iterate_metaspaces(tokenizer)):
        return tokenizer, set()
    copy = deepcopy(tokenizer)
    parts = list(_iterate_metaspaces(copy))
    schemes = {part.prepend_scheme for part in parts}
    for part in parts:
        part.prepend_scheme = "never"
    return copy, schemes


def _iterate_metaspaces(tokenizer: PreTrainedTokenizerBase) -> Iterator[Metaspace]:
    pre_tokenizer: PreTokenizer | None = tokenizer.backend_tokenizer.pre_tokenizer
    match pre_tokenizer:
        case Metaspace():
            yield pre_tokenizer
        case pre_tokenizers.Sequence():
            # It is iterable, although its type stub does not say so.
            parts = cast("Iterable[PreTokenizer]", pre_tokenizer)
            yield from (part for part in parts if isinstance(part, Metaspace))
        case _:
            return


def _tokenize_safely(
    safe: SafeTokenizer, text: str, *, tokenizer: PreTrainedTokenizerBase, shift: int
) -> Iterator[Token]:
    """The tokens of a text without forbidden ones, with offsets increased by ``shift``.

    With ``split_special_tokens`` the tokenizer does not look for special strings. A Unigram model
    (T5's) may still produce ``</s>``, an ordinary entry of its vocabulary: such a piece is split in
    two and tokenised again.
    """
    if not text:
        return
    encoding = _tokenize(tokenizer, text, offsets=True)
    offsets = encoding["offset_mapping"]
    tokens = [Token(i, a, b) for i, (a, b) in zip(encoding["input_ids"], offsets, strict=True)]
    forbidden = [token for token in tokens if token.id in safe.forbidden]
    cuts = [token.start + 1 for token in forbidden if token.end - token.start > 1]
    if not cuts:
        # A single character that is a special token can only be left out.
        allowed = [token for token in tokens if token not in forbidden] if forbidden else tokens
        yield from (token.shift(shift) for token in allowed) if shift else allowed
        return
    borders = [0, *cuts, len(text)]
    for number, (start, end) in enumerate(pairwise(borders)):
        part = tokenizer if number == 0 else safe.tail
        yield from _tokenize_safely(safe, text[start:end], tokenizer=part, shift=shift + start)


_PROBE_WORDS = ("a", "the", "x", "e", "0", ".")


@dataclass(frozen=True)
class Wrapping:
    """The special tokens before, between and after the texts of one row.

    Args:
        ids: one tuple per place: before the first text, (between the two,) after the last.
        types: their token type ids, one tuple per place.
        text_types: the token type id of each text.
    """

    ids: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...]
    text_types: tuple[int, ...]


def measure_wrapping(tokenizer: PreTrainedTokenizerBase, *, pair: bool) -> Wrapping:
    """Find the wrapping of a single text or of a pair, by trial.

    Args:
        tokenizer: a fast tokenizer.
        pair: whether the row has two texts.

    Returns:
        The wrapping.

    Raises:
        TemplateError: the tokenizer has no form of pairs, or splits a text when it adds special
            tokens.
    """
    word, word_ids = _choose_probe_word(tokenizer)
    texts = [word, word] if pair else [word]
    has_types = "token_type_ids" in tokenizer.model_input_names
    encoding = tokenizer(*texts, return_token_type_ids=True)
    ids: list[int] = encoding["input_ids"]
    types: list[int] = encoding["token_type_ids"] if has_types else [0] * len(ids)
    starts = _find_starts(ids, word_ids, count=len(texts))
    ends = [start + len(word_ids) for start in starts]
    borders = list(zip([0, *ends], [*starts, len(ids)], strict=True))
    wrapping = Wrapping(
        ids=tuple(tuple(ids[a:b]) for a, b in borders),
        types=tuple(tuple(types[a:b]) for a, b in borders),
        text_types=tuple(types[start] for start in starts),
    )
    # Llama's "<s> A <s> B" and GPT-2's "AB" are two texts in a row, not a pair.
    if pair and wrapping.ids[1] in ((), wrapping.ids[0]):
        msg = (
            f"the template has {{sep}}, but this backbone's tokenizer "
            f"({type(tokenizer).__name__}) has no form for pairs of texts. "
            "Write words or a line break between the two fields instead."
        )
        raise TemplateError(msg)
    return wrapping


def _choose_probe_word(tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[int]]:
    """A word that the tokenizer knows, and its ids."""
    for word in _PROBE_WORDS:
        ids: list[int] = tokenizer(word, add_special_tokens=False)["input_ids"]
        if ids:
            return word, ids
    msg = (
        f"the tokenizer {type(tokenizer).__name__} makes no token of any of {_PROBE_WORDS}. "
        "Choose a backbone with an ordinary fast tokenizer."
    )
    raise TemplateError(msg)


def _find_starts(ids: Sequence[int], word: Sequence[int], *, count: int) -> list[int]:
    """The first ``count`` positions of ``word`` in ``ids``, without overlaps."""
    starts: list[int] = []
    for _ in range(count):
        begin = starts[-1] + len(word) if starts else 0
        candidates = range(begin, len(ids) - len(word) + 1)
        start = next((i for i in candidates if list(ids[i : i + len(word)]) == list(word)), None)
        if start is None:
            msg = (
                "the tokenizer splits a text when it adds its special tokens "
                f"({list(word)} became {list(ids)}), so soft tokens have no defined place. "
                "Choose a backbone with an ordinary fast tokenizer."
            )
            raise TemplateError(msg)
        starts.append(start)
    return starts
