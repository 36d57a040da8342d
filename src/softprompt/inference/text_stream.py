"""Generated text as it grows: whole characters, and no part that a stop string may cut off."""

from collections.abc import Callable, Sequence

# What a decoder writes for bytes that do not form a character, or do not yet.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Turns tokens into text that can be shown while more tokens come.

    The parts that are released add up to the text of all tokens, without the space around it and
    up to the first stop string.

    Args:
        spell: the text of some tokens, with the space around it.
        stop: the stop strings; the text ends before the first that occurs in it.

    Attributes:
        token_ids: the tokens so far.
        is_stopped: whether there is a stop string in the text.

    Examples:
        >>> words = {0: " a", 1: " fine", 2: " film"}
        >>> stream = TextStream(lambda ids: "".join(words[i] for i in ids), stop=["film"])
        >>> [stream.add(token) for token in (0, 1, 2)]
        ['a', ' fine', '']
        >>> stream.is_stopped, stream.finish(), stream.text
        (True, '', 'a fine')
    """

    def __init__(self, spell: Callable[[Sequence[int]], str], *, stop: Sequence[str] = ()) -> None:
        self.token_ids: list[int] = []
        self.is_stopped = False
        self._spell = spell
        self._stop = tuple(stop)
        self._raw = ""  # the text of the tokens up to _read, or up to the stop string
        # Tokens from _anchor on are spelt again with each new one, because some decoders write a
        # token differently at the beginning of a text.
        self._anchor = self._read = 0
        self._shown = ""

    @property
    def text(self) -> str:
        """The text that was released so far."""
        return self._shown

    def add(self, token: int) -> str:
        """Append a token.

        Args:
            token: the token, not an end token.

        Returns:
            The text that can be shown now and was not before.
        """
        self.token_ids.append(token)
        before = self._spell(self.token_ids[self._anchor : self._read])
        now = self._spell(self.token_ids[self._anchor :])
        if not now.endswith(_INCOMPLETE) and now.startswith(before):
            known = len(self._raw)
            self._raw += now[len(before) :]
            if self._spell(self.token_ids[self._read :]).strip():
                self._anchor = self._read
            self._read = len(self.token_ids)
            self._cut_at_stop(known)
        held = 0 if self.is_stopped else self._count_held()
        return self._release(self._raw[: len(self._raw) - held])

    def finish(self) -> str:
        """End the text.

        Returns:
            What was held back.
        """
        if not self.is_stopped:
            known = len(self._raw)
            self._raw = self._spell(self.token_ids)
            self._cut_at_stop(known)
        return self._release(self._raw)

    def _cut_at_stop(self, known: int) -> None:
        """End the text before the first stop string that ends in what is new."""
        begins = [self._raw.find(stop, max(known - len(stop) + 1, 0)) for stop in self._stop]
        found = [begin for begin in begins if begin >= 0]
        if found:
            self._raw, self.is_stopped = self._raw[: min(found)], True

    def _count_held(self) -> int:
        """The length of the longest end of the text that a stop string begins with."""
        return max(
            (
                count
                for stop in self._stop
                for count in range(1, min(len(stop), len(self._raw) + 1))
                if self._raw.endswith(stop[:count])
            ),
            default=0,
        )

    def _release(self, text: str) -> str:
        text = text.strip()
        new = text[len(self._shown) :]
        self._shown += new
        return new
