"""Attribution: how much each word of a row moved a prediction."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, assert_never, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.analysis.explained_scores import ExplainedScore, Views, choose_scores
from softprompt.analysis.explanation import (
    ExplainedWord,
    Explanation,
    ExplanationMethod,
    ScoreKind,
    is_sum_complete,
)
from softprompt.analysis.row_views import (
    RowView,
    check_texts,
    list_given_words,
    place_row,
    view_row,
)
from softprompt.backbone.hooks import FreeVectors, use_free_vectors
from softprompt.backbone.model import Backbone
from softprompt.data.inputs import Row, as_row
from softprompt.data.row_words import FieldSpan, RowWords
from softprompt.errors import DataError, PromptError, format_unknown
from softprompt.inference.ensemble import Ensemble
from softprompt.inference.model import PromptModel
from softprompt.tasks import Example

# What is left of a row without the other words.
_ALONE: Mapping[ScoreKind, str] = {
    "tag": "the word alone", "span": "the span alone", "answer": "the answer alone",
}  # fmt: skip
# Rows that are run at once.
_ROWS_AT_ONCE = 8
# Integrated gradients start with so many steps, and double them.
_FIRST_STEPS = 16
# Embeddings that are averaged at once.
_TOKENS_AT_ONCE = 8192


def explain_prediction(
    model: PromptModel | Ensemble,
    row: str | Sequence[str] | Row,
    *,
    method: ExplanationMethod = "integrated-gradients",
    label: str | None = None,
    word: int | None = None,
    steps: int = 256,
) -> Explanation:
    """Explain a prediction: how much each word of the row moved the log-probability of a label.

    ``integrated-gradients`` moves the embeddings of the row's words in a straight line from a
    baseline to what they are, and sums the gradients on the way (Sundararajan et al. 2017). Soft
    tokens, the template's own text and special tokens stay. The baseline of every token is
    the mask token where the backbone was trained with one, which stands there for an unknown
    word; elsewhere the mean of the embedding table. (Zeros are far from all tokens: a backbone
    that divides by the norm of its inputs jumps there.) The scores sum to the
    difference between the row's score and the baseline's; the number of steps is doubled until
    they do.

    ``leave-one-out`` runs the row without each of its words. The scores are the changes that a word
    makes to the whole row; where words mean something together they do not sum to the difference
    between the row's score and that of a row without text.

    The score of a label is the log of the probability that `PromptModel.predict_proba` gives it; of
    an ensemble, that of its mean probabilities. That of a text is the log-probability of all its
    tokens and of the end token. That of a span is the sum over its words, each the log of the
    probability of its tag, which ``scores`` has; that of an answer the log-probability of its first
    token as the start and of its last as the end, as its ``score``, which however may begin or end
    with a token of white space. These words themselves are never left out.

    Args:
        model: the trained prompt with its backbone; or an ensemble of classifiers or taggers.
        row: the template's fields, or a text or a list of words if there is a single one.
        method: one of the two.
        label: whose score is explained; for text generation any text, for answers any part of the
            context, or an empty text for no answer. By default the prediction.
        word: of tags, the number of the word whose tag is explained, counted from 0. By default the
            first span; if there are none, the tag of the first word. `explain_row` explains all.
        steps: the most steps of integrated gradients. It starts with 16.

    Returns:
        The words with their scores, and how far these sum to the difference of scores.

    Raises:
        DataError: a field is missing, or the row has no words, not so many, or no token without
            them.
        PromptError: there is no such label or method, or predictions of this kind have no single
            log-probability.

    Examples:
        >>> from softprompt import Classify, TrainingConfig, fit
        >>> words = {"negative": " bad", "positive": " good"}
        >>> task = Classify("{text} is{soft:2}", verbalizer=words)
        >>> model = fit(backbone, task, rows, validation=0, config=TrainingConfig(epochs=1))
        >>> explanation = explain_prediction(model, "a good film")
        >>> [word.text for word in explanation.words], explanation.is_complete
        (['a', 'good', 'film'], True)
    """
    (first, *_), members = _choose(model, row, method=method, label=label, word=word, steps=steps)
    return _explain(first, members, as_row(row, model.fields), method=method, steps=steps)


def explain_row(
    model: PromptModel | Ensemble,
    row: str | Sequence[str] | Row,
    *,
    method: ExplanationMethod = "integrated-gradients",
    label: str | None = None,
    word: int | None = None,
    steps: int = 256,
) -> tuple[Explanation, ...]:
    """Explain all that was predicted for a row: of tags, every span that was found.

    Args:
        model: as for `explain_prediction`.
        row: as for `explain_prediction`.
        method: one of the two.
        label: whose score is explained. Of tags it is that of a single word.
        word: of tags, the number of a word; then its tag alone is explained.
        steps: the most steps of integrated gradients.

    Returns:
        One explanation; of tags, one for each span in the order of the text. Without any span the
        tag of the first word is explained.

    Raises:
        DataError: as `explain_prediction`.
        PromptError: as `explain_prediction`.

    Examples:
        >>> from softprompt import Classify, TrainingConfig, fit
        >>> words = {"negative": " bad", "positive": " good"}
        >>> task = Classify("{text} is{soft:2}", verbalizer=words)
        >>> model = fit(backbone, task, rows, validation=0, config=TrainingConfig(epochs=1))
        >>> [one.is_complete for one in explain_row(model, "a good film")]
        [True]
    """
    scores, members = _choose(model, row, method=method, label=label, word=word, steps=steps)
    fields = as_row(row, model.fields)
    return tuple(_explain(one, members, fields, method=method, steps=steps) for one in scores)


def _choose(
    model: PromptModel | Ensemble,
    row: str | Sequence[str] | Row,
    *,
    method: ExplanationMethod,
    label: str | None,
    word: int | None,
    steps: int,
) -> tuple[tuple[ExplainedScore, ...], tuple[PromptModel, ...]]:
    """The scores to explain, and the members of an ensemble or the model itself."""
    if method not in get_args(ExplanationMethod):
        msg = format_unknown("method", method, options=get_args(ExplanationMethod))
        raise PromptError(msg)
    if steps < 1:
        msg = f"integrated gradients with steps = {steps} are not possible. Give at least 1."
        raise PromptError(msg)
    members = model.members if isinstance(model, Ensemble) else (model,)
    for member in members:
        check_texts(member.task)
    fields = as_row(row, model.fields)
    return choose_scores(model, fields, members=members, label=label, word=word), members


def _explain(
    scored: ExplainedScore,
    members: Sequence[PromptModel],
    row: Row,
    *,
    method: ExplanationMethod,
    steps: int,
) -> Explanation:
    reading = _read(members, replace(view_row(members[0].task, row), subject=scored.subject))
    match method:
        case "integrated-gradients":
            result = _integrate(scored, reading, steps=steps)
        case "leave-one-out":
            result = _leave_out(scored, reading)
        case _:
            assert_never(method)
    return _assemble(method, scored, reading, result)


class _Reading(NamedTuple):
    """A row as the members read it."""

    members: Sequence[PromptModel]
    view: RowView
    texts: Mapping[str, str]
    words: RowWords

    def render(self, view: RowView) -> tuple[Example, ...]:
        """The row as each member renders it."""
        return tuple(view.render(member.task) for member in self.members)


class _Result(NamedTuple):
    """The scores of a method, of all words or of those that were left out."""

    words: Sequence[FieldSpan]
    scores: Sequence[float]
    score: float
    baseline: str
    baseline_score: float
    steps: int = 0


def _read(members: Sequence[PromptModel], view: RowView) -> _Reading:
    """Find the words of a row.

    Raises:
        DataError: it has none.
    """
    names = dict.fromkeys(name for member in members for name in member.fields)
    texts = {name: view.get_text(name) for name in names}
    placed = [one for member in members for one in place_row(member.task, view)]
    tokens = [token for of_variant in placed for token in of_variant]
    words = RowWords(texts, tokens, words=list_given_words(view))
    if not words.spans:
        msg = "the row has no words, so there is nothing to explain. Give it some text."
        raise DataError(msg)
    return _Reading(members, view, texts, words)


def _assemble(
    method: ExplanationMethod, target: ExplainedScore, reading: _Reading, result: _Result
) -> Explanation:
    words = tuple(
        ExplainedWord(*span, text=reading.texts[span.field][span.start : span.end], score=score)
        for span, score in zip(result.words, result.scores, strict=True)
    )
    return Explanation(
        method,
        label=target.label,
        fields=reading.texts,
        words=words,
        score=result.score,
        baseline=result.baseline,
        baseline_score=result.baseline_score,
        steps=result.steps,
        truncated=any(example.truncated for example in reading.render(reading.view)),
        kind=target.kind,
        subject=target.subject,
    )


# ── Leave one out ──────────────────────────────────────────────────────────────────────────────


def _leave_out(target: ExplainedScore, reading: _Reading) -> _Result:
    """Run the row, the row without text, and the row without each word.

    The words whose tags are explained, and those of the answer, stay: without them there is no
    score.
    """
    words = [word for word in reading.words.spans if not reading.view.has_part_of(word)]
    if not words:
        msg = (
            "no word of the row can be left out, since what is explained is all of it. "
            'Give a longer row, or use the method "integrated-gradients".'
        )
        raise DataError(msg)
    empty = reading.view.strip((*reading.texts,))
    without = (reading.view.remove(word) for word in words)
    views = [reading.render(view) for view in (reading.view, empty, *without)]
    if not all(v.input_ids for view in views for example in view for v in example.variants):
        msg = (
            "the row has no token without one of its words, so it cannot be run without it. Give a "
            'longer row, or use the method "integrated-gradients".'
        )
        raise DataError(msg)
    score, baseline, *others = _run(target, views)
    alone = "a row without text" if target.subject is None else _ALONE[target.kind]
    return _Result(words, [score - other for other in others], score, alone, baseline)


@torch.no_grad()
def _run(target: ExplainedScore, views: Views) -> list[float]:
    """The scores of rows."""
    parts = (views[at : at + _ROWS_AT_ONCE] for at in range(0, len(views), _ROWS_AT_ONCE))
    return [score for part in parts for score in target.compute(part).double().tolist()]


# ── Integrated gradients ───────────────────────────────────────────────────────────────────────


class _Path(NamedTuple):
    """The straight line from the baseline to the embeddings of a row's words.

    Args:
        view: the row as each member renders it, in which the id -1 - k is the k-th token of words.
        tokens: ``[K]``, these tokens.
        words: for each the number of its word.
        begin: ``[E]``, the embedding that all of them begin with.
        way: ``[K, E]``, from there to their own.
    """

    view: tuple[Example, ...]
    tokens: Tensor
    words: Tensor
    begin: Tensor
    way: Tensor

    def make_views(self, count: int) -> list[tuple[Example, ...]]:
        """Rows, each with tokens of its own: those of row s have the numbers from s K on."""
        return [
            tuple(_shift_tokens(example, by=row * len(self.tokens)) for example in self.view)
            for row in range(count)
        ]

    def embed(self, shares: Float[Tensor, " S"]) -> FreeVectors:
        """The embeddings after these shares of the way, ready for their gradients."""
        vectors = (self.begin + shares[:, None, None] * self.way).flatten(0, 1)
        return FreeVectors(vectors.requires_grad_(), self.tokens.repeat(len(shares)))


def _integrate(target: ExplainedScore, reading: _Reading, *, steps: int) -> _Result:
    """Double the steps until the words' scores sum to the difference of scores."""
    backbone = reading.members[0].backbone
    begin, baseline = _choose_baseline(backbone)
    path = _make_path(reading, begin=begin)
    (score,) = _run(target, [reading.render(reading.view)])
    with torch.no_grad(), use_free_vectors(path.embed(torch.zeros(1, device=begin.device))):
        (baseline_score,) = _run(target, path.make_views(1))
    count = min(_FIRST_STEPS, steps)
    while True:
        scores = _sum_gradients(target, path, count=count, words=len(reading.words.spans))
        is_complete = is_sum_complete(score - baseline_score - sum(scores), score - baseline_score)
        if is_complete or count == steps:
            return _Result(reading.words.spans, scores, score, baseline, baseline_score, count)
        count = min(2 * count, steps)


