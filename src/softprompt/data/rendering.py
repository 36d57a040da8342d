"""Rendering: a template and a row become token ids, in which soft token k is the id V + k."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby
from typing import assert_never

from transformers import PreTrainedTokenizerBase

from softprompt.data.shortening import TokenizedRun, clip_text, is_long, shorten_values
from softprompt.data.table import get_text
from softprompt.data.template import (
    BeginToken,
    Field,
    Literal,
    MaskToken,
    Separator,
    SoftTokens,
    Template,
)
from softprompt.data.tokenizer import (
    SafeTokenizer,
    Special,
    Wrapping,
    check_ids,
    make_safe_tokenizer,
    measure_wrapping,
)
from softprompt.errors import TemplateError


@dataclass(frozen=True)
class FixedTokens:
    """Tokens that are the same in every row.

    Args:
        ids: their ids.
        types: their token type ids.
        mask: whether they are the mask tokens of ``{mask}``.
        soft: whether they are soft tokens.
        lstrip: whether whitespace at the end of the text before them is removed.
        rstrip: whether whitespace at the beginning of the text after them is removed.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...] = ()
    mask: bool = False
    soft: bool = False
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class TextRun:
    """Literals (text) and fields (their number) that are tokenised together.

    Args:
        parts: the parts of the text, in order.
        type: the token type id of all its tokens.
        first: whether only soft tokens come before it in its sequence.
        strip_left: whether whitespace at its beginning is removed.
        strip_right: whether whitespace at its end is removed.
        continues: whether it is directly behind a soft token.
    """

    parts: tuple[str | int, ...]
    type: int
    first: bool
    strip_left: bool
    strip_right: bool
    continues: bool = False


RenderedPart = FixedTokens | TextRun
Atom = str | int | FixedTokens | Separator


def lay_out(
    template: Template,
    tokenizer: SafeTokenizer,
    *,
    wrapping: Wrapping,
    first_soft_id: int,
    mask: FixedTokens,
    closed: bool,
) -> tuple[RenderedPart, ...]:
    """Lay a template out as tokens and text.

    Args:
        template: the template.
        tokenizer: the tokenizer.
        wrapping: the special tokens around one text, or around and between two if there is a
            separator.
        first_soft_id: the id of soft token 0.
        mask: the tokens of ``{mask}``.
        closed: whether to add the special tokens after the last text.

    Returns:
        The parts of a row from left to right. Text without fields is tokenised already.
    """
    atoms = list(_split_atoms(template, tokenizer, first_soft_id=first_soft_id, mask=mask))
    border = atoms.index(Separator()) if template.pair else len(atoms)
    parts = list(_make_section(atoms[:border], wrapping.text_types[0]))
    place = _count_before_bos(template)
    match parts[place : place + 1]:
        case [TextRun() as run]:
            parts[place] = replace(run, continues=False)  # the special tokens come in between
    parts.insert(place, FixedTokens(wrapping.ids[0], wrapping.types[0]))
    if template.pair:
        parts.append(FixedTokens(wrapping.ids[1], wrapping.types[1]))
        parts.extend(_make_section(atoms[border + 1 :], wrapping.text_types[1]))
    if closed:
        parts.append(FixedTokens(wrapping.ids[-1], wrapping.types[-1]))
    return tuple(_fix_tokens(tokenizer, part) for part in parts)


def make_fixed_tokens(token: Special, *, count: int = 1, mask: bool = False) -> FixedTokens:
    """Make a part of a special token, repeated ``count`` times."""
    return FixedTokens((token.id,) * count, mask=mask, lstrip=token.lstrip, rstrip=token.rstrip)


def tokenize_run(tokenizer: SafeTokenizer, run: TextRun, *, values: Sequence[str]) -> TokenizedRun:
    """Tokenise a run.

    Args:
        tokenizer: the tokenizer.
        run: the run.
        values: the text of every field of the template, in order.

    Returns:
        Its tokens; their offsets and the fields' spans are positions in the run's joined text.
    """
    texts = [part if isinstance(part, str) else values[part] for part in run.parts]
    ends = list(accumulate(len(text) for text in texts))
    spans = {
        part: (end - len(text), end)
        for part, text, end in zip(run.parts, texts, ends, strict=True)
        if isinstance(part, int)
    }
    text, removed = join_run(run, values)
    tokens = tokenizer.encode(text, first=run.first, continues=run.continues)
    shifted = (t.shift(removed) for t in tokens) if removed else tokens
    return TokenizedRun(tuple(shifted), spans)


