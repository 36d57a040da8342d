"""Conversations as rows: the backbone's chat template around messages, with soft tokens in it.

A template names the column of the messages and the places of soft tokens and of text: before all
turns, in the system turn, before the last user turn's text, or where the answer begins.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from transformers import PreTrainedTokenizerBase

from softprompt.data.chat_template import (
    ChatPart,
    ChatTemplate,
    fill_parts,
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
from softprompt.data.template import (
    SYSTEM_TURN,
    BeginToken,
    Field,
    Literal,
    MaskToken,
    Piece,
    Separator,
    SoftTokens,
    Template,
    TurnText,
)
from softprompt.data.shortening import is_long
from softprompt.data.tokenizer import SafeTokenizer, Wrapping, make_safe_tokenizer
from softprompt.errors import DataError, TemplateError, format_unknown

# No special tokens are added: a chat template writes them itself.
_NO_WRAPPING = Wrapping(((), ()), ((), ()), (0,))
_UNLIMITED = 1 << 20
# More are not remembered: there is one for each sequence of roles.
_MOST_LAYOUTS = 4096
_ANSWER = "answer"


@dataclass(frozen=True)
class ChatPlaces:
    """What a template puts into a conversation, by place.

    Args:
        start: before all turns.
        system: at the beginning of the system turn's text, which is added where a row has none.
        system_end: at the end of that text.
        user: before the last user turn's text.
        answer: behind everything, where the answer begins.
    """

    start: tuple[Piece, ...] = ()
    system: tuple[Piece, ...] = ()
    system_end: tuple[Piece, ...] = ()
    user: tuple[Piece, ...] = ()
    answer: tuple[Piece, ...] = ()

    @property
    def has_loose_text(self) -> bool:
        """Whether there is text before all turns."""
        return not all(isinstance(piece, SoftTokens) for piece in self.start)

    @property
    def has_system(self) -> bool:
        """Whether there is something in the system turn."""
        return bool(self.system or self.system_end)


@dataclass(frozen=True, eq=False)
class _Layout:
    """The conversations of some roles: the template's own text and the renderer of the rows."""

    parts: tuple[ChatPart, ...]
    renderer: Renderer


