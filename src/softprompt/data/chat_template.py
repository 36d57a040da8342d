"""A backbone's own chat template: the text around that of messages.

The template is a program, which may change texts, leave turns out, or add some. So it is never
searched for words: it is filled once with marks in place of the texts, which divides what it writes
into its own text and places, and once with the texts, to see whether it writes them as they are.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

from transformers import PreTrainedTokenizerBase

from softprompt.data.messages import ASSISTANT, SYSTEM, USER, Message
from softprompt.data.tokenizer import list_special_tokens
from softprompt.errors import DataError, TemplateError

# Stand for the text of a message; of private use, so that no text has them.
_MARK = "\ue000{}\ue001"
_MARKED = re.compile("\ue000([0-9]+)\ue001")

ChatPart = str | int


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """A tokenizer's chat template; made by :func:`make_chat_template`.

    Args:
        tokenizer: of the backbone.
        options: further variables of the template, such as Qwen 3's ``enable_thinking``.
    """

    tokenizer: PreTrainedTokenizerBase
    options: Mapping[str, object]

    def write(self, messages: Sequence[Message], *, continues: bool) -> str:
        """The text of a conversation.

        Args:
            messages: of the conversation.
            continues: whether the beginning of the assistant's next turn follows.

        Raises:
            DataError: the template refuses the messages.
        """
        plain = [{"role": m.role, "content": m.content} for m in messages]
        options: dict[str, Any] = dict(self.options)
        try:
            text = self.tokenizer.apply_chat_template(
                plain, tokenize=False, add_generation_prompt=continues, **options
            )
        except Exception as error:  # templates raise errors of their own
            reason = str(error).rstrip(".") or type(error).__name__
            roles = ", ".join(message.role for message in messages)
            msg = (
                f"the backbone's chat template refuses a conversation of the turns {roles}: "
                f"{reason}. Change the messages to turns that it takes, or leave the row out."
            )
            raise DataError(msg) from error
        return str(text)

    def divide(self, roles: Sequence[str], *, continues: bool) -> tuple[ChatPart, ...]:
        """What the template writes for some turns: its own text, and the numbers of messages.

        Args:
            roles: of the messages.
            continues: as in `write`.

        Raises:
            DataError: the template refuses the messages, or does not write each text once.
        """
        marked = [Message(role, _MARK.format(number)) for number, role in enumerate(roles)]
        split = _MARKED.split(self.write(marked, continues=continues))
        parts = tuple(int(part) if at % 2 else part for at, part in enumerate(split))
        numbers = [part for part in parts if isinstance(part, int)]
        for number, role in enumerate(roles):
            if numbers.count(number) != 1:
                how = "twice" if number in numbers else "not at all"
                msg = (
                    f"the backbone's chat template writes the text of message {number} (counted "
                    f"from 0, of the role {role!r}) {how}. Leave such turns out, or choose another "
                    "backbone."
                )
                raise DataError(msg)
        return parts

    def read_contents(
        self, messages: Sequence[Message], parts: Sequence[ChatPart], *, continues: bool
    ) -> tuple[str, ...]:
        """The text of each message as the template writes it, which may shorten or trim it.

        Args:
            messages: of the conversation.
            parts: of their roles, by `divide`.
            continues: as in `write`.

        Raises:
            DataError: what the template writes around a text depends on that text.
        """
        contents = tuple(message.content for message in messages)
        whole = self.write(messages, continues=continues)
        if fill_parts(parts, contents) == whole:
            return contents
        changed = tuple(
            self._read_content(messages, number, parts, continues=continues)
            for number in range(len(messages))
        )
        if fill_parts(parts, changed) != whole:
            msg = (
                "the backbone's chat template writes the text of one message by that of another, "
                "so that it cannot be distinguished from the template's own. Leave the row out, or "
                "choose another backbone."
            )
            raise DataError(msg)
        return changed

    def _read_content(
        self,
        messages: Sequence[Message],
        number: int,
        parts: Sequence[ChatPart],
        *,
        continues: bool,
    ) -> str:
        """The text of one message as the template writes it, found between marks of the others."""
        marked = [
            message if at == number else Message(message.role, _MARK.format(at))
            for at, message in enumerate(messages)
        ]
        text, at = self.write(marked, continues=continues), [*parts].index(number)
        marks = make_marks(len(messages))
        before, after = fill_parts(parts[:at], marks), fill_parts(parts[at + 1 :], marks)
        content = messages[number].content
        fits = len(text) >= len(before) + len(after)
        if not (fits and text.startswith(before) and text.endswith(after)):
            raise DataError(_explain_changed(messages[number].role, number))
        found = text[len(before) : len(text) - len(after)]
        self.check_no_own_tokens(found, content, number=number, role=messages[number].role)
        return found

    def check_no_own_tokens(self, found: str, content: str, *, number: int, role: str) -> None:
        """Check that the template has put no special token into a text.

        Args:
            found: the text as the template writes it.
            content: of the message.
            number: of the message, for the error.
            role: of the message, for the error.

        Raises:
            DataError: it has.
        """
        names = list_special_tokens(self.tokenizer)
        if any(found.count(name) > content.count(name) for name in names):
            raise DataError(_explain_changed(role, number))

    def find_begin_token(self) -> str:
        """The token that begins every text; empty if there is none, or if it begins every turn."""
        token = str(self.tokenizer.bos_token or "")
        text = self.write([Message(USER, make_marks(1)[0])], continues=True)
        return token if token and text.startswith(token) and text.count(token) == 1 else ""

    def find_default_turn(self) -> str:
        """The text of the system turn that the template adds where there is none; often empty."""
        try:
            with_turn = self.divide((SYSTEM, USER), continues=False)
            without = fill_parts(self.divide((USER,), continues=False), make_marks(1))
        except DataError:  # it takes no system turn
            return ""
        if [part for part in with_turn if isinstance(part, int)] != [0, 1]:
            return ""
        at = with_turn.index(0)
        before = fill_parts(with_turn[:at], ())
        after = fill_parts(
            [0 if part == 1 else part for part in with_turn[at + 1 :]], make_marks(1)
        )
        fits = len(without) > len(before) + len(after)
        if not (fits and without.startswith(before) and without.endswith(after)):
            return ""
        return without[len(before) : len(without) - len(after)]

    def describe(self, *, column: str, has_system: bool) -> Iterator[str]:
        """What the template adds by itself, and what it lacks, a sentence each.

        Args:
            column: of the messages, as rows name it.
            has_system: whether every conversation has a system turn.
        """
        default = self.find_default_turn().strip()
        if default and not has_system:
            yield (
                "the backbone's chat template adds a system turn where a conversation has none: "
                f"{default!r}. Give conversations one of their own, or write its text before "
                f"{{{column}:system}} in task.template, if it is not meant."
            )
        if not self.has_answer_beginning:
            yield (
                "the backbone's chat template does not write how the assistant's turn begins "
                "(add_generation_prompt has no effect), so answers begin with what it writes "
                "there. Check that this is the template that the backbone was trained with."
            )
        if "strftime_now" in str(self.tokenizer.chat_template):
            yield (
                "the backbone's chat template may write the day on which it runs, so rows differ "
                "from day to day. Fix it by task.chat_template_kwargs, such as "
                '{ date_string = "26 Jul 2024" }.'
            )

    @property
    def has_answer_beginning(self) -> bool:
        """Whether it writes the beginning of an answer, or no template text stands there."""
        prompt = fill_parts(self.divide((USER,), continues=True), make_marks(1))
        plain = fill_parts(self.divide((USER,), continues=False), make_marks(1))
        whole = fill_parts(self.divide((USER, ASSISTANT), continues=False), make_marks(2))
        between = whole.removeprefix(plain).partition(_MARK.format(1))[0]
        return prompt != plain or not between.strip()


def fill_parts(parts: Sequence[ChatPart], contents: Sequence[str]) -> str:
    """The text of parts, with contents in the places of messages.

    Args:
        parts: as `ChatTemplate.divide` returns them.
        contents: of the messages.
    """
    return "".join(part if isinstance(part, str) else contents[part] for part in parts)


def make_marks(count: int) -> list[str]:
    """Marks that stand for the texts of messages.

    Args:
        count: of the messages.
    """
    return [_MARK.format(number) for number in range(count)]


def make_chat_template(
    tokenizer: PreTrainedTokenizerBase, options: Mapping[str, object] | None = None
) -> ChatTemplate:
    """Make the chat template of a tokenizer.

    Args:
        tokenizer: of the backbone.
        options: further variables of the template.

    Returns:
        The template.

    Raises:
        TemplateError: the tokenizer has none, or an option is not a variable of templates.
    """
    if not tokenizer.chat_template:
        msg = (
            "the backbone has no chat template, so it was not trained on conversations "
            "(task.messages_column). Choose one that was, such as "
            "builtin:smollm2-135m-instruct, or write rows of text with a template of their own."
        )
        raise TemplateError(msg)
    own = [
        name
        for name in options or {}
        if name in signature(tokenizer.apply_chat_template).parameters
    ]
    if own:
        msg = (
            f"task.chat_template_kwargs has {own[0]!r}, an argument of transformers and no "
            "variable of a chat template. Leave it out."
        )
        raise TemplateError(msg)
    return ChatTemplate(tokenizer, dict(options or {}))


def _explain_changed(role: str, number: int) -> str:
    return (
        f"the backbone's chat template writes message {number} (counted from 0, of the role "
        f"{role!r}) in another form because of its text, so that the text cannot be distinguished "
        "from the template's own. Change that text, or leave the row out."
    )