def join_run(run: TextRun, values: Sequence[str]) -> tuple[str, int]:
    """The text of a run, and the number of characters that are removed at its beginning."""
    joined = "".join(part if isinstance(part, str) else values[part] for part in run.parts)
    joined = joined.rstrip() if run.strip_right else joined
    text = joined.lstrip() if run.strip_left else joined
    return text, len(joined) - len(text)


def _fix_tokens(tokenizer: SafeTokenizer, part: RenderedPart) -> RenderedPart:
    """Tokenise a run without fields, which is the same in every row."""
    if isinstance(part, FixedTokens) or any(isinstance(p, int) for p in part.parts):
        return part
    ids = tuple(token.id for token in tokenize_run(tokenizer, part, values=()).tokens)
    return FixedTokens(ids, (part.type,) * len(ids))


def _split_atoms(
    template: Template, tokenizer: SafeTokenizer, *, first_soft_id: int, mask: FixedTokens
) -> Iterator[Atom]:
    """Literal text, the numbers of fields, fixed tokens without types, and the separator."""
    fields, soft_id = 0, first_soft_id
    for piece in template.pieces:
        match piece:
            case Literal(text):
                yield from _split_specials(text, tokenizer)
            case Field():
                yield fields
                fields += 1
            case SoftTokens(count):
                yield FixedTokens(tuple(range(soft_id, soft_id + count)), soft=True)
                soft_id += count
            case MaskToken():
                yield mask
            case Separator():
                yield piece
            case BeginToken():  # only marks a place
                pass
            case _:
                assert_never(piece)


def _count_before_bos(template: Template) -> int:
    """The number of ``{soft:N}`` before ``{bos}``."""
    return template.pieces.index(BeginToken()) if BeginToken() in template.pieces else 0


def _split_specials(text: str, tokenizer: SafeTokenizer) -> Iterator[str | FixedTokens]:
    """The parts of a literal, in which the names of special tokens become these tokens."""
    # The longest first, since one special token may be a prefix of another.
    strings = sorted(tokenizer.specials, key=len, reverse=True)
    pattern = "|".join(map(re.escape, strings)) or r"(?!)"
    for piece in re.split(f"({pattern})", text):
        if piece in tokenizer.specials:
            yield make_fixed_tokens(tokenizer.specials[piece])
        elif piece:
            yield piece


def _make_section(atoms: Iterable[Atom], token_type: int) -> Iterator[RenderedPart]:
    """The parts of one text, whose tokens all have the same token type id."""
    groups = list(_group_text(atoms))
    first = True
    for left, group, right in zip([None, *groups], groups, [*groups[1:], None], strict=False):
        match group:
            case FixedTokens():
                yield replace(group, types=(token_type,) * len(group.ids))
                first = first and group.soft
            case tuple():
                strip_left = isinstance(left, FixedTokens) and left.rstrip
                strip_right = isinstance(right, FixedTokens) and right.lstrip
                continues = isinstance(left, FixedTokens) and left.soft
                yield TextRun(group, token_type, first, strip_left, strip_right, continues)
                first = False
            case _:
                assert_never(group)


def _group_text(atoms: Iterable[Atom]) -> Iterator[FixedTokens | tuple[str | int, ...]]:
    """Join adjacent literals and fields to one tuple."""
    for is_text, group in groupby(atoms, key=lambda atom: isinstance(atom, (str, int))):
        if is_text:
            yield tuple(atom for atom in group if isinstance(atom, (str, int)))
        else:
            yield from (atom for atom in group if isinstance(atom, FixedTokens))


@dataclass(frozen=True)
class RenderedRow:
    """One rendered row.

    Args:
        input_ids: token ids; soft token k is V + k.
        token_type_ids: token type ids, one per token.
        mask_positions: the positions in ``input_ids`` of the tokens of ``{mask}``.
        truncated: whether a field's text was shortened to fit.
    """

    input_ids: tuple[int, ...]
    token_type_ids: tuple[int, ...]
    mask_positions: tuple[int, ...]
    truncated: bool


# More are not remembered: a template of two texts has as many as there are pairs of lengths.
_MOST_LAYOUTS = 4096


