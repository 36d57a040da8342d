"""Tags of words: their text form, the spans that they are, and their scores."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from softprompt.data.tag_schemes import (
    TagScheme,
    convert_tags,
    read_spans,
    repair_tags,
)
from softprompt.data.words import Characters, WordStates
from softprompt.errors import DataError
from softprompt.tasks.metrics import ClassScores
from softprompt.tasks.objectives import Objective, Prediction, Scores, parse_list
from softprompt.tasks.span_scores import compute_tag_accuracy, score_tags
from softprompt.tasks.tag_decoding import (
    PieceAggregation,
    TagTransitions,
    aggregate_pieces,
    decode_tags,
    group_pieces,
    make_transitions,
)

# Of fields that no file has.
_HIDDEN = {"hidden": True}


@dataclass(frozen=True)
class TaggedSpan:
    """A span that was found.

    Args:
        label: its type.
        start: its first character in the text, counted from 0; in the words with one space between
            them if they were given as a list.
        end: one after its last character.
        text: its characters.
        score: the mean probability of the tags of its words; of its tokens with ``simple``.

    Examples:
        >>> span = TaggedSpan("LOC", 3, 7, "Rome", score=0.9)
        >>> "In Rome"[span.start : span.end] == span.text
        True
    """

    label: str
    start: int
    end: int
    text: str
    score: float


@dataclass(frozen=True)
class TagPrediction(Prediction):
    """The tags of a row's words. ``label`` has them as text: a JSON list.

    Args:
        tags: one for each word.
        words: of the row.
        spans: that the tags are, in the order of the text; of plain tags, none.
        scores: the probability of the tag of each word.
        states: which of the states that were read are those of each word.
        shares: the probability of every tag of every state, where they are still to be averaged
            with those of other prompts; else None.

    Examples:
        >>> span = TaggedSpan("LOC", 3, 7, "Rome", score=0.9)
        >>> found = TagPrediction('["O", "B-LOC"]', {}, tags=("O", "B-LOC"), spans=(span,))
        >>> found.spans[0].text
        'Rome'
    """

    tags: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    spans: tuple[TaggedSpan, ...] = ()
    scores: tuple[float, ...] = ()
    states: WordStates = field(
        default=WordStates("", (), ()), repr=False, compare=False, metadata=_HIDDEN
    )
    shares: NDArray[np.float64] | None = field(
        default=None, repr=False, compare=False, metadata=_HIDDEN
    )


@dataclass(frozen=True)
class TagSequences(Objective):
    """A tag for each word: cross-entropy of words, and the likeliest sequence that is possible.

    Args:
        labels: the tags, in the order of the scores.
        scheme: of the predicted tags.
        source: the scheme of the rows' tags.
        repairs: whether rows' tags that are not possible are read as ``conlleval`` reads them.
        aggregation: how a word's scores are taken from its tokens.
        is_constrained: whether only tags that are possible in the scheme are predicted.
        weights: how much a word with each tag counts in the loss; None: all count the same.
        smoothing: the share of each target that is spread over all tags in training.
    """

    labels: tuple[str, ...]
    scheme: TagScheme
    source: TagScheme
    repairs: bool = False
    aggregation: PieceAggregation = "first"
    is_constrained: bool = True
    weights: tuple[float, ...] | None = None
    smoothing: float = 0.0

    loss_unit: ClassVar[str] = "word"
    detail_names: ClassVar[tuple[str, ...]] = ("tags", "words", "spans", "scores")

    @property
    def measure(self) -> str:
        """``span_f1``, over all spans; the share of right tags where there are no spans."""
        return "tag_accuracy" if self.scheme == "none" else "span_f1"

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Of plain tags accuracy and the mean F1 of tags; else also the scores of spans."""
        if self.scheme == "none":
            return ("tag_accuracy", "tag_macro_f1")
        spans = ("span_f1", "span_precision", "span_recall", "span_macro_f1", "lenient_f1")
        return (*spans, "tag_accuracy")

    def read_truth(self, text: str) -> tuple[str, ...]:
        """The tags of a row in the scheme of predictions.

        Args:
            text: of the target, as `softprompt.tasks.targets.read_targets` writes it.

        Raises:
            DataError: it is not a list of tags that are possible.
        """
        tags: Sequence[str] = parse_tags(text)
        if self.repairs:
            tags = repair_tags(tags, scheme=self.source)
        if self.source == self.scheme:
            return tuple(tags)
        return tuple(convert_tags(tags, source=self.source, target=self.scheme))

    def index_tags(self, text: str) -> tuple[int, ...]:
        """The index of each tag of a row; -1 for one that no training row has.

        Args:
            text: of the target.
        """
        places = _number_labels(self.labels)
        return tuple(places.get(tag, -1) for tag in self.read_truth(text))

    def describe(self, shares: NDArray[np.float64], states: WordStates) -> TagPrediction:
        """The prediction for a row.

        Args:
            shares: the probability of every tag, ``[states, C]``, of the states that were read.
            states: which of them are those of each word.
        """
        strategy = "first" if self.aggregation == "simple" else self.aggregation
        rows = aggregate_pieces(shares, states.pieces, strategy=strategy)
        chosen = self._choose(rows)
        tags = tuple(self.labels[index] for index in chosen)
        scores = [float(row[index]) for row, index in zip(rows, chosen, strict=True)]
        if states.tokens and self.aggregation == "simple":
            best = shares.argmax(axis=1)
            spans = self._find_spans(
                [self.labels[index] for index in best],
                shares.max(axis=1).tolist(),
                states.tokens,
                text=states.text,
            )
        else:
            spans = self._find_spans(tags, scores, states.words, text=states.text)
        return TagPrediction(
            format_tags(tags),
            {},
            tags=tags,
            words=states.list_words(),
            spans=spans,
            scores=tuple(round(score, 6) for score in scores),
            states=states,
            shares=shares,
        )

    def _choose(self, rows: NDArray[np.float64]) -> tuple[int, ...]:
        if self.scheme == "none" or not self.is_constrained or self.aggregation == "simple":
            return tuple(map(int, rows.argmax(axis=1)))
        with np.errstate(divide="ignore"):
            return decode_tags(np.log(rows), _tabulate_transitions(self.labels, self.scheme))

    def _find_spans(
        self,
        tags: Sequence[str],
        scores: Sequence[float],
        places: Sequence[Characters],
        *,
        text: str,
    ) -> tuple[TaggedSpan, ...]:
        """The spans of words, or of tokens, by their tags."""
        if self.scheme == "none" and self.aggregation != "simple":
            return ()
        found = []
        for label, score, first, last in group_pieces(tags, scores, scheme=self.scheme):
            start, end = _trim(text, places[first][0], places[last - 1][1])
            found.append(TaggedSpan(label, start, end, text[start:end], round(score, 6)))
        return tuple(found)

    def average(self, predictions: Sequence[TagPrediction]) -> TagPrediction:
        """The tags by the mean of several prompts' probabilities for one row.

        Args:
            predictions: at least one. Of ``simple``, words are averaged, not tokens.
        """
        strategy = "first" if self.aggregation == "simple" else self.aggregation
        rows = [
            aggregate_pieces(one.shares, one.states.pieces, strategy=strategy)
            for one in predictions
            if one.shares is not None
        ]
        first = predictions[0].states
        words = tuple((number,) for number in range(len(first.words)))
        states = WordStates(first.text, first.words, words)
        return replace(self.describe(np.mean(rows, axis=0), states), shares=None)

    def score(self, truth: Sequence[str], predictions: Sequence[Prediction]) -> Scores:
        """The scores of spans, by type too; of plain tags those of the tags."""
        wanted, found = self._read_pairs(truth, [one.label for one in predictions])
        accuracy = compute_tag_accuracy(wanted, found)
        if self.scheme == "none":
            classes = _score_tags_alone(wanted, found)
            mean = sum(one.f1 for one in classes) / len(classes)
            return Scores({"tag_accuracy": accuracy, "tag_macro_f1": mean}, None, classes)
        strict = score_tags(wanted, found, scheme=self.scheme)
        lenient = score_tags(wanted, found, scheme=self.scheme, mode="lenient")
        metrics = {
            "span_f1": strict.micro.f1,
            "span_precision": strict.micro.precision,
            "span_recall": strict.micro.recall,
            "span_macro_f1": strict.macro.f1,
            "lenient_f1": lenient.micro.f1,
            "tag_accuracy": accuracy,
        }
        classes = tuple(
            ClassScores(one.label, one.precision, one.recall, one.f1, one.support, one.predicted)
            for one in strict.types
        )
        return Scores(metrics, None, classes)

    def score_rows(self, truth: Sequence[str], answers: Sequence[str]) -> tuple[float, ...]:
        """The part of each row in `measure`, which is their mean.

        F1 and accuracy over all words are ratios of sums, not means over rows. A row's part is the
        ratio, and what the row adds to it to first order, so that the spread of the parts is that
        of the ratio (the delta method), in paired comparisons too.
        """
        wanted, found = self._read_pairs(truth, answers)
        if self.scheme == "none":
            right = [
                sum(a == b for a, b in zip(*pair, strict=True)) for pair in _pair(wanted, found)
            ]
            return _divide_ratio(right, [len(tags) for tags in wanted])
        spans = [
            tuple({*read_spans(tags, scheme=self.scheme)} for tags in pair)
            for pair in _pair(wanted, found)
        ]
        return _divide_ratio(
            [2 * len(true & mine) for true, mine in spans],
            [len(true) + len(mine) for true, mine in spans],
        )

    def _read_pairs(
        self, truth: Sequence[str], answers: Sequence[str]
    ) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
        wanted = [self.read_truth(text) for text in truth]
        pairs = zip(answers, wanted, strict=True)
        return wanted, [_read_answer(text, count=len(tags)) for text, tags in pairs]

    def count_labels(self, truth: Sequence[str]) -> Counter[str]:
        """The number of words that have each tag."""
        return Counter(tag for text in truth for tag in self.read_truth(text))

    def choose_constant(self, truth: Sequence[str]) -> str:
        """The most frequent tag, for every word."""
        count = self.count_labels(truth)
        return min(count, key=lambda tag: (-count[tag], tag))

    def is_right(self, truth: str, answer: str) -> bool:
        """Whether all tags are right."""
        (wanted,), (found,) = self._read_pairs([truth], [answer])
        return wanted == found


