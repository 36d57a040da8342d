"""What a row looks like to the backbone: literals, fields, soft tokens, mask and separator.

A template is one line of the recipe, such as ``Review: {text}{soft:10} It was {mask}.`` with

* ``{name}``: the row's value in column ``name``;
* ``{soft:10}``: ten soft tokens, numbered from 0 over the whole template, left to right;
* ``{mask}``: where a masked language model is asked for its word;
* ``{sep}``: the border between the two texts of a pair;
* ``{bos}``: where the tokens stand that the tokenizer puts first ([CLS], ``<s>``), if soft tokens
  come before them; else they stand first of all;
* ``{{`` and ``}}``: a brace that means itself.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import dropwhile, groupby

from softprompt.data.pieces import Begin, Field, Literal, Mask, Piece, Separator, Soft
from softprompt.errors import TemplateError, unknown

# In this order: doubled braces first, then a placeholder, then a brace that has lost its partner.
_TOKEN = re.compile(r"(?P<double>\{\{|\}\})|\{(?P<inside>[^{}]*)\}|(?P<lost>[{}])")


@dataclass(frozen=True)
class Template:
    """A parsed template; make one with :func:`parse`.

    Args:
        text: the source, as the recipe has it.
        pieces: what it consists of, left to right; no two literals touch.
    """

    text: str
    pieces: tuple[Piece, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that it reads, in order of first appearance, each once."""
        return tuple(dict.fromkeys(p.name for p in self.pieces if isinstance(p, Field)))

    @property
    def soft_length(self) -> int:
        """The number of soft tokens P, over all ``{soft:N}``."""
        return sum(p.count for p in self.pieces if isinstance(p, Soft))

    def with_words(self, words: str) -> str:
        """The source with words in place of its first soft tokens, and nothing of the others.

        Soft tokens are no letters, but words are parted by a space from what stands beside them.
        They cannot stand before ``{bos}``, so it is left out.
        """
        left = [words.replace("{", "{{").replace("}", "}}")] if words else []

        def spoken(found: re.Match[str]) -> str:
            if not _unspoken(found["inside"] or ""):
                return found[0]
            if found["inside"] == "bos":
                return ""
            if not left:
                return ""
            before, behind = self.text[: found.start()][-1:], self.text[found.end() :][:1]
            return " " * bool(before.strip()) + left.pop() + " " * bool(behind.strip())

        return _TOKEN.sub(spoken, self.text)

    @property
    def soft_first(self) -> bool:
        """Whether a soft token stands before the row's own text."""
        return isinstance(next(p for p in self.pieces if isinstance(p, Soft | Field)), Soft)

    @property
    def before(self) -> int:
        """How many soft tokens stand before what the tokenizer puts first."""
        if Begin() not in self.pieces:
            return 0
        return sum(
            p.count for p in self.pieces[: self.pieces.index(Begin())] if isinstance(p, Soft)
        )

    @property
    def soft_head(self) -> int:
        """How many soft tokens stand before all text."""
        rest = dropwhile(lambda piece: isinstance(piece, Soft | Begin), self.pieces)
        return self.soft_length - sum(p.count for p in rest if isinstance(p, Soft))

    @property
    def spoken(self) -> str:
        """The source without its soft tokens."""
        return _TOKEN.sub(lambda f: "" if _unspoken(f["inside"] or "") else f[0], self.text)

    @property
    def masks(self) -> int:
        """How many ``{mask}`` it has: 0 or 1."""
        return sum(isinstance(p, Mask) for p in self.pieces)

    @property
    def pair(self) -> bool:
        """Whether it has two texts, joined at ``{sep}``."""
        return any(isinstance(p, Separator) for p in self.pieces)


