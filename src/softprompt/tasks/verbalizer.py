"""The verbalizer: label words, their tokens and their scores.

The score of a word is the log-probability of all its tokens, each given those before it; the score
of a label is the log of the sum over its words; the softmax of these is the labels' probabilities
(PET's verbalizer, Schick & Schütze 2021, with whole words as in rank classification). If every word
is one token, the softmax over the vocabulary cancels and is not computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.data.tokenizer import TextEncoder
from softprompt.errors import DataError


@dataclass(frozen=True)
class LabelWords:
    """The label words of a verbalizer.

    Args:
        labels: the class names, in order.
        tokens: for each label the token ids of each of its words.
    """

    labels: tuple[str, ...]
    tokens: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def all_single_token(self) -> bool:
        """Whether every word is one token, so that only these tokens' logits are needed."""
        return all(len(word) == 1 for words in self.tokens for word in words)

    @property
    def all(self) -> tuple[tuple[int, ...], ...]:
        """Every word of every label."""
        return tuple(word for words in self.tokens for word in words)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The numbers of tokens that words have, each once, in order."""
        return tuple(sorted({len(word) for word in self.all}))

    def list_continuations(self) -> tuple[tuple[int, ...], ...]:
        """The continuations that a row must be run with.

        These are the words without their last token, each once, without those that another one
        begins with.
        """
        stems = sorted({word[:-1] for word in self.all})
        return tuple(s for s in stems if not any(o != s and o[: len(s)] == s for o in stems))


def tokenize_verbalizer(
    encoder: TextEncoder,
    verbalizer: Mapping[str, Sequence[str]],
    *,
    end: int | None,
    always_end: bool = False,
) -> LabelWords:
    """Tokenize a verbalizer.

    Args:
        encoder: of the backbone.
        verbalizer: for each label its words, with the space before them, if any.
        end: the end token, which is added to all words if one is a prefix of another.
        always_end: add it to all words in any case, as a text-to-text model was trained.

    Raises:
        DataError: a word has no tokens; two words are the same; a label has no words; there is only
            one label; a word is a prefix of another and there is no end token.
        TemplateError: the tokenizer makes an id that the embedding table does not have.
    """
    _check_labels(verbalizer)
    tokens = {
        label: tuple(_tokenize_word(encoder, word, label) for word in words)
        for label, words in verbalizer.items()
    }
    _check_distinct(tokens, verbalizer)
    all_ids = [ids for of_label in tokens.values() for ids in of_label]
    prefixes = [(a, b) for a in all_ids for b in all_ids if a != b and b[: len(a)] == a]
    if (prefixes or always_end) and end is not None:
        tokens = {label: tuple((*ids, end) for ids in words) for label, words in tokens.items()}
    elif prefixes:
        short, long = (encoder.tokenizer.head.decode(list(ids)) for ids in prefixes[0])
        msg = (
            f"the label word {short!r} is a prefix of the label word {long!r}, and the tokenizer "
            "has no end token to distinguish them. Choose words of which none is a prefix of "
            "another."
        )
        raise DataError(msg)
    return LabelWords(tuple(tokens), tuple(tokens.values()))


def _tokenize_word(encoder: TextEncoder, word: str, label: str) -> tuple[int, ...]:
    ids = encoder.encode(word)
    if not ids or encoder.tokenizer.head.unk_token_id in ids:
        msg = (
            f"the word {word!r} of label {label!r} cannot be written with this backbone's "
            "vocabulary. Choose another word."
        )
        raise DataError(msg)
    return ids


def _check_distinct(
    tokens: Mapping[str, Sequence[tuple[int, ...]]], verbalizer: Mapping[str, Sequence[str]]
) -> None:
    first: dict[tuple[int, ...], tuple[str, str]] = {}
    for label, words in tokens.items():
        for text, ids in zip(verbalizer[label], words, strict=True):
            if ids in first:
                raise DataError(_explain_duplicate(first[ids], (label, text), ids))
            first[ids] = label, text


def _explain_duplicate(
    first: tuple[str, str], second: tuple[str, str], ids: tuple[int, ...]
) -> str:
    (label, text), (other_label, other_text) = first, second
    if label == other_label:
        return (
            f"label {label!r} has the word {text!r} twice (tokens {list(ids)}), and it would "
            "count twice. Write it once."
        )
    return (
        f"labels {label!r} and {other_label!r} have the same word for this tokenizer: {text!r} and "
        f"{other_text!r} are both tokens {list(ids)}. Choose distinct words."
    )


def _check_labels(verbalizer: Mapping[str, Sequence[str]]) -> None:
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


def score_labels(
    logits: Float[Tensor, "B K V"],
    words: LabelWords,
    *,
    readouts: Mapping[tuple[int, ...], Sequence[int]],
    columns: Mapping[int, int] | None = None,
) -> Float[Tensor, "B C"]:
    """Score the labels from the logits of each row.

    Args:
        logits: the logits of each row at K positions.
        words: the label words.
        readouts: for each word the positions, 0 to K - 1, that predict its tokens.
        columns: for each token the column of its logit, if ``logits`` has only some tokens.
    """
    logits = logits.float()
    if not words.all_single_token:
        logits = logits.log_softmax(dim=-1)
    scores = []
    for label_words in words.tokens:
        token_scores = [
            [
                logits[:, at, token if columns is None else columns[token]]
                for at, token in zip(readouts[word], word, strict=True)
            ]
            for word in label_words
        ]
        word_scores = torch.stack([torch.stack(tokens).sum(dim=0) for tokens in token_scores])
        scores.append(word_scores.logsumexp(dim=0))
    return torch.stack(scores, dim=1)
