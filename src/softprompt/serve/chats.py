"""Conversations of requests, and the renderer of those that the bare backbone answers."""

from collections.abc import Sequence

from softprompt.backbone.model import Backbone
from softprompt.data.chat_template import make_chat_template
from softprompt.data.chats import ChatRenderer, make_chat_renderer
from softprompt.data.messages import ASSISTANT, Message
from softprompt.data.template import parse_template
from softprompt.errors import TemplateError
from softprompt.serve.faults import ServingError
from softprompt.serve.messages import ChatMessage
from softprompt.tasks import Task

_FIELD = "messages"
# The engine refuses what is longer than the backbone's positions; no turn is left out.
_UNLIMITED = 1 << 20


def read_chat(messages: Sequence[ChatMessage], *, is_answered: bool = True) -> list[Message]:
    """The messages of a request.

    Args:
        messages: of the request.
        is_answered: whether the assistant's turn may be the last.

    Raises:
        ServingError: a part is not text, or there is an answer where one is to be written.
    """
    if not is_answered and messages[-1].role == ASSISTANT:
        msg = (
            "the last message has the role 'assistant', but that turn is to be written. End the "
            "conversation with a message of the role 'user'."
        )
        raise ServingError(msg, kind="invalid", param="messages")
    return [Message(message.role, message.text) for message in messages]


def find_messages_column(task: Task) -> str | None:
    """The column of a task's conversations; None if its rows are texts.

    Args:
        task: of a prompt.
    """
    renderer = task.renderers[0]
    return renderer.column if isinstance(renderer, ChatRenderer) else None


def make_bare_renderer(backbone: Backbone, name: str) -> ChatRenderer:
    """Make the renderer of conversations that the bare backbone answers.

    Args:
        backbone: that is served.
        name: of it, for the error.

    Raises:
        ServingError: the backbone has no chat template.
    """
    try:
        chat = make_chat_template(backbone.tokenizer)
    except TemplateError as error:
        msg = f"the backbone {name} has no chat template. Use /v1/completions, or name a prompt."
        raise ServingError(msg, kind="invalid", param="model") from error
    return make_chat_renderer(
        parse_template(f"{{{_FIELD}}}"),
        chat,
        column=_FIELD,
        vocab_size=backbone.geometry.vocab_size,
        max_length=_UNLIMITED,
        writes_answer=False,
    )
