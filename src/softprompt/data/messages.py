"""Messages: the turns of a conversation, as rows hold them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from softprompt.errors import DataError, format_unknown

ROLES = ("system", "user", "assistant")
SYSTEM, USER, ASSISTANT = ROLES
# The keys of ShareGPT's conversations, and its names of roles.
_FOREIGN_KEYS = {"from": "role", "value": "content"}
_FOREIGN_ROLES = {"human": USER, "gpt": ASSISTANT}
# What other libraries write beside role and content without a meaning for text.
_IGNORED_KEYS = {"weight"}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Args:
        role: ``system``, ``user`` or ``assistant``; the server's conversations may have others.
        content: its text.
    """

    role: str
    content: str


def read_messages(cell: object) -> tuple[Message, ...]:
    """Read the messages of a conversation.

    Args:
        cell: a list of mappings with ``role`` and ``content``, as transformers' chat templates
            take them; the same as JSON text; or with ``from`` and ``value``, as in ShareGPT's
            files, whose ``human`` is the user and ``gpt`` the assistant.

    Returns:
        The messages.

    Raises:
        DataError: it is not such a list, a role is not known, a message has something else than a
            text, one of the user or the assistant is empty, a system turn is not the first, or
            there is no user turn.

    Examples:
        >>> read_messages([{"role": "user", "content": "Is it good?"}])
        (Message(role='user', content='Is it good?'),)
    """
    items = _parse(cell) if isinstance(cell, str) else cell
    if not isinstance(items, list | tuple) or not items:
        msg = (
            f"a conversation is a list of messages, not {_shorten(cell)}. Write "
            '[{"role": "user", "content": "…"}, …].'
        )
        raise DataError(msg)
    messages = tuple(_read_message(item, number) for number, item in enumerate(items))
    for number, message in enumerate(messages):
        if message.role == SYSTEM and number:
            msg = (
                f"message {number} (counted from 0) has the role 'system', but a system turn is "
                "the first of a conversation. Move its text there."
            )
            raise DataError(msg)
    if not any(message.role == USER for message in messages):
        msg = (
            "the conversation has no message of the role 'user', so there is nothing to answer. "
            "Leave the row out."
        )
        raise DataError(msg)
    return messages


def find_last_user(roles: Sequence[str]) -> int:
    """The index of the last user turn; -1 if there is none.

    Args:
        roles: of the messages of a conversation.
    """
    return max((number for number, role in enumerate(roles) if role == USER), default=-1)


def drop_answer(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages without the answer: an assistant's turn at their end.

    Args:
        messages: of a conversation.
    """
    is_answered = bool(messages) and messages[-1].role == ASSISTANT
    return tuple(messages[:-1] if is_answered else messages)


def read_answer(cell: object) -> str:
    """The text of the last turn, the assistant's.

    Args:
        cell: of messages.

    Raises:
        DataError: the last turn is another one's.
    """
    last = read_messages(cell)[-1]
    if last.role != ASSISTANT:
        msg = (
            f"the last message has the role {last.role!r}, so the conversation has no answer to "
            "learn or to compare with. End it with a message of the role 'assistant', or leave the "
            "row out."
        )
        raise DataError(msg)
    return last.content


def list_shortened(messages: Sequence[Message]) -> list[tuple[Message, ...]]:
    """The conversation, then without its oldest turns, up to each later user turn.

    The system turn and the last user turn are in all of them.

    Args:
        messages: of a conversation.
    """
    head = tuple(messages[:1]) if messages and messages[0].role == SYSTEM else ()
    last = find_last_user([message.role for message in messages])
    begins = [n for n, m in enumerate(messages) if m.role == USER and len(head) < n <= last]
    return [tuple(messages), *((*head, *messages[n:]) for n in begins)]


def _parse(text: str) -> object:
    try:
        parsed: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed


def _read_message(item: object, number: int) -> Message:
    where = f"message {number} (counted from 0)"
    if not isinstance(item, Mapping):
        msg = f'{where} is not a mapping. Write {{"role": "user", "content": "…"}}.'
        raise DataError(msg)
    known = {_FOREIGN_KEYS.get(str(key), str(key)): value for key, value in item.items()}
    role, content = known.pop("role", None), known.pop("content", None)
    if isinstance(role, str):
        role = _FOREIGN_ROLES.get(role, role)
    if not isinstance(role, str) or role not in ROLES:
        msg = f"{where}: {format_unknown('role', str(role), options=ROLES)}"
        raise DataError(msg)
    if not isinstance(content, str):
        msg = (
            f"{where} has {_shorten(content)} as its content, but only text can be read. Give it a "
            "text, or leave the row out."
        )
        raise DataError(msg)
    if role != SYSTEM and not content.strip():
        msg = (
            f"{where} has the role {role!r}, but its content is empty. Give it a text, or leave "
            "the row out."
        )
        raise DataError(msg)
    others = [key for key, value in known.items() if value and key not in _IGNORED_KEYS]
    if others:
        msg = (
            f"{where} has the key {others[0]!r}, but only role and content are read. Write what "
            "counts into the content, or leave the row out."
        )
        raise DataError(msg)
    return Message(role, content)


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"  # noqa: PLR2004  # characters of a message