def _trim(text: str, start: int, end: int) -> Characters:
    """A range of characters without the white space at its ends, which tokens may begin with."""
    part = text[start:end]
    start += len(part) - len(part.lstrip())
    return start, max(start, start + len(part.strip()))


def forget_shares(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Predictions without the probabilities of all tags, which take much memory.

    Args:
        predictions: of rows; those that are not of tags stay as they are.
    """
    return [
        replace(one, shares=None) if isinstance(one, TagPrediction) else one for one in predictions
    ]


def _pair(wanted: Sequence[Any], found: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(wanted, found, strict=True)


def _divide_ratio(parts: Sequence[int], wholes: Sequence[int]) -> tuple[float, ...]:
    """The part of each row in a ratio of sums, to first order; their mean is the ratio."""
    total = sum(wholes)
    if not total:
        return (0.0,) * len(wholes)
    ratio, mean = sum(parts) / total, total / len(wholes)
    pairs = zip(parts, wholes, strict=True)
    return tuple(ratio + (part - ratio * whole) / mean for part, whole in pairs)


def _score_tags_alone(
    wanted: Sequence[Sequence[str]], found: Sequence[Sequence[str]]
) -> tuple[ClassScores, ...]:
    """Precision, recall and F1 of every tag that is true or predicted somewhere."""
    true, mine, right = (Counter[str]() for _ in range(3))
    for tags, others in _pair(wanted, found):
        true.update(tags)
        mine.update(others)
        right.update(a for a, b in zip(tags, others, strict=True) if a == b)
    scores = []
    for tag in sorted({*true, *mine}):
        precision, recall = (
            right[tag] / count[tag] if count[tag] else 0.0 for count in (mine, true)
        )
        both = precision + recall
        f1 = 2 * precision * recall / both if both else 0.0
        scores.append(ClassScores(tag, precision, recall, f1, true[tag], mine[tag]))
    return tuple(scores)


@lru_cache(maxsize=64)
def _tabulate_transitions(labels: tuple[str, ...], scheme: TagScheme) -> TagTransitions:
    return make_transitions(labels, scheme=scheme)


@lru_cache(maxsize=64)
def _number_labels(labels: tuple[str, ...]) -> dict[str, int]:
    return {label: index for index, label in enumerate(labels)}


def parse_tags(text: str) -> tuple[str, ...]:
    """The tags in a cell: a list, as JSON or as Python writes it.

    Args:
        text: of the cell.

    Raises:
        DataError: it is not a list of tags.

    Examples:
        >>> parse_tags('["B-PER", "O"]'), parse_tags("['NN', 7]")
        (('B-PER', 'O'), ('NN', '7'))
    """
    items = parse_list(text) if text.lstrip().startswith("[") else None
    is_tag = [isinstance(item, str | int) and not isinstance(item, bool) for item in items or ()]
    if items is None or not all(is_tag) or "" in items:
        msg = (
            f'the tags {text[:60]!r} are not a list of texts. Write ["B-PER", "O"], one for each '
            "word."
        )
        raise DataError(msg)
    return tuple(map(str, items))


def format_tags(tags: Sequence[str]) -> str:
    """Tags as the text of a cell, which `parse_tags` reads.

    Args:
        tags: of a row's words.
    """
    return json.dumps([*tags], ensure_ascii=False)


def _read_answer(text: str, *, count: int) -> tuple[str, ...]:
    """The tags of an answer; one that is a single tag gives it to every word."""
    try:
        return parse_tags(text)
    except DataError:
        return (text,) * count