def _sum_gradients(target: ExplainedScore, path: _Path, *, count: int, words: int) -> list[float]:
    """The integral for each word, by the Gauss-Legendre rule with ``count`` points."""
    points, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(count))
    device, total = path.way.device, torch.zeros(len(path.tokens), dtype=torch.float64)
    for at in range(0, count, _ROWS_AT_ONCE):
        shares = ((points[at : at + _ROWS_AT_ONCE] + 1) / 2).float().to(device)
        free = path.embed(shares)
        with torch.enable_grad(), use_free_vectors(free):
            score = target.sum_up(path.make_views(len(shares)))
            (gradients,) = torch.autograd.grad(score, free.vectors)
        by_step = (gradients.unflatten(0, (len(shares), -1)) * path.way).sum(dim=-1).double().cpu()
        total += weights[at : at + _ROWS_AT_ONCE] / 2 @ by_step
    sums = torch.zeros(words, dtype=torch.float64).index_add(0, path.words, total)
    return [float(value) for value in sums]


def _choose_baseline(backbone: Backbone) -> tuple[Float[Tensor, " E"], str]:
    """The embedding that says nothing of a word, and its name."""
    mask = backbone.tokenizer.mask_token_id
    if isinstance(mask, int) and backbone.geometry.architecture == "encoder":
        token = torch.tensor(mask, device=backbone.device)
        return backbone.embed(token), f"{backbone.tokenizer.mask_token} for every word"
    size = min(backbone.geometry.vocab_size, len(backbone.tokenizer))
    parts = torch.arange(size, device=backbone.device).split(_TOKENS_AT_ONCE)
    total = torch.stack([backbone.embed(part).sum(dim=0) for part in parts]).sum(dim=0)
    return total / size, "the mean embedding for every word"


