"""What a template consists of."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Literal:
    """Text that is the same in every row."""

    text: str


@dataclass(frozen=True)
class Field:
    """The row's value in the column ``name``."""

    name: str


@dataclass(frozen=True)
class Soft:
    """``count`` soft tokens in a row."""

    count: int


@dataclass(frozen=True)
class Mask:
    """The place of the word that a masked language model is asked for."""


@dataclass(frozen=True)
class Separator:
    """The border between the two texts of a pair."""


@dataclass(frozen=True)
class Begin:
    """The place of what the tokenizer puts before a text, behind soft tokens."""


Piece = Literal | Field | Soft | Mask | Separator | Begin
