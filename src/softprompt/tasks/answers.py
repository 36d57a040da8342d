"""The answers of text generation: which tokens an answer has, and which answer tokens are.

Text does not survive every tokenizer: T5's writes two spaces as one and braces not at all. So what
is generated is compared with a choice or a target by its tokens, and only then by its text.
"""

from collections import Counter
from collections.abc import Sequence

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from softprompt.data.chats import ChatRenderer
from softprompt.data.tokenizer import TextEncoder
from softprompt.errors import DataError


class Answers:
    """Converts answers to tokens, and tokens to answers.

    Args:
        encoder: of the backbone.
        continue_rows: whether an answer continues its row, as on a causal backbone: a space stands
            before it.
        choices: the possible answers; empty for any text.
        chat: of the conversations that answers end, if rows are conversations.

    Attributes:
        choice_ids: the tokens of every choice.

    Raises:
        DataError: there is only one choice, or two have the same tokens.
        TemplateError: the tokenizer makes an id that the embedding table does not have.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        continue_rows: bool,
        choices: Sequence[str] = (),
        chat: ChatRenderer | None = None,
    ) -> None:
        self._encoder, self._chat = encoder, chat
        self._tokenizer = encoder.tokenizer.head
        self._continue_rows = continue_rows
        self.choice_ids = tuple(self.encode(choice) for choice in choices)
        _check_distinct(choices, self.choice_ids)
        self._by_ids = dict(zip(self.choice_ids, choices, strict=True))
        # Other tokens may have the same text. If several choices have it, it names no choice.
        texts = [self._read_ids(ids) for ids in self.choice_ids]
        count = Counter(texts)
        spelt = {t: c for t, c in zip(texts, choices, strict=True) if t and count[t] == 1}
        self._by_text = spelt | {choice: choice for choice in choices}

    def encode(self, answer: str) -> tuple[int, ...]:
        """The tokens of an answer, without the end token.

        Raises:
            DataError: the answer has half a character.
            TemplateError: the tokenizer makes an id that the embedding table does not have.
        """
        if self._chat is not None:
            return self._chat.encode_answer(answer)
        space = " " if self._continue_rows and answer[:1].strip() else ""
        return self._encoder.encode(space + answer)

    def decode(self, ids: Sequence[int]) -> str:
        """The choice with these tokens or their text; otherwise the text."""
        choice = self._by_ids.get(tuple(ids))
        return self.read(self.spell(ids)) if choice is None else choice

    def spell(self, ids: Sequence[int]) -> str:
        """The text of these tokens, with the space around it."""
        return spell_tokens(self._tokenizer, ids)

    def _read_ids(self, ids: Sequence[int]) -> str:
        """The text of tokens, whether it is a choice or not."""
        return self._trim(self.spell(ids))

    def _trim(self, text: str) -> str:
        """A text without the space around it, and without what a chat template writes before it."""
        return text.strip() if self._chat is None else self._chat.strip_frame(text)

    def read(self, text: str) -> str:
        """The choice with this text; otherwise the text, without the space around it."""
        text = self._trim(text)
        return self._by_text.get(text, text)


def spell_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of generated tokens as they spell it, without special tokens."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


def _check_distinct(choices: Sequence[str], answers: Sequence[tuple[int, ...]]) -> None:
    if len(choices) == 1:
        msg = (
            f"there is one choice, {choices[0]!r}, so there is nothing to choose from. List the "
            "others in choices too, or leave choices out for any text."
        )
        raise DataError(msg)
    first: dict[tuple[int, ...], str] = {}
    for choice, ids in zip(choices, answers, strict=True):
        other = first.get(ids)
        if other == choice:
            msg = f"the choice {choice!r} is in choices twice. Write it once."
            raise DataError(msg)
        if other is not None:
            msg = (
                f"the choices {other!r} and {choice!r} have the same tokens {list(ids)} with this "
                "tokenizer, so an answer could be either. Write both the same in the data "
                "(data.value_map) and in choices."
            )
            raise DataError(msg)
        first[ids] = choice
