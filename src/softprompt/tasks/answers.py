"""The answers of text generation: which tokens an answer has, and which answer tokens are.

Text does not survive every tokenizer: T5's writes two spaces as one and braces not at all. So what
is generated is compared with a choice or a target by its tokens, and only then by its text.
"""

from collections import Counter
from collections.abc import Sequence

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from softprompt.data.tokenizer import TextEncoder
from softprompt.errors import DataError


class Answers:
    """Converts answers to tokens, and tokens to answers.

    Args:
        encoder: of the backbone.
        continue_rows: whether an answer continues its row, as on a causal backbone: a space stands
            before it.
        choices: the possible answers; empty for any text.

    Attributes:
        choice_ids: the tokens of every choice.

    Raises:
        DataError: there is only one choice, or two have the same tokens.
        TemplateError: the tokenizer makes an id that the embedding table does not have.
    """

    def __init__(
        self, encoder: TextEncoder, *, continue_rows: bool, choices: Sequence[str] = ()
    ) -> None:
        self._encoder = encoder
        self._tokenizer = encoder.tokenizer.head
        self._continue_rows = continue_rows
        self.choice_ids = tuple(self.encode(choice) for choice in choices)
        _check_distinct(choices, self.choice_ids)
        self._by_ids = dict(zip(self.choice_ids, choices, strict=True))
        # Other tokens may have the same text. If several choices have it, it names no choice.
        texts = [decode_text(self._tokenizer, ids) for ids in self.choice_ids]
        count = Counter(texts)
        spelt = {t: c for t, c in zip(texts, choices, strict=True) if t and count[t] == 1}
        self._by_text = spelt | {choice: choice for choice in choices}

    def encode(self, answer: str) -> tuple[int, ...]:
        """The tokens of an answer, without the end token.

        Raises:
            DataError: the answer has half a character.
            TemplateError: the tokenizer makes an id that the embedding table does not have.
        """
        space = " " if self._continue_rows and answer[:1].strip() else ""
        return self._encoder.encode(space + answer)

    def decode(self, ids: Sequence[int]) -> str:
        """The choice with these tokens or their text; otherwise the text."""
        choice = self._by_ids.get(tuple(ids))
        return self.read(self.spell(ids)) if choice is None else choice

    def spell(self, ids: Sequence[int]) -> str:
        """The text of these tokens, with the space around it."""
        return spell_tokens(self._tokenizer, ids)

    def read(self, text: str) -> str:
        """The choice with this text; otherwise the text, without the space around it."""
        text = text.strip()
        return self._by_text.get(text, text)


def spell_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of generated tokens as they spell it, without special tokens."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


def decode_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of generated tokens without the space around it."""
    return spell_tokens(tokenizer, ids).strip()


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
