"""Conversations as rows: the backbone's chat template around messages, with soft tokens in it.

A template names the column of the messages and the places of soft tokens and of text: before all
turns, in the system turn, before the last user turn's text, or where the answer begins.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from transformers import PreTrainedTokenizerBase

from softprompt.data.answer_frames import AnswerFrame, explain_other_beginning, find_frame
from softprompt.data.chat_places import ChatPlaces, find_chat_places
from softprompt.data.chat_template import (
    ChatPart,
    ChatTemplate,
    make_marks,
)
from softprompt.data.layout import FixedTokens, lay_out
from softprompt.data.messages import (
    ASSISTANT,
    SYSTEM,
    USER,
    Message,
    drop_answer,
    find_last_user,
    list_shortened,
    read_messages,
)
from softprompt.data.rendering import (
    RenderedRow,
    Renderer,
    TokenizedRows,
    check_fixed_tokens,
)
from softprompt.data.shortening import is_long
from softprompt.data.template import (
    Field,
    Literal,
    Piece,
    Template,
)
from softprompt.data.tokenizer import SafeTokenizer, Wrapping, make_safe_tokenizer
from softprompt.errors import DataError, format_unknown

# No special tokens are added: a chat template writes them itself.
_NO_WRAPPING = Wrapping(((), ()), ((), ()), (0,))
_UNLIMITED = 1 << 20
# More are not remembered: there is one for each sequence of roles.
_MOST_LAYOUTS = 4096
_ANSWER = "answer"


@dataclass(frozen=True, eq=False)
class _Layout:
    """The conversations of some roles: the template's own text and the renderer of the rows."""

    parts: tuple[ChatPart, ...]
    renderer: Renderer


