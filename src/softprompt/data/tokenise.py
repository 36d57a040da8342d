"""A template and a row become token ids in which soft token k is the id V + k."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from transformers import PreTrainedTokenizerBase

from softprompt.data.encode import Encoder, encoder
from softprompt.data.pieces import Field
from softprompt.data.plan import Fixed, Part, Run, Spanned, encoded, fixed, laid_out
from softprompt.data.shorten import shortened
from softprompt.data.template import Template
from softprompt.data.wrap import wrapping
from softprompt.errors import DataError, TemplateError


@dataclass(frozen=True)
class Tokenised:
    """One rendered row.

    Args:
        ids: token ids; soft token k is V + k.
        types: token type ids, one a token.
        masks: where in ``ids`` the tokens of the template's ``{mask}`` stand.
        cut: whether a field's text was shortened to fit.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...]
    masks: tuple[int, ...]
    cut: bool


@dataclass(frozen=True, eq=False)
class Renderer:
    """Makes ids of rows; make one with :func:`renderer`, which checks that it can.

    Args:
        template: what a row looks like.
        tokenizer: the backbone's.
        vocabulary: rows V of the backbone's embedding table.
        max_length: positions that all ids of a row may take up.
        coder: the tokenizer, made safe for text from outside.
        parts: the template, laid out for the tokenizer.
    """

    template: Template
    tokenizer: PreTrainedTokenizerBase
    vocabulary: int
    max_length: int
    coder: Encoder
    parts: tuple[Part, ...]

    def render(self, row: Mapping[str, object]) -> Tokenised:
        """Tokenise one row; text of fields, of the longest first, is cut off until it fits.

        Args:
            row: text or numbers, by the names of the template's fields.

        Returns:
            The row's tokens, at most ``max_length``.

        Raises:
            DataError: a field is missing, or neither text nor number.
        """
        values = _values(self.template, row)
        spanned = self.encode(values)
        cut = False
        while (excess := self.length(spanned) - self.max_length) > 0:
            values, cut = shortened(values, spanned.values(), excess=excess), True
            spanned = self.encode(values)
        return self._joined(spanned, cut=cut)

    def encode(self, values: Sequence[str]) -> dict[int, Spanned]:
        """The tokens of every run, by its place in ``parts``, for the fields' texts in order."""
        runs = {place: part for place, part in enumerate(self.parts) if isinstance(part, Run)}
        return {place: encoded(self.coder, run, values=values) for place, run in runs.items()}

    def length(self, spanned: Mapping[int, Spanned]) -> int:
        """How many ids the row has in the end."""
        settled = sum(len(part.ids) for part in self.parts if isinstance(part, Fixed))
        return settled + sum(len(run.tokens) for run in spanned.values())

    def _joined(self, spanned: Mapping[int, Spanned], *, cut: bool) -> Tokenised:
        ids: list[int] = []
        types: list[int] = []
        masks: list[int] = []
        for place, part in enumerate(self.parts):
            match part:
                case Fixed():
                    if part.mask:
                        masks.extend(range(len(ids), len(ids) + len(part.ids)))
                    ids.extend(part.ids)
                    types.extend(part.types)
                case Run():
                    found = [token.id for token in spanned[place].tokens]
                    _check_known(found, self.vocabulary)
                    ids.extend(found)
                    types.extend([part.type] * len(found))
                case _:
                    assert_never(part)
        return Tokenised(tuple(ids), tuple(types), tuple(masks), cut)


