"""What a chat template writes around an answer, and the token that ends it."""

from dataclasses import dataclass

from softprompt.data.chat_template import ChatTemplate, fill_parts, make_marks
from softprompt.data.messages import ASSISTANT, USER
from softprompt.data.tokenizer import SafeTokenizer
from softprompt.errors import DataError, TemplateError


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
        raise TemplateError(explain_other_beginning(before, text))
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


def explain_other_beginning(before: str, whole: str) -> str:
    """Why an answer cannot be distinguished from what comes before it.

    Args:
        before: the text of a row to be answered.
        whole: the text with the answer.
    """
    pairs = enumerate(zip(before, whole, strict=False))
    same = next((at for at, (a, b) in pairs if a != b), min(len(before), len(whole)))
    start = max(0, same - 20)
    return (
        f"the backbone's chat template ends a row to be answered with {before[start:][:60]!r}, but "
        f"writes {whole[start:][:60]!r} where it has the answer, so what is trained would not be "
        "what is predicted. Set task.chat_template_kwargs, such as { enable_thinking = false }, "
        "or choose another backbone."
    )
