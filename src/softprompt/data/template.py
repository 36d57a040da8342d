"""Templates: the text of a row, with fields, soft tokens, mask and separator."""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import dropwhile, groupby
from typing import Final

from softprompt.errors import TemplateError, format_unknown


@dataclass(frozen=True)
class Literal:
    """Text that is the same in every row."""

    text: str


@dataclass(frozen=True)
class Field:
    """The row's value in the column ``name``."""

    name: str


@dataclass(frozen=True)
class SoftTokens:
    """``count`` consecutive soft tokens."""

    count: int


@dataclass(frozen=True)
class MaskToken:
    """The place of the word that a masked language model predicts."""


@dataclass(frozen=True)
class Separator:
    """The boundary between the two texts of a pair."""


@dataclass(frozen=True)
class BeginToken:
    """The place of the special tokens before a text, after soft tokens."""


@dataclass(frozen=True)
class TurnText:
    """The place of the text of one turn of a conversation.

    Args:
        name: the column of the messages.
        turn: ``system``, or ``user`` for the last turn of the user.
    """

    name: str
    turn: str


Piece = Literal | Field | SoftTokens | MaskToken | Separator | BeginToken | TurnText

# The turns whose text a template can name.
SYSTEM_TURN: Final = "system"
USER_TURN: Final = "user"


# Far more than attention can take, and few enough to be laid out before it is asked.
_MOST_SOFT_TOKENS = 100_000

# In this order: doubled braces, then a placeholder, then a brace without its partner.
_TOKEN = re.compile(r"(?P<double>\{\{|\}\})|\{(?P<inside>[^{}]*)\}|(?P<single>[{}])")


