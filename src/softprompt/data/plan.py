"""A template laid out for one tokenizer: what is fixed, and what is tokenised row by row."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import assert_never

from softprompt.data.encode import Encoder, Special, Token
from softprompt.data.pieces import Begin, Field, Literal, Mask, Separator, Soft
from softprompt.data.template import Template
from softprompt.data.wrap import Wrapping


@dataclass(frozen=True)
class Fixed:
    """Tokens that are the same in every row.

    Args:
        ids: their ids.
        types: their token type ids.
        mask: whether they are what ``{mask}`` becomes.
        soft: whether they are soft tokens.
        left: whether text before them loses the whitespace at its end.
        right: whether text behind them loses the whitespace at its beginning.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...] = ()
    mask: bool = False
    soft: bool = False
    left: bool = False
    right: bool = False


@dataclass(frozen=True)
class Run:
    """Literals (text) and fields (their number) that are tokenised together.

    Args:
        parts: what is joined to one text.
        type: the token type id of all its tokens.
        first: whether nothing but soft tokens stands before it in its sequence.
        left: whether whitespace at its beginning is dropped.
        right: whether whitespace at its end is dropped.
    """

    parts: tuple[str | int, ...]
    type: int
    first: bool
    left: bool
    right: bool


Part = Fixed | Run
Atom = str | int | Fixed | Separator


@dataclass(frozen=True)
class Spanned:
    """The tokens of a run, and the characters ``[start, end)`` that each of its fields takes up."""

    tokens: tuple[Token, ...]
    spans: Mapping[int, tuple[int, int]]


def laid_out(
    template: Template, coder: Encoder, *, wrap: Wrapping, soft: int, mask: Fixed, closed: bool
) -> tuple[Part, ...]:
    """Lay a template out.

    Args:
        template: the template.
        coder: the tokenizer.
        wrap: what it puts around one text, or around and between two if there is a separator.
        soft: the id of soft token 0.
        mask: what ``{mask}`` becomes.
        closed: whether the special tokens behind the last text are wanted.

    Returns:
        The parts of a row from left to right. Text that has no field is tokenised already.
    """
    atoms = list(_atoms(template, coder, soft=soft, mask=mask))
    border = atoms.index(Separator()) if template.pair else len(atoms)
    before = _blocks_before(template)
    parts = list(_section(atoms[:border], wrap.text_types[0]))
    parts.insert(before, Fixed(wrap.ids[0], wrap.types[0]))
    if template.pair:
        parts.append(Fixed(wrap.ids[1], wrap.types[1]))
        parts.extend(_section(atoms[border + 1 :], wrap.text_types[1]))
    if closed:
        parts.append(Fixed(wrap.ids[-1], wrap.types[-1]))
    return tuple(_settled(coder, part) for part in parts)


def fixed(token: Special, *, count: int = 1, mask: bool = False) -> Fixed:
    """A special token, ``count`` times, as a part."""
    return Fixed((token.id,) * count, mask=mask, left=token.left, right=token.right)


def encoded(coder: Encoder, run: Run, *, values: Sequence[str]) -> Spanned:
    """Tokenise a run.

    Args:
        coder: the tokenizer.
        run: what to tokenise.
        values: the text of every field of the template, in order.

    Returns:
        Its tokens; their offsets and the fields' spans count in the run's joined text.
    """
    texts = [part if isinstance(part, str) else values[part] for part in run.parts]
    ends = list(accumulate(len(text) for text in texts))
    spans = {
        part: (end - len(text), end)
        for part, text, end in zip(run.parts, texts, ends, strict=True)
        if isinstance(part, int)
    }
    joined = "".join(texts)
    joined = joined.rstrip() if run.right else joined
    kept = joined.lstrip() if run.left else joined
    gone = len(joined) - len(kept)
    tokens = coder.encode(kept, first=run.first)
    return Spanned(tuple(t.moved(gone) for t in tokens) if gone else tuple(tokens), spans)


def _settled(coder: Encoder, part: Part) -> Part:
    """A run without fields is the same in every row: tokenise it once."""
    if isinstance(part, Fixed) or any(isinstance(p, int) for p in part.parts):
        return part
    ids = tuple(token.id for token in encoded(coder, part, values=()).tokens)
    return Fixed(ids, (part.type,) * len(ids))


def _atoms(template: Template, coder: Encoder, *, soft: int, mask: Fixed) -> Iterator[Atom]:
    """Literal text, numbers of fields, fixed tokens without types, and the separator."""
    fields = 0
    for piece in template.pieces:
        match piece:
            case Literal(text):
                yield from _specials(text, coder)
            case Field():
                yield fields
                fields += 1
            case Soft(count):
                yield Fixed(tuple(range(soft, soft + count)), soft=True)
                soft += count
            case Mask():
                yield mask
            case Separator():
                yield piece
            case Begin():  # is no token of its own
                pass
            case _:
                assert_never(piece)


def _blocks_before(template: Template) -> int:
    """How many ``{soft:N}`` stand before ``{bos}``."""
    return template.pieces.index(Begin()) if Begin() in template.pieces else 0


def _specials(text: str, coder: Encoder) -> Iterator[str | Fixed]:
    """A literal, with the special tokens that are written out in it made tokens."""
    # The longest first, since one special string may begin another.
    strings = sorted(coder.specials, key=len, reverse=True)
    pattern = "|".join(map(re.escape, strings)) or r"(?!)"
    for piece in re.split(f"({pattern})", text):
        if piece in coder.specials:
            yield fixed(coder.specials[piece])
        elif piece:
            yield piece


def _section(atoms: Iterable[Atom], kind: int) -> Iterator[Part]:
    """The parts of one text; all of its tokens have the type ``kind``."""
    groups = list(_grouped(atoms))
    first = True
    for left, group, right in zip([None, *groups], groups, [*groups[1:], None], strict=False):
        match group:
            case Fixed():
                yield replace(group, types=(kind,) * len(group.ids))
                first = first and group.soft
            case tuple():
                drop_left = isinstance(left, Fixed) and left.right
                drop_right = isinstance(right, Fixed) and right.left
                yield Run(group, kind, first=first, left=drop_left, right=drop_right)
                first = False
            case _:
                assert_never(group)


def _grouped(atoms: Iterable[Atom]) -> Iterator[Fixed | tuple[str | int, ...]]:
    """Neighbouring literals and fields made one tuple."""
    for text, group in groupby(atoms, key=lambda atom: isinstance(atom, (str, int))):
        if text:
            yield tuple(atom for atom in group if isinstance(atom, (str, int)))
        else:
            yield from (atom for atom in group if isinstance(atom, Fixed))
