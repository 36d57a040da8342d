"""Windows: a row whose text is too long becomes several rows that overlap, and no token is lost.

The text is tokenised once, as a whole; a window has a part of its tokens, so the tokens near a
border are those of the whole text. Every token of the text is owned by one window: the one in which
it has the most context on its shorter side (as in Devlin et al., NAACL 2019, whose code for SQuAD
calls it the maximum context). What is read at the owned tokens covers the text exactly once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from softprompt.data.layout import FixedTokens, TextRun
from softprompt.data.rendering import RenderedRow, Renderer
from softprompt.data.shortening import TokenizedRun, clip_text, shorten_values
from softprompt.errors import DataError, TemplateError, format_unknown


class FieldToken(NamedTuple):
    """One token of the field in a window.

    Args:
        position: its index in the window's ``input_ids``.
        start: the first of its characters in the field's text. A token that also has characters
            of the text around the field begins and ends at the field's borders.
        end: one after the last of its characters. The tokens of one character, such as the bytes
            of an emoji, all have the range of that character; a token that stands for white space
            which the tokenizer does not count has an empty range.
        owned: whether this window owns the token.
    """

    position: int
    start: int
    end: int
    owned: bool


@dataclass(frozen=True)
class Window:
    """One window of a row.

    Args:
        row: its tokens; truncated if a field other than the divided one was shortened.
        tokens: the tokens of the divided field in it, in their order.
    """

    row: RenderedRow
    tokens: tuple[FieldToken, ...]


@dataclass(frozen=True, eq=False)
class DividedRow:
    """A tokenized row, one field of which is divided.

    Args:
        runs: of the row, by their index in the renderer's segments.
        tokens: the indices of the field's tokens in its run.
        windows: those that each window has, counted from the field's first.
        truncated: whether another field was shortened.
    """

    runs: Mapping[int, TokenizedRun]
    tokens: range
    windows: Sequence[range]
    truncated: bool


@dataclass(frozen=True, eq=False)
class WindowRenderer:
    """Renders rows to windows; made by :func:`make_window_renderer`, which checks the template.

    Args:
        renderer: renders the rows.
        stride: the tokens of the field that adjacent windows share.
        place: the field that is divided, as its number in the template.
        segment: the index of its text in the renderer's segments.
        least: so many tokens of a field that needs them are in every window, whatever the length
            of the other fields.
    """

    renderer: Renderer
    stride: int
    place: int
    segment: int
    least: int

    @property
    def field(self) -> str:
        """The name of the field that is divided."""
        return self.renderer.template.field_places[self.place]

    def render(self, row: Mapping[str, object]) -> tuple[Window, ...]:
        """Render one row.

        The other fields are in every window. They are shortened, the longest first, if less than
        half of the positions that the fields share remain for the divided field, and it needs them.

        Args:
            row: texts or numbers, by the names of the template's fields.

        Returns:
            The windows, in the order of the text; one if the row fits, or if the field has no
            tokens. Each has at most the renderer's ``max_length`` tokens.

        Raises:
            DataError: a field is missing, or neither a text nor a number; or the other fields leave
                no room.
            TemplateError: the tokenizer makes an id that the embedding table does not have.
        """
        divided = self.divide(row)
        runs, tokens, windows = divided.runs, divided.tokens, divided.windows
        ids = {index: [token.id for token in run.tokens] for index, run in runs.items()}
        first = self._count_before(ids) + tokens.start
        begin, end = runs[self.segment].spans[self.place]
        found = runs[self.segment].tokens[tokens.start : tokens.stop]
        characters = [(max(0, t.start - begin), min(end, t.end) - begin) for t in found]
        return tuple(
            Window(
                self.renderer.join(
                    ids | {self.segment: _cut_run(ids[self.segment], tokens, window)},
                    truncated=divided.truncated,
                ),
                tuple(
                    FieldToken(first + at, *characters[index], index in owned)
                    for at, index in enumerate(window)
                ),
            )
            for window, owned in zip(windows, divide_ownership(windows), strict=True)
        )

    def divide(self, row: Mapping[str, object]) -> DividedRow:
        """Tokenize one row, and divide the tokens of its field.

        Args:
            row: as for `render`.

        Raises:
            DataError: as `render` does.
        """
        texts = self.renderer.read_texts(row)
        values, runs = self._fit(texts)
        tokens = self._find_tokens(runs)
        room = self._measure_room(runs, tokens)
        if len(tokens) > room and room <= self.stride:
            msg = (
                f"the other fields of the row and the template's own text leave {max(room, 0)} of "
                f"{self.renderer.max_length} positions for the field {self.field!r}, but its "
                f"windows share {self.stride}. Shorten the other fields, or the stride."
            )
            raise DataError(msg)
        windows = cut_windows(len(tokens), room=room, stride=self.stride)
        return DividedRow(runs, tokens, windows, truncated=values != texts)

    def _fit(self, texts: Sequence[str]) -> tuple[list[str], dict[int, TokenizedRun]]:
        """Shorten the fields other than the divided one until it has its least room."""
        most, count = self.renderer.max_length, self.renderer.count
        values = [
            text if place == self.place else clip_text(text, most=most, count=count)
            for place, text in enumerate(texts)
        ]
        while True:
            runs = self.renderer.encode(values)
            tokens = self._find_tokens(runs)
            lack = min(self.least, len(tokens)) - self._measure_room(runs, tokens)
            others = any(value for place, value in enumerate(values) if place != self.place)
            if lack <= 0 or not others:
                return values, runs
            values = shorten_values(values, runs.values(), excess=lack, whole=self.place)

    def _find_tokens(self, runs: Mapping[int, TokenizedRun]) -> range:
        """The indices of the field's tokens in its run: from its first to its last."""
        run = runs[self.segment]
        begin, end = run.spans[self.place]
        found = [
            index
            for index, token in enumerate(run.tokens)
            if (token.start < end and token.end > begin)
            # White space without characters is at its end, or at the beginning of the run.
            or (
                token.start == token.end and (begin < token.start <= end or begin == token.end == 0)
            )
        ]
        return range(found[0], found[-1] + 1) if found else range(0)

    def _measure_room(self, runs: Mapping[int, TokenizedRun], tokens: range) -> int:
        """The number of the field's tokens that a window can have."""
        return self.renderer.max_length - self.renderer.count_tokens(runs) + len(tokens)

    def _count_before(self, ids: Mapping[int, Sequence[int]]) -> int:
        """The number of tokens before the run of the field."""
        return sum(
            len(segment.ids) if isinstance(segment, FixedTokens) else len(ids[index])
            for index, segment in enumerate(self.renderer.segments[: self.segment])
        )


