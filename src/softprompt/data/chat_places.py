"""The places of a conversation that a template can name, and what it puts there."""

from dataclasses import dataclass

from softprompt.data.template import (
    SYSTEM_TURN,
    USER_TURN,
    BeginToken,
    Field,
    MaskToken,
    Piece,
    Separator,
    SoftTokens,
    Template,
    TurnText,
)
from softprompt.errors import TemplateError


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
    system, user = turns.get(SYSTEM_TURN), turns.get(USER_TURN)
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