def parse(text: str) -> Template:
    """Take a template apart.

    Args:
        text: the template as written in the recipe.

    Returns:
        The template.

    Raises:
        TemplateError: a brace without its partner, an empty or malformed placeholder, no field at
            all, text before ``{bos}``, or more than one of ``{mask}``, ``{sep}`` and ``{bos}``.
    """
    template = Template(text, tuple(_joined(_pieces(text))))
    if not template.fields:
        msg = (
            f"the template {text!r} has no field, so every row would look the same. "
            "Name a column in braces, such as {text}."
        )
        raise TemplateError(msg)
    for kind, word in ((Mask, "{mask}"), (Separator, "{sep}"), (Begin, "{bos}")):
        count = sum(isinstance(p, kind) for p in template.pieces)
        if count > 1:
            msg = f"the template {text!r} has {word} {count} times; at most one is possible."
            raise TemplateError(msg)
    _check_begin(template)
    return template


def check_fields(template: Template, columns: Iterable[str]) -> None:
    """Make sure that every field of a template is a column of the data.

    Args:
        template: the template.
        columns: the names that the data has.

    Raises:
        TemplateError: a field is no column; names the nearest column.
    """
    known = list(columns)
    for name in template.fields:
        if name not in known:
            msg = f"in the template {template.text!r}: {unknown('field', name, options=known)}"
            raise TemplateError(msg)


def _unspoken(inside: str) -> bool:
    return inside == "bos" or inside.startswith("soft:")


def _check_begin(template: Template) -> None:
    if Begin() not in template.pieces:
        return
    before = template.pieces[: template.pieces.index(Begin())]
    if not all(isinstance(piece, Soft) for piece in before):
        msg = (
            f"the template {template.text!r} has text before {{bos}}, but only soft tokens can "
            "stand there. Move {bos} before the text, or leave it out."
        )
        raise TemplateError(msg)


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same pieces with neighbouring literals made one."""
    for literal, group in groupby(pieces, key=lambda p: isinstance(p, Literal)):
        if literal:
            yield Literal("".join(p.text for p in group if isinstance(p, Literal)))
        else:
            yield from group


def _pieces(text: str) -> Iterator[Piece]:
    end = 0
    for found in _TOKEN.finditer(text):
        if found.start() > end:
            yield Literal(text[end : found.start()])
        end = found.end()
        if found["lost"]:
            msg = (
                f"the template {text!r} has a {found['lost']!r} without its partner at character "
                f"{found.start() + 1}. Write {found['lost'] * 2!r} for a brace that means itself."
            )
            raise TemplateError(msg)
        if found["double"]:
            yield Literal(found["double"][0])
        else:
            yield _placeholder(found["inside"], text, at=found.start() + 1)
    if end < len(text):
        yield Literal(text[end:])


def _placeholder(inside: str, text: str, *, at: int) -> Piece:
    """What ``{inside}`` stands for; ``at`` is its place in ``text``, counted from 1."""
    where = f"at character {at} of the template {text!r}"
    name, colon, count = inside.partition(":")
    if not inside.strip():
        msg = f"empty braces {where}. Name a column, such as {{text}}, or write '{{{{}}}}'."
        raise TemplateError(msg)
    if inside != inside.strip():
        msg = f"spaces inside the braces {where}. Write {{{inside.strip()}}}."
        raise TemplateError(msg)
    if name == "soft":
        return _soft(inside, count, where=where)
    if colon:
        msg = (
            f"{{{inside}}} {where}: only soft tokens take a number. Write {{soft:N}} or {{{name}}}."
        )
        raise TemplateError(msg)
    match name:
        case "mask":
            return Mask()
        case "sep":
            return Separator()
        case "bos":
            return Begin()
        case _:
            return Field(name)


def _soft(inside: str, count: str, *, where: str) -> Soft:
    if not (count.isascii() and count.isdigit() and int(count) > 0):
        msg = f"{{{inside}}} {where} does not say how many. Write {{soft:N}} with N from 1 up."
        raise TemplateError(msg)
    return Soft(int(count))
