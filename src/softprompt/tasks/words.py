"""Label words as the language-model head scores them: which tokens, where, in which continuation.

The score of a word is the log-probability of all its tokens, each given those before it; a
label's is the log of the sum over its words; the labels' softmax is their probability (PET's
verbalizer, Schick & Schütze 2021, with whole words as in rank classification). If every word is
one token, the vocabulary's normaliser cancels and is not computed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from softprompt.errors import DataError


@dataclass(frozen=True)
class Words:
    """The label words of a verbalizer.

    Args:
        labels: the class names, in order.
        tokens: for each label the token ids of each of its words.
    """

    labels: tuple[str, ...]
    tokens: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def single(self) -> bool:
        """Whether every word is one token, so that only label logits are needed."""
        return all(len(word) == 1 for words in self.tokens for word in words)

    @property
    def all(self) -> tuple[tuple[int, ...], ...]:
        """Every word of every label."""
        return tuple(word for words in self.tokens for word in words)

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many tokens words have, each number once, in order."""
        return tuple(sorted({len(word) for word in self.all}))

    def contexts(self) -> tuple[tuple[int, ...], ...]:
        """The continuations that a row must be run with: words without their last token, each
        once, and none that only begins another.
        """  # noqa: D205
        stems = sorted({word[:-1] for word in self.all})
        return tuple(s for s in stems if not any(o != s and o[: len(s)] == s for o in stems))


def read_words(
    tokenizer: PreTrainedTokenizerBase,
    verbalizer: Mapping[str, Sequence[str]],
    *,
    end: int | None,
    always_end: bool = False,
) -> Words:
    """Tokenize a verbalizer.

    Args:
        verbalizer: for each label its words, with the space that stands before them, if any.
        end: the token that ends a text, for words that begin other words.
        always_end: end every word with it, as a text-to-text model was trained to.

    Raises:
        DataError: a word has no tokens; a word stands there twice; a label has none; there is one
            label only; one word begins another and there is no end token.
    """
    _check_choice(verbalizer)
    tokens = {
        label: tuple(_ids(tokenizer, w, label) for w in ws) for label, ws in verbalizer.items()
    }
    _check_distinct(tokens, verbalizer)
    words = [word for of_label in tokens.values() for word in of_label]
    begins = [(a, b) for a in words for b in words if a != b and b[: len(a)] == a]
    if (begins or always_end) and end is not None:
        tokens = {label: tuple((*w, end) for w in ws) for label, ws in tokens.items()}
    elif begins:
        short, long = (tokenizer.decode(list(word)) for word in begins[0])
        msg = (
            f"the label word {short!r} begins the label word {long!r}, and the tokenizer has no "
            "end token to tell them apart. Choose words of which none begins another."
        )
        raise DataError(msg)
    return Words(tuple(tokens), tuple(tokens.values()))


def _ids(tokenizer: PreTrainedTokenizerBase, word: str, label: str) -> tuple[int, ...]:
    ids: list[int] = tokenizer(word, add_special_tokens=False)["input_ids"]
    if not ids or tokenizer.unk_token_id in ids:
        msg = (
            f"the word {word!r} of label {label!r} cannot be written with this backbone's "
            "vocabulary. Choose another word."
        )
        raise DataError(msg)
    return tuple(ids)


def _check_distinct(
    tokens: Mapping[str, Sequence[tuple[int, ...]]], verbalizer: Mapping[str, Sequence[str]]
) -> None:
    owner: dict[tuple[int, ...], tuple[str, str]] = {}
    for label, words in tokens.items():
        for text, word in zip(verbalizer[label], words, strict=True):
            if word in owner:
                raise DataError(_twice(owner[word], (label, text), word))
            owner[word] = label, text


def _twice(first: tuple[str, str], second: tuple[str, str], word: tuple[int, ...]) -> str:
    (label, text), (other, spelled) = first, second
    if label == other:
        return (
            f"label {label!r} has the word {text!r} twice (tokens {list(word)}), and it would "
            "count twice. Write it once."
        )
    return (
        f"labels {label!r} and {other!r} have the same word for this tokenizer: {text!r} and "
        f"{spelled!r} are both tokens {list(word)}. Choose distinct words."
    )


def _check_choice(verbalizer: Mapping[str, Sequence[str]]) -> None:
    if len(verbalizer) < 2:  # noqa: PLR2004  # a choice
        msg = (
            f"a verbalizer needs at least 2 labels to choose from, but this one has "
            f"{len(verbalizer)}. Add the others."
        )
        raise DataError(msg)
    for label, words in verbalizer.items():
        if not words:
            msg = f"label {label!r} has no word, so it could never be the answer. Give it one."
            raise DataError(msg)


def label_scores(
    logits: Float[Tensor, "B K V"],
    words: Words,
    *,
    where: Callable[[tuple[int, ...], int], int],
    columns: Mapping[int, int] | None = None,
) -> Float[Tensor, "B C"]:
    """Score the labels from the logits at a row's points.

    Args:
        logits: at each of a row's K points.
        where: which point predicts a word's token at this place.
        columns: where each token's logit stands, if ``logits`` holds only some.
    """
    logits = logits.float()
    if not words.single:
        logits = logits.log_softmax(dim=-1)
    labels = []
    for of_label in words.tokens:
        each = [
            [
                logits[:, where(word, at), token if columns is None else columns[token]]
                for at, token in enumerate(word)
            ]
            for word in of_label
        ]
        of_words = torch.stack([torch.stack(word).sum(dim=0) for word in each])
        labels.append(of_words.logsumexp(dim=0))
    return torch.stack(labels, dim=1)
