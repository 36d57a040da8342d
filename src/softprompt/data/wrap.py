"""What a tokenizer puts around a text, learnt by asking it rather than by knowing its family."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from softprompt.errors import TemplateError

_PROBES = ("a", "the", "x", "e", "0", ".")


@dataclass(frozen=True)
class Wrapping:
    """The special tokens before, between and after the texts of one row.

    Args:
        ids: one tuple a gap: before the first text, (between the two,) after the last.
        types: token type ids of those, likewise.
        text_types: the token type id of each text.
    """

    ids: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...]
    text_types: tuple[int, ...]


def wrapping(tokenizer: PreTrainedTokenizerBase, *, pair: bool) -> Wrapping:
    """Learn the wrapping of a single text or of a pair.

    Args:
        tokenizer: a fast tokenizer.
        pair: whether two texts are joined.

    Returns:
        The wrapping.

    Raises:
        TemplateError: the tokenizer has no way to join a pair, or does not keep a text in one
            piece.
    """
    word, core = _probe(tokenizer)
    texts = [word, word] if pair else [word]
    typed = "token_type_ids" in tokenizer.model_input_names
    whole = tokenizer(*texts, return_token_type_ids=True)
    ids: list[int] = whole["input_ids"]
    types: list[int] = whole["token_type_ids"] if typed else [0] * len(ids)
    starts = _starts(ids, core, count=len(texts))
    borders = list(zip([0, *(s + len(core) for s in starts)], [*starts, len(ids)], strict=True))
    found = Wrapping(
        ids=tuple(tuple(ids[a:b]) for a, b in borders),
        types=tuple(tuple(types[a:b]) for a, b in borders),
        text_types=tuple(types[start] for start in starts),
    )
    # Llama's "<s> A <s> B" and GPT-2's "AB" are two texts in a row, not a pair.
    if pair and found.ids[1] in ((), found.ids[0]):
        msg = (
            f"the template has {{sep}}, but this backbone's tokenizer "
            f"({type(tokenizer).__name__}) has no form for pairs of texts. "
            "Write words or a line break between the two fields instead."
        )
        raise TemplateError(msg)
    return found


def _probe(tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[int]]:
    """A word that the tokenizer knows, and its ids."""
    for word in _PROBES:
        ids: list[int] = tokenizer(word, add_special_tokens=False)["input_ids"]
        if ids:
            return word, ids
    msg = f"the tokenizer {type(tokenizer).__name__} makes no token of any of {_PROBES}."
    raise TemplateError(msg)


def _starts(ids: Sequence[int], core: Sequence[int], *, count: int) -> list[int]:
    """Where ``core`` begins in ``ids``, ``count`` times from left to right."""
    starts: list[int] = []
    for _ in range(count):
        begin = starts[-1] + len(core) if starts else 0
        places = range(begin, len(ids) - len(core) + 1)
        found = next((i for i in places if list(ids[i : i + len(core)]) == list(core)), None)
        if found is None:
            msg = (
                "the tokenizer does not keep a text in one piece when it adds its special tokens "
                f"({list(core)} became {list(ids)}), so soft tokens have no sure place. "
                "Choose a backbone with an ordinary fast tokenizer."
            )
            raise TemplateError(msg)
        starts.append(found)
    return starts
