"""What is analysed: a prompt, or an artifact or a model with one."""

from typing import TYPE_CHECKING

from softprompt.artifact import Artifact
from softprompt.errors import PromptError
from softprompt.prompt import InputPrompt, KVPrefix, Prompt

if TYPE_CHECKING:
    from softprompt.inference.model import PromptModel


def get_prompt(trained: "Prompt | Artifact | PromptModel") -> Prompt:
    """The prompt itself, of an artifact or of a model.

    Args:
        trained: any of them.

    Raises:
        PromptError: it is another value.
    """
    match trained:
        case InputPrompt() | KVPrefix():
            return trained
        case object(prompt=InputPrompt() | KVPrefix()):
            return trained.prompt
    msg = f"a {type(trained).__name__} has no prompt. Give a prompt, an artifact or a model."
    raise PromptError(msg)


def get_artifact(trained: "Prompt | Artifact | PromptModel") -> Artifact | None:
    """The artifact itself, also of a model.

    Args:
        trained: any of them.

    Returns:
        The artifact; None for a bare prompt.
    """
    match trained:
        case (Artifact() as artifact) | object(artifact=Artifact() as artifact):
            return artifact
        case _:
            return None
