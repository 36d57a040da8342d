"""Log-probabilities in the two forms that OpenAI's protocol has for them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from softprompt.inference.token_scores import TokenScores
from softprompt.tasks.generation import TextGenerator

# A token is spelt after so many others, since some tokenizers write it differently at the start.
_WINDOW = 4


class TokenNames:
    """The texts of tokens.

    Args:
        task: whose backbone has the tokens.
        by_id: whether tokens are named by their ids, as vLLM does it: ``token_id:7``.
    """

    def __init__(self, task: TextGenerator, *, by_id: bool) -> None:
        self._task, self._by_id = task, by_id

    def spell_next(self, before: Sequence[int], token: int) -> str:
        """The text that a token adds to those before it.

        Args:
            before: the tokens before it.
            token: the next one.
        """
        near = list(before[-_WINDOW:])
        known, now = self._task.spell(near), self._task.spell([*near, token])
        return now[len(known) :] if now.startswith(known) else self._task.spell([token])

    def name(self, token: int, text: str | None = None) -> str:
        """The name of a token in an answer.

        Args:
            token: its id.
            text: that it adds to the text; None if it is not in the text.
        """
        if self._by_id:
            return f"token_id:{token}"
        return str(self._task.backbone.tokenizer.decode([token])) if text is None else text


class LogprobWriter:
    """Writes the log-probabilities of one text, piece by piece.

    Args:
        names: of the tokens.
        top: how many of the likeliest tokens are written.
        write: `write_completion` or `write_chat`.
    """

    def __init__(
        self, names: TokenNames, *, top: int, write: "Callable[[Sequence[WrittenToken]], Any]"
    ) -> None:
        self._names, self._top, self._write = names, top, write
        self._tokens: list[int] = []
        self._offset = 0

    def add(self, scores: Sequence[TokenScores]) -> dict[str, Any]:
        """The object of the next tokens.

        Args:
            scores: of the tokens.
        """
        return dict(self._write([self._make(one) for one in scores]))

    def _make(self, scores: TokenScores) -> "WrittenToken":
        text = self._names.spell_next(self._tokens, scores.token)
        self._tokens.append(scores.token)
        offset, self._offset = self._offset, self._offset + len(text)
        best = list(scores.top.items())[: self._top]
        top = [(self._names.name(token), value) for token, value in best]
        return WrittenToken(self._names.name(scores.token, text), offset, scores.logprob, top)


@dataclass(frozen=True)
class WrittenToken:
    """A token as an answer has it.

    Args:
        name: its text.
        offset: of its text in the whole text.
        logprob: its log-probability; None for the first token of a row.
        top: the likeliest tokens with theirs.
    """

    name: str
    offset: int
    logprob: float | None
    top: Sequence[tuple[str, float]]


def write_completion(tokens: Sequence[WrittenToken]) -> Mapping[str, Any]:
    """The object ``logprobs`` of a completion.

    Args:
        tokens: of the text.
    """

    def list_top(token: WrittenToken) -> dict[str, float] | None:
        if token.logprob is None:
            return None
        best: dict[str, float] = {}
        for name, value in [*token.top, (token.name, token.logprob)]:
            best[name] = max(value, best.get(name, value))
        return best

    return {
        "tokens": [token.name for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [list_top(token) for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def write_chat(tokens: Sequence[WrittenToken]) -> Mapping[str, Any]:
    """The object ``logprobs`` of a chat.

    Args:
        tokens: of the text.
    """

    def describe(name: str, value: float | None) -> dict[str, Any]:
        return {"token": name, "logprob": value, "bytes": list(name.encode())}

    content = [
        {
            **describe(token.name, token.logprob),
            "top_logprobs": [describe(name, value) for name, value in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}