def _make_path(reading: _Reading, *, begin: Float[Tensor, " E"]) -> _Path:
    """Give the tokens of words numbers of their own, in every way that the row is rendered."""
    tokens, words, view = list[int](), list[int](), list[Example]()
    for member in reading.members:
        example, numbered = reading.view.render(member.task), list[dict[int, int]]()
        for of_variant in place_row(member.task, reading.view):
            numbers: dict[int, int] = {}
            for placed in of_variant:
                word = reading.words.find(placed.span)
                if word is not None:
                    numbers[placed.position] = len(tokens)
                    tokens.append(placed.id)
                    words.append(word)
            numbered.append(numbers)
        view.append(_mark_tokens(example, numbered))
    ids = torch.tensor(tokens, device=begin.device)
    way = member.backbone.embed(ids) - begin
    return _Path(tuple(view), ids, torch.tensor(words), begin, way)


def _mark_tokens(example: Example, numbered: Sequence[Mapping[int, int]]) -> Example:
    """The row, in which the ids of numbered tokens are below zero.

    Its variants are those of the renderers, or one renderer's with several continuations.
    """
    variants = example.variants
    by_variant = numbered if len(numbered) == len(variants) else [numbered[0]] * len(variants)
    marked = (
        tuple(-1 - numbers[at] if at in numbers else id_ for at, id_ in enumerate(ids))
        for ids, numbers in zip((v.input_ids for v in variants), by_variant, strict=True)
    )
    return _with_ids(example, marked)


def _shift_tokens(example: Example, *, by: int) -> Example:
    ids = (tuple(i - by if i < 0 else i for i in v.input_ids) for v in example.variants)
    return _with_ids(example, ids)


def _with_ids(example: Example, ids: Iterator[tuple[int, ...]]) -> Example:
    pairs = zip(example.variants, ids, strict=True)
    return replace(example, variants=tuple(replace(v, input_ids=new) for v, new in pairs))