@dataclass(frozen=True)
class AnsweredTurn:
    """An assistant's turn with what comes before it.

    Args:
        row: the conversation up to where the answer begins.
        answer: the ids of the answer, without the token that ends the turn.
    """

    row: RenderedRow
    answer: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ChatRenderer:
    """Renders conversations to token ids; made by :func:`make_chat_renderer`.

    Args:
        template: what a row looks like.
        column: of the messages.
        places: what the template puts into a conversation.
        chat: the backbone's chat template.
        vocab_size: V, the rows of the backbone's embedding table.
        max_length: the most tokens of a row.
        safe_tokenizer: the tokenizer, for which no text becomes a special token.
        frame: what the chat template writes around an answer, if the assistant's last turn is to
            be written: then it is left out, and a row ends where it begins. None: it is a part of
            the row.
        layouts: by roles, filled as rows are rendered.
    """

    template: Template
    column: str
    places: ChatPlaces
    chat: ChatTemplate
    vocab_size: int
    max_length: int
    safe_tokenizer: SafeTokenizer
    frame: AnswerFrame | None
    layouts: dict[tuple[object, ...], _Layout] = field(default_factory=dict, repr=False)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer."""
        return self.chat.tokenizer

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """The token that ends the assistant's turn; empty if the chat template has none."""
        end = None if self.frame is None else self.frame.end
        return () if end is None else (end,)

    def read(self, row: Mapping[str, object]) -> tuple[Message, ...]:
        """The messages of a row, with an answer.

        Args:
            row: with the column of the messages.

        Raises:
            DataError: there are none, or they cannot be read.
        """
        if self.column not in row:
            raise DataError(format_unknown("column", self.column, options=row))
        return read_messages(row[self.column])

    def render(self, row: Mapping[str, object]) -> RenderedRow:
        """Render one row. Whole turns are left out, the oldest first, until it fits.

        The system turn and the last user turn stay; if they are too long, their texts are cut.

        Args:
            row: with the column of the messages, and with texts for other fields of the template.

        Returns:
            The row's tokens, at most ``max_length``.

        Raises:
            DataError: the messages cannot be read, or the chat template refuses them.
            TemplateError: the tokenizer makes an id that the embedding table does not have.
        """
        messages = self.read(row)
        kept = messages if self.frame is None else drop_answer(messages)
        return self.render_messages(kept, row, continues=kept[-1].role != ASSISTANT)

    def render_all(self, rows: Sequence[Mapping[str, object]]) -> list[RenderedRow]:
        """Render rows as `render` does.

        Args:
            rows: as for `render`.
        """
        return [self.render(row) for row in rows]

    def tokenize(self, rows: Sequence[Mapping[str, object]]) -> TokenizedRows:
        """The first half of `render_all`, which does nothing: each row is laid out by its roles.

        Args:
            rows: as for `render`.
        """
        return TokenizedRows(rows, frozenset(range(len(rows))), {})

    def join_all(self, rows: TokenizedRows) -> list[RenderedRow]:
        """The second half of `render_all`.

        Args:
            rows: of `tokenize`.

        Raises:
            DataError: as `render` does.
        """
        return self.render_all(rows.rows)

    def render_messages(
        self, messages: Sequence[Message], row: Mapping[str, object], *, continues: bool
    ) -> RenderedRow:
        """Render messages as they are, as far as they fit.

        Args:
            messages: of the conversation.
            row: the values of other fields of the template.
            continues: whether the beginning of the assistant's next turn follows.

        Raises:
            DataError: the chat template refuses them.
        """
        candidates = list_shortened(messages)

        def fits(one: Sequence[Message]) -> bool:
            layout, values = self._lay_out(one, row, continues=continues)
            renderer = layout.renderer
            texts = renderer.read_texts(values)
            is_short = not any(is_long(text, most=self.max_length) for text in texts)
            return is_short and renderer.count_tokens(renderer.encode(texts)) <= self.max_length

        # The fewer turns, the fewer tokens: the first that fits is found by halving.
        last = len(candidates) - 1
        at = 0 if fits(candidates[0]) else min(bisect_left(candidates, 1, lo=1, key=fits), last)
        layout, values = self._lay_out(candidates[at], row, continues=continues)
        if at == last:
            check_fixed_tokens(layout.renderer)
        rendered = layout.renderer.render(values)
        return replace(rendered, truncated=rendered.truncated or at > 0)

    def render_turns(self, row: Mapping[str, object], *, all_turns: bool) -> list[AnsweredTurn]:
        """The assistant's turns of a row, each with what comes before it.

        Args:
            row: as for `render`.
            all_turns: whether all that follow a user turn; otherwise the last one alone.

        Returns:
            The turns, in their order.

        Raises:
            DataError: the last message is not the assistant's, or as in `render`.
        """
        messages = self.read(row)
        last = len(messages) - 1
        first_user = next(n for n, message in enumerate(messages) if message.role == USER)
        chosen = [last]
        if all_turns:
            answers = (n for n, message in enumerate(messages) if message.role == ASSISTANT)
            chosen = [number for number in answers if number > first_user]
        return [
            AnsweredTurn(
                self.render_messages(messages[:number], row, continues=True),
                self._read_answer(messages[: number + 1]),
            )
            for number in chosen
        ]

    def encode_answer(self, text: str) -> tuple[int, ...]:
        """The ids of an answer, as it follows a row, without the token that ends the turn.

        Args:
            text: of the answer.

        Raises:
            DataError: the text has half a character.
            TemplateError: the tokenizer makes an id that the embedding table does not have.
        """
        frame = self._get_frame()
        return self._encode(text, frame, before=frame.between)

    def strip_frame(self, text: str) -> str:
        """The text of an answer without what the chat template writes before it.

        Args:
            text: that was generated.
        """
        between = self._get_frame().between
        for name in self.safe_tokenizer.specials:
            between = between.replace(name, "")
        return text.strip().removeprefix(between.strip()).strip()

    def _read_answer(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The ids of the last message as the chat template writes it behind the others."""
        number, frame = len(messages) - 1, self._get_frame()
        before = self.chat.write(messages[:number], continues=True)
        whole = self.chat.write(messages, continues=False)
        rest = whole.removeprefix(before)
        if not (whole.startswith(before) and rest.endswith(frame.rest)):
            raise DataError(explain_other_beginning(before, whole))
        text = rest[: len(rest) - len(frame.rest)]
        is_framed = text.startswith(frame.between)
        text = text.removeprefix(frame.between)
        last = messages[number]
        self.chat.check_no_own_tokens(text, last.content, number=number, role=last.role)
        return self._encode(text, frame, before=frame.between if is_framed else "")

    def _get_frame(self) -> AnswerFrame:
        """What is around an answer that is to be written."""
        assert self.frame is not None  # noqa: S101  # else no answer is written
        return self.frame

    def _encode(self, text: str, frame: AnswerFrame, *, before: str) -> tuple[int, ...]:
        """The ids of a text behind the beginning of the assistant's turn.

        It is tokenised together with the text before it, as transformers does. Where the two share
        a token, it is tokenised alone, since the row before it is what a prediction is made of.
        """
        context = (Literal(frame.prompt), *self.places.answer)
        context = tuple(Literal("a") if isinstance(p, Field) else p for p in context)
        own = (Literal(before), Field(_ANSWER), Literal(frame.tail))
        head = self._get_renderer(context).render({}).input_ids
        ids = self._get_renderer((*context, *own)).render({_ANSWER: text}).input_ids
        if ids[: len(head)] != head:
            head, ids = (), self._get_renderer(own).render({_ANSWER: text}).input_ids
        return ids[len(head) : len(ids) - (frame.end is not None)]

    def _get_renderer(self, pieces: tuple[Piece, ...]) -> Renderer:
        """The renderer of a part of a row, of any length."""
        if pieces not in self.layouts:
            self.layouts[pieces] = _Layout((), self._make_renderer(pieces, max_length=_UNLIMITED))
        return self.layouts[pieces].renderer

    def _lay_out(
        self, messages: Sequence[Message], row: Mapping[str, object], *, continues: bool
    ) -> tuple[_Layout, Mapping[str, object]]:
        """The layout of a conversation, and the values of its fields."""
        is_added = self.places.has_system and (not messages or messages[0].role != SYSTEM)
        turns = [Message(SYSTEM, make_marks(1)[0]), *messages] if is_added else [*messages]
        roles = tuple(turn.role for turn in turns)
        key = (roles, is_added, continues)
        if (layout := self.layouts.get(key)) is None:
            if len(self.layouts) >= _MOST_LAYOUTS:
                self.layouts.clear()
            parts = self.chat.divide(roles, continues=continues)
            pieces = self._list_pieces(parts, roles, is_added=is_added)
            renderer = self._make_renderer(pieces, max_length=self.max_length)
            layout = self.layouts[key] = _Layout(parts, renderer)
        contents = self.chat.read_contents(turns, layout.parts, continues=continues)
        values = {self._name(number): text for number, text in enumerate(contents)}
        return layout, {**row, **values}

    def _list_pieces(
        self, parts: Sequence[ChatPart], roles: Sequence[str], *, is_added: bool
    ) -> list[Piece]:
        """The parts of a conversation with the template's pieces in their places."""
        places, pieces = self.places, list[Piece]()
        last = find_last_user(roles)
        for part in parts:
            if isinstance(part, str):
                pieces += [Literal(part)]
            elif roles[part] == SYSTEM and not part:
                text = () if is_added else (Field(self._name(part)),)
                pieces += [*places.system, *text, *places.system_end]
            else:
                own = places.user if part == last else ()
                pieces += [*own, Field(self._name(part))]
        return [*self._insert_start(pieces), *places.answer]

    def _insert_start(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces with those of the start, behind the token that begins every text."""
        begin, start = self.chat.find_begin_token(), self.places.start
        match pieces:
            case [Literal(text), *others] if begin and text.startswith(begin):
                return [Literal(begin), *start, Literal(text.removeprefix(begin)), *others]
            case _:
                return [*start, *pieces]

    def _make_renderer(self, pieces: Sequence[Piece], *, max_length: int) -> Renderer:
        """A renderer of these pieces, without the tokens that the tokenizer would add."""
        filled = tuple(p for p in pieces if p != Literal(""))
        template = Template(self.template.text, filled)
        segments = lay_out(
            template,
            self.safe_tokenizer,
            wrapping=_NO_WRAPPING,
            first_soft_id=self.vocab_size,
            mask=FixedTokens(()),
            closed=False,
        )
        return Renderer(
            template, self.tokenizer, self.vocab_size, max_length, self.safe_tokenizer, segments
        )

    def _name(self, number: int) -> str:
        """The name of a message's text among the fields of a row."""
        return f"{self.column}[{number}]"


# What renders the rows of a task.
RowRenderer: TypeAlias = Renderer | ChatRenderer


def make_chat_renderer(
    template: Template,
    chat: ChatTemplate,
    *,
    column: str,
    vocab_size: int,
    max_length: int,
    writes_answer: bool,
) -> ChatRenderer:
    """Make a renderer of conversations, and check that the template fits the tokenizer.

    Args:
        template: what a row looks like; it names the messages once.
        chat: the backbone's chat template.
        column: of the messages.
        vocab_size: V, the rows of the backbone's embedding table; soft token k becomes V + k.
        max_length: the most tokens of a row, without those of its answer.
        writes_answer: whether the assistant's last turn is to be written.

    Returns:
        The renderer.

    Raises:
        TemplateError: the tokenizer is not a fast one; the template does not name the messages
            once; or the chat template is of no use for answers.
    """
    places, safe = find_chat_places(template, column), make_safe_tokenizer(chat.tokenizer)
    return ChatRenderer(
        template,
        column,
        places,
        chat,
        vocab_size,
        max_length,
        safe,
        find_frame(chat, safe) if writes_answer else None,
    )
