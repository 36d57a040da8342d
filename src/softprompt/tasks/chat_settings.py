"""Settings of conversations, and what they mean nothing without."""

from softprompt.errors import TemplateError
from softprompt.tasks.config import Classify, Generate, TaskSettings, get_messages_column


def check_chat_settings(settings: TaskSettings) -> None:
    """Check that settings of conversations are those of a task whose rows are conversations.

    Args:
        settings: of the task.

    Raises:
        TemplateError: one of them has no meaning.
    """
    if not isinstance(settings, Classify | Generate):
        return
    if get_messages_column(settings) is None:
        given = {"chat_template_kwargs": settings.chat_template_kwargs is not None}
        if isinstance(settings, Generate):
            given["train_on"] = settings.train_on != Generate.train_on
        name = next((name for name, is_given in given.items() if is_given), None)
        if name is not None:
            msg = (
                f"task.{name} is of conversations, but task.messages_column is missing. Name their "
                f"column, or take {name} out."
            )
            raise TemplateError(msg)
    elif isinstance(settings, Generate) and settings.target_column != Generate.target_column:
        msg = (
            f"task.target_column is {settings.target_column!r}, but the answer to a conversation "
            "(task.messages_column) is its last message. Take target_column out."
        )
        raise TemplateError(msg)