@dataclass(frozen=True, eq=False)
class Renderer:
    """Renders rows to token ids; made by :func:`make_renderer`, which checks the template.

    Args:
        template: what a row looks like.
        tokenizer: the backbone's tokenizer.
        vocab_size: V, the rows of the backbone's embedding table.
        max_length: the most tokens of a row.
        safe_tokenizer: the tokenizer, for which no text becomes a special token.
        segments: the template, laid out for the tokenizer.
        layouts: the token types and mask positions by the lengths of the runs, filled as rows are
            rendered: rows of the same lengths share them.
    """

    template: Template
    tokenizer: PreTrainedTokenizerBase
    vocab_size: int
    max_length: int
    safe_tokenizer: SafeTokenizer
    segments: tuple[RenderedPart, ...]
    layouts: dict[tuple[int, ...], tuple[tuple[int, ...], tuple[int, ...]]] = field(
        default_factory=dict, repr=False
    )

    def render(self, row: Mapping[str, object]) -> RenderedRow:
        """Render one row; its fields, the longest first, are truncated until it fits.

        Args:
            row: texts or numbers, by the names of the template's fields.

        Returns:
            The row's tokens, at most ``max_length``.

        Raises:
            DataError: a field is missing, or neither a text nor a number.
            TemplateError: the tokenizer makes an id that the embedding table does not have.
        """
        runs, truncated = self.fit(row)
        ids = {index: [token.id for token in run.tokens] for index, run in runs.items()}
        return self.join(ids, truncated=truncated)

    def fit(self, row: Mapping[str, object]) -> tuple[dict[int, TokenizedRun], bool]:
        """Tokenise a row, with its fields truncated until it fits; errors are those of `render`.

        Args:
            row: as for `render`.

        Returns:
            Its runs, by their index in ``segments``, and whether a field was truncated. What is
            left of a field is its beginning, so offsets are those in the whole text.
        """
        texts = self.read_texts(row)
        values = [clip_text(text, most=self.max_length, count=self.count) for text in texts]
        runs = self.encode(values)
        truncated = values != texts
        while (excess := self.count_tokens(runs) - self.max_length) > 0:
            values = shorten_values(values, runs.values(), excess=excess)
            truncated = True
            runs = self.encode(values)
        return runs, truncated

    def render_all(self, rows: Sequence[Mapping[str, object]]) -> list[RenderedRow]:
        """Render rows as `render` does, but tokenise them together, which is several times faster.

        Args:
            rows: as for `render`.

        Returns:
            The rows' tokens.

        Raises:
            DataError: as `render` does.
            TemplateError: as `render` does.
        """
        texts = [self.read_texts(row) for row in rows]
        short = [
            not any(is_long(text, most=self.max_length) for text in of_row) for of_row in texts
        ]
        runs = {
            index: self.safe_tokenizer.encode_all(
                [join_run(part, v)[0] if ok else "" for v, ok in zip(texts, short, strict=True)],
                first=part.first,
                continues=part.continues,
            )
            for index, part in enumerate(self.segments)
            if isinstance(part, TextRun)
        }
        fixed, rendered = self._count_fixed(), []
        for at, row in enumerate(rows):
            ids = {index: part[at] for index, part in runs.items()}
            known = {index: part for index, part in ids.items() if part is not None}
            fits = fixed + sum(map(len, known.values())) <= self.max_length
            if short[at] and fits and len(known) == len(ids):
                rendered.append(self.join(known, truncated=False))
            else:
                rendered.append(self.render(row))
        return rendered

    def read_texts(self, row: Mapping[str, object]) -> list[str]:
        """The text of every field of the template, in order.

        Args:
            row: as for `render`.

        Raises:
            DataError: as `render` does.
        """
        return [get_text(row, name) for name in self.template.field_places]

    def count(self, text: str) -> int:
        """The number of tokens of a text alone."""
        return len(self.safe_tokenizer.encode(text, first=False))

    def _count_fixed(self) -> int:
        return sum(len(part.ids) for part in self.segments if isinstance(part, FixedTokens))

    def encode(self, values: Sequence[str]) -> dict[int, TokenizedRun]:
        """Tokenise every run, by its index in ``segments``, with the fields' texts in order."""
        return {
            index: tokenize_run(self.safe_tokenizer, part, values=values)
            for index, part in enumerate(self.segments)
            if isinstance(part, TextRun)
        }

    def count_tokens(self, runs: Mapping[int, TokenizedRun]) -> int:
        """The number of token ids of a row."""
        return self._count_fixed() + sum(len(run.tokens) for run in runs.values())

    def join(self, runs: Mapping[int, Sequence[int]], *, truncated: bool) -> RenderedRow:
        """Put a row together.

        Args:
            runs: the ids of every run, by its index in ``segments``.
            truncated: whether a field's text was shortened.

        Raises:
            TemplateError: an id is not in the embedding table.
        """
        ids: list[int] = []
        for index, part in enumerate(self.segments):
            if isinstance(part, FixedTokens):
                ids.extend(part.ids)
            else:
                check_ids(runs[index], vocab_size=self.vocab_size)
                ids.extend(runs[index])
        lengths = tuple(map(len, runs.values()))
        if (layout := self.layouts.get(lengths)) is None:
            if len(self.layouts) >= _MOST_LAYOUTS:
                self.layouts.clear()
            layout = self.layouts[lengths] = self._lay_out_row(lengths)
        return RenderedRow(tuple(ids), *layout, truncated)

    def _lay_out_row(self, lengths: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The token types and the mask positions of a row whose runs have these lengths."""
        types: list[int] = []
        masks: list[int] = []
        left = iter(lengths)
        for part in self.segments:
            if isinstance(part, FixedTokens):
                if part.mask:
                    masks.extend(range(len(types), len(types) + len(part.ids)))
                types.extend(part.types)
            else:
                types.extend([part.type] * next(left))
        return tuple(types), tuple(masks)


def make_renderer(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocab_size: int,
    max_length: int,
    masks: int = 1,
    closed: bool = True,
) -> Renderer:
    """Make a renderer, and check that the template fits the tokenizer.

    Args:
        template: what a row looks like.
        tokenizer: the backbone's tokenizer; it is not changed.
        vocab_size: V, the rows of the backbone's embedding table; soft token k becomes V + k.
        max_length: the most tokens of a row, without those of its label.
        masks: the number of mask tokens of ``{mask}``.
        closed: whether to add the tokenizer's special tokens after the text: true for an encoder,
            false for text that a causal backbone continues.

    Returns:
        The renderer.

    Raises:
        TemplateError: the tokenizer is not a fast one, has no mask token for ``{mask}`` or no form
            of pairs for ``{sep}``, or the fixed tokens alone are too long.
    """
    safe = make_safe_tokenizer(tokenizer)
    parts = lay_out(
        template,
        safe,
        wrapping=measure_wrapping(tokenizer, pair=template.pair),
        first_soft_id=vocab_size,
        mask=_make_mask(template, safe, count=masks),
        closed=closed,
    )
    renderer = Renderer(template, tokenizer, vocab_size, max_length, safe, parts)
    _check_fixed_tokens(renderer)
    return renderer


def _make_mask(template: Template, tokenizer: SafeTokenizer, *, count: int) -> FixedTokens:
    """The tokens of ``{mask}``."""
    if template.masks == 0:
        return FixedTokens(())
    word = tokenizer.head.mask_token
    if word is None:
        msg = (
            f"the template {template.text!r} has {{mask}}, but this backbone's tokenizer "
            f"({type(tokenizer.head).__name__}) has no mask token. Remove {{mask}} from the "
            "template, or choose a masked language model."
        )
        raise TemplateError(msg)
    return make_fixed_tokens(tokenizer.specials[word], count=count, mask=True)


def _check_fixed_tokens(renderer: Renderer) -> None:
    """Check that a row of empty fields fits, and that its ids are in the embedding table."""
    for part in renderer.segments:
        if isinstance(part, FixedTokens) and not part.soft:
            check_ids(part.ids, vocab_size=renderer.vocab_size)
    total = renderer.count_tokens(renderer.encode([""] * len(renderer.template.field_places)))
    if total <= renderer.max_length:
        return
    soft = renderer.template.soft_length
    text = total - soft
    remedies = []
    if renderer.max_length > soft:
        remedies.append(f"the template's own text to {renderer.max_length - soft} tokens")
    if soft and renderer.max_length > text:
        remedies.append(f"the prompt to {renderer.max_length - text}")
    msg = (
        f"prompt ({soft} soft tokens) + fixed text ({text} tokens) = {total} positions, but the "
        f"backbone has {renderer.max_length} for them. Shorten {' or '.join(remedies) or 'both'}."
    )
    raise TemplateError(msg)
