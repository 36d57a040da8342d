"""Find the column of conversations in a table, and draft the keys of their task."""

import json
from collections.abc import Iterator, Mapping, Sequence
from math import ceil

from softprompt.data import Table
from softprompt.data.messages import SYSTEM, read_answer, read_messages
from softprompt.data.table import is_missing
from softprompt.errors import DataError
from softprompt.recipe.column_roles import ColumnRoles
from softprompt.recipe.drafted_backbones import BackboneInfo

# Usual names, the most certain first.
_NAMES = ("messages", "conversation", "conversations", "chat", "dialogue")
_KEYS = ({"role", "content"}, {"from", "value"})


def describe_conversations(table: Table, source: str) -> ColumnRoles | None:
    """The roles of a table whose rows are conversations.

    Args:
        table: the training data.
        source: the name of the table in messages.

    Returns:
        The roles; None if no column has conversations.

    Raises:
        DataError: a conversation cannot be read, or does not end with an answer.
    """
    found = [name for name in table.column_names if _has_conversations(table, name)]
    if not found:
        return None
    name = min(found, key=lambda one: _NAMES.index(one) if one in _NAMES else len(_NAMES))
    cells = table[name][:]
    answers = [_read_answer(cell, index, name, source) for index, cell in enumerate(cells)]
    several = sum(_count_answers(cell) > 1 for cell in cells)
    unused = tuple(other for other in table.column_names if other != name)
    note = (
        f"column {name!r} has conversations, whose last answer is to be written: kind = "
        '"generate", by the chat template of the backbone'
    )
    notes = [note]
    if several:
        notes.append(
            f"{several:,} of {len(table):,} conversations have several answers: see train_on in "
            "the recipe"
        )
    if unused:
        noun = "column" if len(unused) == 1 else "columns"
        notes.append(f"the recipe does not use the {noun} {', '.join(map(repr, unused))}")
    return ColumnRoles(
        name,
        (),
        (name,),
        group=None,
        rows=len(table),
        unused=unused,
        notes=(*notes,),
        max_new_tokens=min(256, 16 * max(1, ceil(max(map(len, answers)) / 32))),
        kind="generate",
    )


def check_chat(backbone: BackboneInfo, name: str) -> None:
    """Check that a backbone takes conversations.

    Args:
        backbone: the facts about it.
        name: as it was given.

    Raises:
        DataError: it has no chat template.
    """
    if not backbone.turns:
        msg = (
            f"{name} has no chat template for conversations. Choose a backbone that was trained "
            "on conversations by --backbone, such as builtin:smollm2-135m-instruct."
        )
        raise DataError(msg)


def draft_chat_template(column: str, backbone: BackboneInfo) -> str:
    """Soft tokens in the system turn, or before the answer where there is no such turn.

    Args:
        column: of the conversations.
        backbone: the facts about it.
    """
    if SYSTEM in backbone.turns:
        return f"{{soft:10}}{{{column}:system}}{{{column}}}"
    return f"{{{column}}}{{soft:10}}"


def list_chat_keys(columns: ColumnRoles) -> Iterator[tuple[str, object, str]]:
    """The keys of the task, each with its value and a comment.

    Args:
        columns: of the table.
    """
    yield "messages_column", columns.label, "lists of role and content; the last is learned"
    yield "train_on", "last", "the last answer; or all"
    yield "max_new_tokens", columns.max_new_tokens, "longer answers are cut"


def _has_conversations(table: Table, name: str) -> bool:
    """Whether the first cell that there is has messages."""
    cells = (value for value in table[name][:] if not is_missing(value))
    first: object = next(cells, None)
    if isinstance(first, str) and first.lstrip().startswith("["):
        try:
            first = json.loads(first)
        except (ValueError, RecursionError):
            return False
    if not isinstance(first, Sequence) or isinstance(first, str) or not first:
        return False
    return all(isinstance(one, Mapping) and any(k <= {*one} for k in _KEYS) for one in first)


def _read_answer(cell: object, index: int, name: str, source: str) -> str:
    try:
        return read_answer(cell)
    except DataError as error:
        msg = f"row {index} (counted from 0) of {source}, column {name!r}: {error}"
        raise DataError(msg) from error


def _count_answers(cell: object) -> int:
    return sum(message.role == "assistant" for message in read_messages(cell))