@dataclass(frozen=True)
class Template:
    """A parsed template, made by :func:`parse_template`.

    Args:
        text: the source, as in the recipe.
        pieces: its parts from left to right, without adjacent literals.
    """

    text: str
    pieces: tuple[Piece, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of its fields, in order of first appearance, without duplicates."""
        named = (p.name for p in self.pieces if isinstance(p, Field | TurnText))
        return tuple(dict.fromkeys(named))

    @property
    def field_places(self) -> tuple[str, ...]:
        """The name of every field, in order, with repetitions."""
        return tuple(p.name for p in self.pieces if isinstance(p, Field))

    @property
    def soft_length(self) -> int:
        """The number of soft tokens P, over all ``{soft:N}``."""
        return sum(p.count for p in self.pieces if isinstance(p, SoftTokens))

    def replace_soft_tokens(self, words: str) -> str:
        """Replace the first ``{soft:N}`` of the source by words, and remove the others.

        The words are separated from adjacent text by a space. ``{bos}`` is removed too, because
        words cannot come before it.
        """
        remaining = [words.replace("{", "{{").replace("}", "}}")] if words else []

        def replace(match: re.Match[str]) -> str:
            if not _is_soft_or_bos(match["inside"] or ""):
                return match[0]
            if match["inside"] == "bos" or not remaining:
                return ""
            before, after = self.text[: match.start()][-1:], self.text[match.end() :][:1]
            return " " * bool(before.strip()) + remaining.pop() + " " * bool(after.strip())

        return _TOKEN.sub(replace, self.text)

    def keep_soft_tokens(self, kept: Collection[int]) -> str:
        """The source with some of its soft tokens, in the same places.

        Args:
            kept: the numbers of the soft tokens, from 0.
        """
        begin = 0

        def replace(match: re.Match[str]) -> str:
            nonlocal begin
            inside = match["inside"] or ""
            if not inside.startswith("soft:"):
                return match[0]
            end = begin + int(inside.removeprefix("soft:"))
            count = sum(begin <= number < end for number in kept)
            begin = end
            return f"{{soft:{count}}}" if count else ""

        return _TOKEN.sub(replace, self.text)

    @property
    def starts_with_soft(self) -> bool:
        """Whether the first soft token comes before the first field."""
        return isinstance(
            next(p for p in self.pieces if isinstance(p, SoftTokens | Field | TurnText)),
            SoftTokens,
        )

    @property
    def soft_before_bos(self) -> int:
        """The number of soft tokens before ``{bos}``."""
        if BeginToken() not in self.pieces:
            return 0
        return sum(
            p.count
            for p in self.pieces[: self.pieces.index(BeginToken())]
            if isinstance(p, SoftTokens)
        )

    @property
    def leading_soft_tokens(self) -> int:
        """The number of soft tokens before all text."""
        later = dropwhile(lambda piece: isinstance(piece, SoftTokens | BeginToken), self.pieces)
        return self.soft_length - sum(p.count for p in later if isinstance(p, SoftTokens))

    @property
    def hard_text(self) -> str:
        """The source without its soft tokens."""
        return _TOKEN.sub(lambda m: "" if _is_soft_or_bos(m["inside"] or "") else m[0], self.text)

    @property
    def masks(self) -> int:
        """The number of ``{mask}``: 0 or 1."""
        return sum(isinstance(p, MaskToken) for p in self.pieces)

    @property
    def pair(self) -> bool:
        """Whether it has two texts, joined at ``{sep}``."""
        return any(isinstance(p, Separator) for p in self.pieces)


def parse_template(text: str) -> Template:
    """Parse a template.

    Args:
        text: the template, as in the recipe.

    Returns:
        The parsed template.

    Raises:
        TemplateError: a brace without its partner, an empty or malformed placeholder, no field,
            text before ``{bos}``, more than one of ``{mask}``, ``{sep}`` and ``{bos}``, more soft
            tokens than any backbone can run, or half a character.
    """
    _check_unicode(text)
    template = Template(text, tuple(_join_literals(_parse_pieces(text))))
    if template.soft_length > _MOST_SOFT_TOKENS:
        raise TemplateError(_describe_too_many_soft_tokens())
    if not template.fields:
        msg = (
            f"the template {text!r} has no field, so every row would look the same. "
            "Name a column in braces, such as {text}."
        )
        raise TemplateError(msg)
    for kind, word in ((MaskToken, "{mask}"), (Separator, "{sep}"), (BeginToken, "{bos}")):
        count = sum(isinstance(p, kind) for p in template.pieces)
        if count > 1:
            msg = f"the template {text!r} has {word} {count} times; at most one is possible."
            raise TemplateError(msg)
    _check_bos(template)
    return template


def check_fields(template: Template, columns: Iterable[str]) -> None:
    """Check that every field of a template is a column of the data.

    Args:
        template: the template.
        columns: the columns of the data.

    Raises:
        TemplateError: a field is not a column; the message suggests the closest one.
    """
    known = list(columns)
    for name in template.fields:
        if name not in known:
            msg = (
                f"in the template {template.text!r}: {format_unknown('field', name, options=known)}"
            )
            raise TemplateError(msg)


def _is_soft_or_bos(inside: str) -> bool:
    return inside == "bos" or inside.startswith("soft:")


def _check_bos(template: Template) -> None:
    if BeginToken() not in template.pieces:
        return
    before = template.pieces[: template.pieces.index(BeginToken())]
    if not all(isinstance(piece, SoftTokens) for piece in before):
        msg = (
            f"the template {template.text!r} has text before {{bos}}, where only soft tokens are "
            "possible. Move {bos} before the text, or leave it out."
        )
        raise TemplateError(msg)


def _join_literals(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Join adjacent literals."""
    for is_literal, group in groupby(pieces, key=lambda p: isinstance(p, Literal)):
        if is_literal:
            yield Literal("".join(p.text for p in group if isinstance(p, Literal)))
        else:
            yield from group


def _parse_pieces(text: str) -> Iterator[Piece]:
    end = 0
    for match in _TOKEN.finditer(text):
        if match.start() > end:
            yield Literal(text[end : match.start()])
        end = match.end()
        if match["single"]:
            msg = (
                f"the template {text!r} has a {match['single']!r} without its partner at character "
                f"{match.start() + 1}. Write {match['single'] * 2!r} for a literal brace."
            )
            raise TemplateError(msg)
        if match["double"]:
            yield Literal(match["double"][0])
        else:
            yield _parse_placeholder(match["inside"], text, at=match.start() + 1)
    if end < len(text):
        yield Literal(text[end:])


def _parse_placeholder(inside: str, text: str, *, at: int) -> Piece:
    """Parse ``{inside}``; ``at`` is its position in ``text``, counted from 1."""
    where = f"at character {at} of the template {text!r}"
    name, colon, count = inside.partition(":")
    if not inside.strip():
        msg = f"empty braces {where}. Name a column, such as {{text}}, or write '{{{{}}}}'."
        raise TemplateError(msg)
    if inside != inside.strip():
        msg = f"spaces inside the braces {where}. Write {{{inside.strip()}}}."
        raise TemplateError(msg)
    if name == "soft":
        return _parse_soft_tokens(inside, count, where=where)
    if colon and count in (SYSTEM_TURN, USER_TURN) and name.strip():
        return TurnText(name, count)
    if colon:
        msg = (
            f"{{{inside}}} {where}: only soft tokens take a number. Write {{soft:N}} or {{{name}}}."
        )
        raise TemplateError(msg)
    match name:
        case "mask":
            return MaskToken()
        case "sep":
            return Separator()
        case "bos":
            return BeginToken()
        case _:
            return Field(name)


def _parse_soft_tokens(inside: str, count: str, *, where: str) -> SoftTokens:
    digits = count.lstrip("0")
    if not (digits.isascii() and digits.isdigit()):
        msg = f"{{{inside}}} {where} has no valid number. Write {{soft:N}} with N of 1 or more."
        raise TemplateError(msg)
    if len(digits) > len(str(_MOST_SOFT_TOKENS)):  # Python refuses to read thousands of digits
        raise TemplateError(_describe_too_many_soft_tokens())
    return SoftTokens(int(digits))


def _describe_too_many_soft_tokens() -> str:
    return (
        "the template has more soft tokens than any backbone can run. Write {soft:N} with at most "
        f"{_MOST_SOFT_TOKENS:,} in all; 10 to 100 are usual."
    )


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        msg = (
            f"the template {text!r} has half a character at index {error.start} (a lone "
            "surrogate). Give it valid Unicode."
        )
        raise TemplateError(msg) from error