@dataclass(frozen=True)
class AnswerFrame:
    """What a chat template writes around an answer.

    Args:
        prompt: how the text before it ends, from its last special token on.
        between: behind the beginning of the assistant's turn, before the answer.
        tail: behind the answer, up to its first special token, which ends the turn.
        end: that token; None if there is none.
        rest: all that is behind the answer.
    """

    prompt: str
    between: str
    tail: str
    end: int | None
    rest: str


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
        writes_answer: whether the assistant's last turn is to be written: then it is left out, and
            a row ends where it begins. Otherwise it is a part of the row.
        frame: what the chat template writes around an answer.
        layouts: by roles, filled as rows are rendered.
    """

    template: Template
    column: str
    places: ChatPlaces
    chat: ChatTemplate
    vocab_size: int
    max_length: int
    safe_tokenizer: SafeTokenizer
    writes_answer: bool
    frame: AnswerFrame
    layouts: dict[tuple[object, ...], _Layout] = field(default_factory=dict, repr=False)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer."""
        return self.chat.tokenizer

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """The token that ends the assistant's turn; empty if the chat template has none."""
        return () if self.frame.end is None else (self.frame.end,)

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
        kept = drop_answer(messages) if self.writes_answer else messages
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
        return self._encode(text, before=self.frame.between)

    def strip_frame(self, text: str) -> str:
        """The text of an answer without what the chat template writes before it.

        Args:
            text: that was generated.
        """
        between = self.frame.between
        for name in self.safe_tokenizer.specials:
            between = between.replace(name, "")
        return text.strip().removeprefix(between.strip()).strip()

    def _read_answer(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The ids of the last message as the chat template writes it behind the others."""
        number, frame = len(messages) - 1, self.frame
        before = self.chat.write(messages[:number], continues=True)
        whole = self.chat.write(messages, continues=False)
        rest = whole.removeprefix(before)
        if not (whole.startswith(before) and rest.endswith(frame.rest)):
            raise DataError(_explain_other_beginning(before, whole))
        text = rest[: len(rest) - len(frame.rest)]
        is_framed = text.startswith(frame.between)
        text = text.removeprefix(frame.between)
        last = messages[number]
        self.chat.check_no_own_tokens(text, last.content, number=number, role=last.role)
        return self._encode(text, before=frame.between if is_framed else "")

    def _encode(self, text: str, *, before: str) -> tuple[int, ...]:
        """The ids of a text behind the beginning of the assistant's turn.

        It is tokenised together with the text before it, as transformers does. Where the two share
        a token, it is tokenised alone, since the row before it is what a prediction is made of.
        """
        context = (Literal(self.frame.prompt), *self.places.answer)
        context = tuple(Literal("a") if isinstance(p, Field) else p for p in context)
        own = (Literal(before), Field(_ANSWER), Literal(self.frame.tail))
        head = self._get_renderer(context).render({}).input_ids
        ids = self._get_renderer((*context, *own)).render({_ANSWER: text}).input_ids
        if ids[: len(head)] != head:
            head, ids = (), self._get_renderer(own).render({_ANSWER: text}).input_ids
        return ids[len(head) : len(ids) - (self.frame.end is not None)]

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
        begin, start = self.tokenizer.bos_token, self.places.start
        match pieces:
            case [Literal(text), *others] if begin and text.startswith(str(begin)):
                rest = Literal(text.removeprefix(str(begin)))
                return [Literal(str(begin)), *start, rest, *others]
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
        writes_answer,
        find_frame(chat, safe),
    )


def find_chat_places(template: Template, column: str) -> ChatPlaces:
    """Find what a template puts into a conversation.

    Args:
        template: such as ``{soft:10}{messages:system}{messages}``.
        column: of the messages.

    Returns:
        The pieces, by place.

    Raises:
        TemplateError: it does not name the messages once, or names turns in another order.
    """
    pieces, where = template.pieces, f"the template {template.text!r}"
    named = [at for at, piece in enumerate(pieces) if piece == Field(column)]
    if len(named) != 1:
        count = f"{len(named)} times" if named else "not at all"
        msg = (
            f"{where} names the conversation {{{column}}} (task.messages_column) {count}. Name it "
            f"once, such as {{{column}}}{{soft:10}}."
        )
        raise TemplateError(msg)
    (at,) = named
    _check_chat_pieces(template, column)
    turns = {piece.turn: n for n, piece in enumerate(pieces) if isinstance(piece, TurnText)}
    system, user = turns.get(SYSTEM_TURN), turns.get("user")
    if (system or 0) > at or (user is not None and user < at):
        msg = (
            f"{where} has its places in another order than a conversation: {{{column}:system}} "
            f"comes before {{{column}}}, and {{{column}:user}}, the last user turn, behind it."
        )
        raise TemplateError(msg)
    end = len(pieces) if user is None else user
    behind = pieces[at + 1 : end] if user is not None else ()
    answer = pieces[at + 1 :] if user is None else pieces[end + 1 :]
    if system is not None:
        return ChatPlaces((), pieces[:system], pieces[system + 1 : at], behind, answer)
    return ChatPlaces(pieces[:at], (), (), behind, answer)


def _check_chat_pieces(template: Template, column: str) -> None:
    turns = [piece for piece in template.pieces if isinstance(piece, TurnText)]
    foreign = next((piece.name for piece in turns if piece.name != column), None)
    if foreign is not None:
        fault = f"names a turn of {foreign!r}, but task.messages_column is {column!r}"
    elif len({piece.turn for piece in turns}) < len(turns):
        fault = "names a turn twice"
    elif any(isinstance(p, MaskToken | Separator | BeginToken) for p in template.pieces):
        fault = "has {mask}, {sep} or {bos}, which a conversation has no place for"
    else:
        return
    msg = f"the template {template.text!r} {fault}. Correct it."
    raise TemplateError(msg)


def find_frame(chat: ChatTemplate, tokenizer: SafeTokenizer) -> AnswerFrame:
    """Find what a chat template writes around an answer.

    Args:
        chat: the template.
        tokenizer: the backbone's.

    Returns:
        The texts, and the token that ends the turn.

    Raises:
        TemplateError: the template does not begin an answer as it ends a row to be answered, or
            does not take a user turn with an answer.
    """
    try:
        prompt = chat.divide((USER,), continues=True)
        whole = chat.divide((USER, ASSISTANT), continues=False)
    except DataError as error:
        raise TemplateError(str(error)) from error
    marks = make_marks(2)
    before, text = fill_parts(prompt, marks), fill_parts(whole, marks)
    if not text.startswith(before):
        raise TemplateError(_explain_other_beginning(before, text))
    between, _, rest = text.removeprefix(before).partition(marks[1])
    tail, end = _cut_behind_special(rest, tokenizer)
    last = prompt[-1] if prompt and isinstance(prompt[-1], str) else ""
    return AnswerFrame(_cut_before_special(last, tokenizer), between, tail, end, rest)


def _cut_behind_special(text: str, tokenizer: SafeTokenizer) -> tuple[str, int | None]:
    """A text up to its first special token, and that token."""
    found = [(text.find(name), -len(name), name) for name in tokenizer.specials if name in text]
    if not found:
        return "", None
    at, _, name = min(found)
    return text[: at + len(name)], tokenizer.specials[name].id


def _cut_before_special(text: str, tokenizer: SafeTokenizer) -> str:
    """A text from its last special token on; all of it if there is none."""
    found = [(text.rfind(name), len(name)) for name in tokenizer.specials if name in text]
    return text[max(found)[0] :] if found else text


def _explain_other_beginning(before: str, whole: str) -> str:
    """Why an answer cannot be told from what comes before it."""
    pairs = enumerate(zip(before, whole, strict=False))
    same = next((at for at, (a, b) in pairs if a != b), min(len(before), len(whole)))
    start = max(0, same - 20)
    return (
        f"the backbone's chat template ends a row to be answered with {before[start:][:60]!r}, but "
        f"writes {whole[start:][:60]!r} where it has the answer, so what is trained would not be "
        "what is predicted. Set task.chat_template_kwargs, such as { enable_thinking = false }, "
        "or choose another backbone."
    )