def renderer(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocabulary: int,
    max_length: int,
    masks: int = 1,
    closed: bool = True,
) -> Renderer:
    """Prepare to render rows, and make sure that template and tokenizer fit each other.

    Args:
        template: what a row looks like.
        tokenizer: the backbone's; it is not changed.
        vocabulary: rows V of the backbone's embedding table; soft token k becomes V + k.
        max_length: positions for all ids of a row (what the labels need is already taken off).
        masks: how many mask tokens ``{mask}`` becomes.
        closed: whether the tokenizer's special tokens behind the text are wanted: true for what an
            encoder reads, false for what a causal backbone goes on with.

    Returns:
        The renderer.

    Raises:
        TemplateError: the tokenizer has no fast form, no mask token for ``{mask}`` or no form of
            pairs for ``{sep}``, or what is the same in every row does not fit.
    """
    if not tokenizer.is_fast:
        msg = (
            f"the tokenizer {type(tokenizer).__name__} does not say which characters a token "
            "stands for. Load the fast tokenizer of this backbone."
        )
        raise TemplateError(msg)
    coder = encoder(tokenizer)
    wrap = wrapping(tokenizer, pair=template.pair)
    mask = _mask(template, coder, count=masks)
    parts = laid_out(template, coder, wrap=wrap, soft=vocabulary, mask=mask, closed=closed)
    made = Renderer(template, tokenizer, vocabulary, max_length, coder, parts)
    _check_settled(made)
    return made


def _mask(template: Template, coder: Encoder, *, count: int) -> Fixed:
    """What ``{mask}`` becomes."""
    if template.masks == 0:
        return Fixed(())
    word = coder.head.mask_token
    if word is None:
        msg = (
            f"the template {template.text!r} has {{mask}}, but this backbone's tokenizer "
            f"({type(coder.head).__name__}) has no mask token. Take {{mask}} out of the template, "
            "or choose a masked language model."
        )
        raise TemplateError(msg)
    return fixed(coder.specials[word], count=count, mask=True)


def _check_settled(made: Renderer) -> None:
    """Make sure that a row whose fields are all empty fits, and has no id beyond the table."""
    for part in made.parts:
        if isinstance(part, Fixed) and not part.soft:
            _check_known(part.ids, made.vocabulary)
    total = made.length(made.encode([""] * len(_slots(made.template))))
    if total <= made.max_length:
        return
    soft = made.template.soft_length
    text = total - soft
    remedies = []
    if made.max_length > soft:
        remedies.append(f"the template's own text to {made.max_length - soft} tokens")
    if soft and made.max_length > text:
        remedies.append(f"the prompt to {made.max_length - text}")
    msg = (
        f"prompt ({soft} soft tokens) + fixed text ({text} tokens) = {total} positions, but the "
        f"backbone has {made.max_length} for them. Shorten {' or '.join(remedies) or 'both'}."
    )
    raise TemplateError(msg)


def _check_known(ids: Iterable[int], vocabulary: int) -> None:
    beyond = max(ids, default=-1)
    if beyond >= vocabulary:
        msg = (
            f"the tokenizer makes the id {beyond}, but the backbone's embedding table has "
            f"{vocabulary} rows. Use the tokenizer that belongs to the backbone."
        )
        raise TemplateError(msg)


def _slots(template: Template) -> list[str]:
    """The name of every field in the template, as often as it stands there."""
    return [piece.name for piece in template.pieces if isinstance(piece, Field)]


def _values(template: Template, row: Mapping[str, object]) -> list[str]:
    return [_text_of(row, name) for name in _slots(template)]


def _text_of(row: Mapping[str, object], name: str) -> str:
    if name not in row:
        msg = (
            f"the row has no field {name!r}, which the template needs. "
            f"It has: {', '.join(sorted(row)) or 'nothing'}."
        )
        raise DataError(msg)
    match row[name]:
        case str() | bool() | int() | float() as value:
            text = str(value)
        case None:
            msg = f"the field {name!r} has no value. Give it text (it may be empty) or a number."
            raise DataError(msg)
        case other:
            msg = f"the field {name!r} is a {type(other).__name__}. Give it text or a number."
            raise DataError(msg)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        msg = (
            f"the field {name!r} holds half a character at place {error.start} (the lone surrogate "
            f"U+{ord(text[error.start]):04X}). Give it valid Unicode."
        )
        raise DataError(msg) from error
    return text
