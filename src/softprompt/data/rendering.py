"""Rendering: a template and a row become token ids, in which soft token k is the id V + k."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from softprompt.data.layout import (
    FixedTokens,
    RenderedPart,
    TextRun,
    join_run,
    lay_out,
    make_fixed_tokens,
    tokenize_run,
)
from softprompt.data.shortening import TokenizedRun, clip_text, is_long, shorten_values
from softprompt.data.table import get_text
from softprompt.data.template import Template
from softprompt.data.tokenizer import (
    SafeTokenizer,
    check_ids,
    make_safe_tokenizer,
    measure_wrapping,
)
from softprompt.errors import TemplateError


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


@dataclass(frozen=True, eq=False)
class TokenizedRows:
    """Rows whose texts are tokenised, but not joined.

    Args:
        rows: as they were given.
        long: the indices of those that are too long to be tokenised as a whole.
        columns: for each run of the template, by its index in ``segments``, the ids of all rows;
            None where they cannot be used.
    """

    rows: Sequence[Mapping[str, object]]
    long: frozenset[int]
    columns: Mapping[int, Sequence[Sequence[int] | None]]


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
        return self.render_all([row])[0]

    def _render_alone(self, row: Mapping[str, object]) -> RenderedRow:
        """Render a row with the offsets of its tokens, which shortening needs."""
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
        """Render rows as `render` does, but tokenise them together, which is faster.

        Args:
            rows: as for `render`.

        Returns:
            The rows' tokens.

        Raises:
            DataError: as `render` does.
            TemplateError: as `render` does.
        """
        return self.join_all(self.tokenize(rows))

    def tokenize(self, rows: Sequence[Mapping[str, object]]) -> TokenizedRows:
        """The first half of `render_all`, during most of which other threads can run.

        Args:
            rows: as for `render`.

        Raises:
            DataError: as `render` does.
        """
        texts, most = [self.read_texts(row) for row in rows], self.max_length
        long = frozenset(
            at for at, row in enumerate(texts) if any(is_long(text, most=most) for text in row)
        )
        empty = [""] * len(self.template.field_places)
        short = [empty if at in long else row for at, row in enumerate(texts)] if long else texts
        columns = {
            index: self.safe_tokenizer.encode_all(
                [join_run(part, values)[0] for values in short],
                first=part.first,
                continues=part.continues,
            )
            for index, part in enumerate(self.segments)
            if isinstance(part, TextRun)
        }
        return TokenizedRows(rows, long, columns)

    def join_all(self, rows: TokenizedRows) -> list[RenderedRow]:
        """The second half of `render_all`.

        Args:
            rows: of `tokenize`.

        Raises:
            TemplateError: as `render` does.
        """
        room, rendered = self.max_length - self._count_fixed(), list[RenderedRow]()
        columns = rows.columns
        # Without text all rows are the same.
        lines = zip(*columns.values(), strict=True) if columns else [()] * len(rows.rows)
        for at, line in enumerate(lines):
            known = {i: run for i, run in zip(columns, line, strict=True) if run is not None}
            fits = sum(map(len, known.values())) <= room
            if fits and len(known) == len(columns) and at not in rows.long:
                rendered.append(self.join(known, truncated=False))
            else:
                rendered.append(self._render_alone(rows.rows[at]))
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
        runs = ((i, part) for i, part in enumerate(self.segments) if isinstance(part, TextRun))
        return {i: tokenize_run(self.safe_tokenizer, run, values=values) for i, run in runs}

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
    check_fixed_tokens(renderer)
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


def check_fixed_tokens(renderer: Renderer) -> None:
    """Check that a row of empty fields fits, and that its ids are in the embedding table.

    Args:
        renderer: of the rows.

    Raises:
        TemplateError: they do not.
    """
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
