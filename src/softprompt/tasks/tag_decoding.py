"""From probabilities of tokens to tags of words: aggregation, and the best possible sequence."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias, assert_never

import numpy as np
from jaxtyping import Bool, Float

from softprompt.data.tag_schemes import TagScheme, TagSpan, can_follow, read_spans_leniently
from softprompt.errors import DataError

WordAggregation: TypeAlias = Literal["first", "average", "max"]
# As transformers' pipeline names them; of ``simple`` spans are groups of tokens.
PieceAggregation: TypeAlias = Literal["first", "simple", "average", "max"]


@dataclass(frozen=True, eq=False)
class TagTransitions:
    """Which tags can begin a row, follow each other and end a row.

    Args:
        start: of each tag, whether a row can begin with it.
        between: of each tag (rows) and each one after it (columns).
        end: of each tag, whether a row can end with it.
    """

    start: Bool[np.ndarray, "C"]
    between: Bool[np.ndarray, "C C"]
    end: Bool[np.ndarray, "C"]


class TagGroup(NamedTuple):
    """Tokens that are of one span, by their own tags.

    Args:
        label: the type of the span; the tag itself if tags are plain.
        score: the mean of the tokens' probabilities.
        start: the first token.
        end: one after the last token.
    """

    label: str
    score: float
    start: int
    end: int


def make_transitions(tags: Sequence[str], *, scheme: TagScheme) -> TagTransitions:
    """Tabulate which tags can follow each other.

    Args:
        tags: all tags, in the order of their numbers.
        scheme: their scheme.

    Returns:
        The table.

    Raises:
        DataError: a tag is not one of the scheme.

    Examples:
        >>> make_transitions(["O", "B-PER", "I-PER"], scheme="BIO").start
        array([ True,  True, False])
    """
    return TagTransitions(
        np.array([can_follow(None, tag, scheme=scheme) for tag in tags]),
        np.array([[can_follow(a, b, scheme=scheme) for b in tags] for a in tags]),
        np.array([can_follow(tag, None, scheme=scheme) for tag in tags]),
    )


def decode_tags(
    log_probabilities: Float[np.ndarray, "W C"], transitions: TagTransitions
) -> tuple[int, ...]:
    """The most probable sequence of tags that is possible (the algorithm of Viterbi 1967).

    Words are independent except for what the scheme forbids, so that the probability of a sequence
    is the product of those of its tags.

    Args:
        log_probabilities: of every tag of every word.
        transitions: which tags can follow each other.

    Returns:
        The number of every word's tag.

    Raises:
        DataError: a value is NaN, or no possible sequence of this length has a probability.

    Examples:
        >>> transitions = make_transitions(["O", "B-PER", "I-PER"], scheme="BIO")
        >>> decode_tags(np.log([[0.4, 0.3, 0.3], [0.1, 0.2, 0.7]]), transitions)
        (1, 2)
    """
    if np.isnan(log_probabilities).any():
        msg = "a log-probability of a tag is NaN. The prompt is damaged, or its training diverged."
        raise DataError(msg)
    if not len(log_probabilities):
        return ()
    rows = log_probabilities.astype(np.float64)
    forbidden = np.where(transitions.between, 0.0, -np.inf)
    best = np.where(transitions.start, rows[0], -np.inf)
    origins = []
    for row in rows[1:]:
        candidates = best[:, None] + forbidden
        origin = candidates.argmax(axis=0)
        origins.append(origin)
        best = candidates[origin, np.arange(len(origin))] + row
    best = np.where(transitions.end, best, -np.inf)
    path = [int(best.argmax())]
    if best[path[0]] == -np.inf:
        msg = (
            f"no possible sequence of {len(rows)} of these tags has a probability. Use all tags of "
            "the scheme, O among them."
        )
        raise DataError(msg)
    for origin in reversed(origins):
        path.append(int(origin[path[-1]]))
    return tuple(reversed(path))


def aggregate_pieces(
    probabilities: Float[np.ndarray, "N C"],
    words: Sequence[Sequence[int]],
    *,
    strategy: WordAggregation,
) -> Float[np.ndarray, "W C"]:
    """The probabilities of words, by those of their tokens, as transformers' pipeline takes them.

    Args:
        probabilities: of every tag of every token.
        words: the tokens of each word, at least one, as rows of ``probabilities``.
        strategy: ``first``: those of the word's first token, which the loss is taken of.
            ``average``: the mean over the word's tokens. ``max``: those of the token that is surest
            of its tag.

    Returns:
        The probabilities of every tag of every word.

    Examples:
        >>> tokens = np.array([[0.6, 0.4], [0.1, 0.9]])
        >>> aggregate_pieces(tokens, [[0, 1]], strategy="max")
        array([[0.1, 0.9]])
    """
    match strategy:
        case "first":
            chosen = [probabilities[pieces[0]] for pieces in words]
        case "average":
            chosen = [probabilities[list(pieces)].mean(axis=0) for pieces in words]
        case "max":
            surest = probabilities.max(axis=1)
            chosen = [probabilities[max(pieces, key=surest.__getitem__)] for pieces in words]
        case _:
            assert_never(strategy)
    if not chosen:
        return probabilities[:0]
    return np.stack(chosen)


def group_pieces(
    tags: Sequence[str], scores: Sequence[float], *, scheme: TagScheme
) -> tuple[TagGroup, ...]:
    """Group tokens by their own tags, without regard to words: transformers' strategy ``simple``.

    Args:
        tags: the tag of each token.
        scores: its probability.
        scheme: of the tags.

    Returns:
        The spans of tokens, read leniently; of plain tags, the tokens of the same tag in a row.

    Examples:
        >>> group_pieces(["B-PER", "I-PER", "O"], [0.5, 1.0, 1.0], scheme="BIO")
        (TagGroup(label='PER', score=0.75, start=0, end=2),)
    """
    spans = read_spans_leniently(tags, scheme=scheme)
    if scheme == "none":
        ends = [at for at in range(1, len(tags) + 1) if tags[at - 1 : at] != tags[at : at + 1]]
        spans = tuple(TagSpan(tags[start], start, end) for start, end in pairwise([0, *ends]))
    return tuple(
        TagGroup(label, float(np.mean(scores[start:end])), start, end)
        for label, start, end in spans
    )