def _cut_run(ids: Sequence[int], tokens: range, window: range) -> list[int]:
    """The ids of a run with one window of those of its field, which are at the indices tokens."""
    part = tokens[window.start : window.stop]
    return [*ids[: tokens.start], *ids[part.start : part.stop], *ids[tokens.stop :]]


def make_window_renderer(renderer: Renderer, *, field: str, stride: int | None) -> WindowRenderer:
    """Make a renderer of windows, and check that its template can be divided.

    Args:
        renderer: renders the rows.
        field: the field whose text is divided when a row is too long.
        stride: the tokens of the field that adjacent windows share. None: a quarter of a window.

    Returns:
        The renderer of windows.

    Raises:
        TemplateError: the field is not in the template, or more than once; or so few positions are
            left for it that windows cannot share so many tokens.
    """
    names = renderer.template.field_places
    where = f"in the template {renderer.template.text!r}"
    if field not in names:
        msg = f"{where}: {format_unknown('field', field, options=names)}"
        raise TemplateError(msg)
    if names.count(field) > 1:
        msg = (
            f"{where}: the field {field!r} is there {names.count(field)} times, but only a text "
            "that is there once can be divided into windows. Leave one."
        )
        raise TemplateError(msg)
    place = names.index(field)
    free = renderer.max_length - renderer.count_tokens(renderer.encode([""] * len(names)))
    least = free if len(names) == 1 else (free + 1) // 2
    stride = max(least, 0) // 4 if stride is None else stride
    if not 0 <= stride < least:
        raise TemplateError(
            _describe_wrong_stride(renderer, field=field, stride=stride, room=least)
        )
    segment = next(
        index
        for index, part in enumerate(renderer.segments)
        if isinstance(part, TextRun) and place in part.parts
    )
    return WindowRenderer(renderer, stride, place, segment, least)


def _describe_wrong_stride(renderer: Renderer, *, field: str, stride: int, room: int) -> str:
    if room < 1:
        return (
            f"the template {renderer.template.text!r} leaves none of {renderer.max_length} "
            f"positions for the field {field!r}. Shorten the prompt or the template's own text."
        )
    return (
        f"windows of the field {field!r} cannot share {stride} tokens (their stride): the template "
        f"{renderer.template.text!r} leaves {room} of {renderer.max_length} positions for it. "
        f"Choose a stride from 0 to {room - 1}; {room // 4} is a quarter of a window."
    )


def cut_windows(count: int, *, room: int, stride: int) -> list[range]:
    """Divide tokens into windows that overlap.

    Args:
        count: the number of tokens.
        room: the most tokens of a window.
        stride: the tokens that adjacent windows share; less than ``room`` if all do not fit.

    Returns:
        The indices of every window's tokens, as tokenizers' ``return_overflowing_tokens`` divides
        them: all windows but the last are full.

    Examples:
        >>> cut_windows(10, room=5, stride=2)
        [range(0, 5), range(3, 8), range(6, 10)]
        >>> cut_windows(0, room=5, stride=2)
        [range(0, 0)]
    """
    if count <= room:
        return [range(count)]
    step = room - stride
    return [range(start, min(start + room, count)) for start in range(0, count - room + step, step)]


def divide_ownership(windows: Sequence[range]) -> list[range]:
    """Give every token to the window in which it has the most context on its shorter side.

    Args:
        windows: as of `cut_windows`.

    Returns:
        The indices of the tokens that each window owns; of two equal windows the first owns.

    Examples:
        >>> divide_ownership([range(0, 5), range(3, 8), range(6, 10)])
        [range(0, 4), range(4, 7), range(7, 10)]
    """
    # Between the borders of the overlap: left of its middle, the window before has more.
    middles = [(right.start + left.stop - 1) // 2 + 1 for left, right in pairwise(windows)]
    borders = [windows[0].start, *middles, windows[-1].stop]
    return [range(begin, end) for begin, end in pairwise(borders)]
