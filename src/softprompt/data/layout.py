"""Layout: a template becomes fixed tokens and runs of text that are tokenised together."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import assert_never

from softprompt.data.shortening import TokenizedRun
from softprompt.data.template import (
    BeginToken,
    Field,
    Literal,
    MaskToken,
    Separator,
    SoftTokens,
    Template,
    TurnText,
)
from softprompt.data.tokenizer import SafeTokenizer, Special, Wrapping
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
            case TurnText(name, turn):
                msg = (
                    f"the template {template.text!r} has {{{name}:{turn}}}, a turn of a "
                    f'conversation. Set task.messages_column = "{name}", or name a column.'
                )
                raise TemplateError(msg)
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
