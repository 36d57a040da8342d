"""Attribution: how much each word of a row moved a prediction."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import log
from typing import NamedTuple, TypeAlias, assert_never, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from softprompt.analysis.explanation import (
    ExplainedWord,
    Explanation,
    ExplanationMethod,
    is_sum_complete,
)
from softprompt.backbone.hooks import FreeVectors, use_free_vectors
from softprompt.backbone.model import Backbone
from softprompt.data.inputs import Row, as_row
from softprompt.data.rendering import Renderer
from softprompt.data.row_words import FieldSpan, RowWords, place_tokens, remove_word
from softprompt.data.table import get_text
from softprompt.errors import DataError, PromptError, format_unknown
from softprompt.inference.ensemble import Ensemble
from softprompt.inference.model import PromptModel
from softprompt.tasks import Classifier, Example, Task
from softprompt.tasks.chooser import Chooser
from softprompt.tasks.extractor import Extractor
from softprompt.tasks.generation import TextGenerator, get_target_ids
from softprompt.tasks.label_sets import LabelSets
from softprompt.tasks.objectives import ScoreObjective, SingleLabel
from softprompt.tasks.regression import Numbers, WordNumbers
from softprompt.tasks.tagger import Tagger

# Rows that are run at once.
_ROWS_AT_ONCE = 8
# Integrated gradients start with so many steps, and double them.
_FIRST_STEPS = 16
# Embeddings that are averaged at once.
_TOKENS_AT_ONCE = 8192


def explain_prediction(
    model: PromptModel | Ensemble,
    row: str | Row,
    *,
    method: ExplanationMethod = "integrated-gradients",
    label: str | None = None,
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
    tokens and of the end token.

    Args:
        model: the trained prompt with its backbone; or an ensemble of classifiers.
        row: the template's fields, or a text if there is a single one.
        method: one of the two.
        label: whose score is explained; for text generation any text. By default the prediction.
        steps: the most steps of integrated gradients. It starts with 16.

    Returns:
        The words with their scores, and how far these sum to the difference of scores.

    Raises:
        DataError: a field is missing, or the row has no words, or no token without them.
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
    if method not in get_args(ExplanationMethod):
        raise PromptError(format_unknown("method", method, options=get_args(ExplanationMethod)))
    if steps < 1:
        msg = f"integrated gradients with steps = {steps} are not possible. Give at least 1."
        raise PromptError(msg)
    members = model.members if isinstance(model, Ensemble) else (model,)
    for member in members:
        _list_renderers(member)
    row = as_row(row, model.fields)
    scored = _choose_score(model, members, row, label=label)
    reading = _read(members, row)
    match method:
        case "integrated-gradients":
            result = _integrate(scored, reading, steps=steps)
        case "leave-one-out":
            result = _leave_out(scored, reading)
        case _:
            assert_never(method)
    return _assemble(method, scored, reading, result)


_Views: TypeAlias = Sequence[Sequence[Example]]  # rows, each as every member renders it


class _Target(NamedTuple):
    """What is explained.

    Args:
        label: or text.
        compute: the log-probability, of rows as each member renders them.
        sum_up: the sum of these, in one run.
    """

    label: str
    compute: Callable[[_Views], Float[Tensor, " B"]]
    sum_up: Callable[[_Views], Float[Tensor, ""]]


class _Reading(NamedTuple):
    """A row as the members read it."""

    members: Sequence[PromptModel]
    row: Row
    texts: Mapping[str, str]
    words: RowWords

    def render(self, row: Row) -> tuple[Example, ...]:
        """The row as each member renders it."""
        return tuple(member.render(row) for member in self.members)


class _Result(NamedTuple):
    """The scores of a method."""

    scores: Sequence[float]
    score: float
    baseline: str
    baseline_score: float
    steps: int = 0


def _choose_score(
    model: PromptModel | Ensemble,
    members: Sequence[PromptModel],
    row: Row,
    *,
    label: str | None,
) -> _Target:
    tasks: list[Task] = [member.task for member in members]
    if label is not None and model.labels and label not in model.labels:
        raise PromptError(format_unknown("label", label, options=model.labels))
    if isinstance(tasks[0], Classifier):
        chosen, column = _choose_column(model, tasks[0].objective, row, label=label)
        compute = partial(_compute_label_scores, members, column=column)
        return _Target(chosen, compute, lambda views: compute(views).sum())
    _refuse_parts(tasks[0])
    (member, *others), task = members, tasks[0]
    if others or not isinstance(task, TextGenerator):
        msg = (
            f"an ensemble of {len(members)} prompts that write text has no log-probability of its "
            "own, so its answer cannot be explained. Explain that of a member, such as "
            "ensemble.members[0]."
        )
        raise PromptError(msg)
    text, tokens = _choose_text(member, task, row, label=label)
    sum_up = partial(_sum_text_scores, member, tokens=tokens)
    return _Target(text, lambda views: torch.stack([sum_up([view]) for view in views]), sum_up)


def _refuse_parts(task: Task) -> None:
    """Refuse tasks whose predictions have a score for each part.

    Raises:
        PromptError: it is one.
    """
    match task:
        case Extractor():
            msg = (
                "the answer is a part of the row's own text, whose first and last token have a "
                "score each, so it cannot be explained by one score. Look at its candidates, which "
                "predict gives, with their scores."
            )
        case Chooser():
            msg = (
                "each row has its own options, each with a score of its own, so a choice cannot be "
                "explained by one score. Look at the probabilities, which predict gives."
            )
        case Tagger():
            msg = (
                "a row of tags has a score for each word, so it cannot be explained by one score. "
                "Look at the scores of its words, which predict gives."
            )
        case _:
            return
    raise PromptError(msg)


def _choose_column(
    model: PromptModel | Ensemble, objective: ScoreObjective, row: Row, *, label: str | None
) -> tuple[str, int]:
    """What is explained: a label, or the number of a row, and its place among the outputs.

    Raises:
        PromptError: a label is given, but there are none; or there are several numbers.
    """
    if objective.labels:
        probabilities = model.predict([row])[0].probabilities
        chosen = max(probabilities, key=probabilities.__getitem__) if label is None else label
        return chosen, objective.labels.index(chosen)
    if label is not None:
        msg = f"the task predicts numbers, so there is no label {label!r}. Leave the label out."
        raise PromptError(msg)
    if isinstance(objective, Numbers) and objective.num_outputs > 1:
        msg = (
            f"a row has {objective.num_outputs} numbers, and one score is explained. Train a "
            "prompt for each of them."
        )
        raise PromptError(msg)
    return model.predict([row])[0].label, 0


def _choose_text(
    model: PromptModel, task: TextGenerator, row: Row, *, label: str | None
) -> tuple[str, tuple[int, ...]]:
    """The text that is explained, and its tokens with the end token, if it was reached."""
    if label is None:
        prediction = model.predict([row])[0]
        tokens = prediction.token_ids or ()
        is_cut = len(tokens) >= task.decoding.max_new_tokens
        return prediction.label, (*tokens, *(() if is_cut else model.backbone.eos_token_ids[:1]))
    example = task.make_example({**row, task.target_column: label})
    return label, get_target_ids(example)


def _compute_label_scores(
    members: Sequence[PromptModel], views: _Views, *, column: int
) -> Float[Tensor, " B"]:
    """The log of the mean probability of a label, or the mean number."""
    of_members, is_number = [], False
    for model, examples in zip(members, zip(*views, strict=True), strict=True):
        if isinstance(model.task, Classifier):  # all members have the same kind of task
            # With the index of the prompt, no part of the rows is run apart from the others.
            rows = torch.zeros(len(examples), dtype=torch.long, device=model.backbone.device)
            scores = model.task.compute_scores(examples, [model.prompt], rows=rows)
            of_members.append(_read_scores(scores, model.task.objective, column))
            is_number = not model.task.objective.labels
    stacked = torch.stack(of_members)
    return stacked.mean(dim=0) if is_number else stacked.logsumexp(dim=0) - log(len(of_members))


def _read_scores(
    scores: Float[Tensor, "B C"], objective: ScoreObjective, column: int
) -> Float[Tensor, " B"]:
    """The log-probability of a label, or the number in its own unit."""
    match objective:
        case SingleLabel(temperature=temperature):
            return (scores / temperature).log_softmax(dim=-1)[:, column]
        case LabelSets():
            return F.logsigmoid(scores)[:, column]
        case Numbers(mean=mean, scale=scale):
            return scores[:, column] * scale[column] + mean[column]
        case WordNumbers(values=values):
            return (scores.softmax(dim=-1) * scores.new_tensor(values)).sum(dim=-1)
        case _:
            raise TypeError(objective)


def _sum_text_scores(
    model: PromptModel, views: _Views, *, tokens: tuple[int, ...]
) -> Float[Tensor, ""]:
    """The log-probability of the tokens, summed over rows."""
    rows = torch.zeros(len(views), dtype=torch.long, device=model.backbone.device)
    examples = [replace(example, target=tokens) for (example,) in views]
    return -model.task.compute_loss(examples, [model.prompt], rows=rows).total


def _list_renderers(member: PromptModel) -> list[Renderer]:
    """What renders the texts of rows.

    Raises:
        PromptError: rows are conversations.
    """
    renderers = member.task.renderers
    texts = [renderer for renderer in renderers if isinstance(renderer, Renderer)]
    if len(texts) < len(renderers):
        msg = (
            "the words of conversations (task.messages_column) cannot be explained. Explain a "
            "prompt whose rows are texts."
        )
        raise PromptError(msg)
    return texts


def _read(members: Sequence[PromptModel], row: Row) -> _Reading:
    """Find the words of a row.

    Raises:
        DataError: it has none.
    """
    names = dict.fromkeys(name for member in members for name in member.fields)
    texts = {name: get_text(row, name) for name in names}
    renderers = [renderer for member in members for renderer in _list_renderers(member)]
    tokens = [token for renderer in renderers for token in place_tokens(renderer, row)]
    words = RowWords(texts, tokens)
    if not words.spans:
        msg = "the row has no words, so there is nothing to explain. Give it some text."
        raise DataError(msg)
    return _Reading(members, row, texts, words)


def _assemble(
    method: ExplanationMethod, target: _Target, reading: _Reading, result: _Result
) -> Explanation:
    words = tuple(
        ExplainedWord(*span, text=reading.texts[span.field][span.start : span.end], score=score)
        for span, score in zip(reading.words.spans, result.scores, strict=True)
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
        truncated=any(example.truncated for example in reading.render(reading.row)),
    )


# ── Leave one out ──────────────────────────────────────────────────────────────────────────────


def _leave_out(target: _Target, reading: _Reading) -> _Result:
    """Run the row, the row without text, and the row without each word."""
    empty = {**reading.row, **dict.fromkeys(reading.texts, "")}
    without = (_remove(reading, span) for span in reading.words.spans)
    views = [reading.render(row) for row in (reading.row, empty, *without)]
    if not all(v.input_ids for view in views for example in view for v in example.variants):
        msg = (
            "the row has no token without one of its words, so it cannot be run without it. Give a "
            'longer row, or use the method "integrated-gradients".'
        )
        raise DataError(msg)
    score, baseline, *others = _run(target, views)
    return _Result([score - other for other in others], score, "a row without text", baseline)


def _remove(reading: _Reading, word: FieldSpan) -> Row:
    text = remove_word(reading.texts[word.field], start=word.start, end=word.end)
    return {**reading.row, word.field: text}


@torch.no_grad()
def _run(target: _Target, views: _Views) -> list[float]:
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


def _integrate(target: _Target, reading: _Reading, *, steps: int) -> _Result:
    """Double the steps until the words' scores sum to the difference of scores."""
    backbone = reading.members[0].backbone
    begin, baseline = _choose_baseline(backbone)
    path = _make_path(reading, begin=begin)
    (score,) = _run(target, [reading.render(reading.row)])
    with torch.no_grad(), use_free_vectors(path.embed(torch.zeros(1, device=begin.device))):
        (baseline_score,) = _run(target, path.make_views(1))
    count = min(_FIRST_STEPS, steps)
    while True:
        scores = _sum_gradients(target, path, count=count, words=len(reading.words.spans))
        is_complete = is_sum_complete(score - baseline_score - sum(scores), score - baseline_score)
        if is_complete or count == steps:
            return _Result(scores, score, baseline, baseline_score, count)
        count = min(2 * count, steps)


def _sum_gradients(target: _Target, path: _Path, *, count: int, words: int) -> list[float]:
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
        example, numbered = member.render(reading.row), list[dict[int, int]]()
        for renderer in _list_renderers(member):
            numbers: dict[int, int] = {}
            for placed in place_tokens(renderer, reading.row):
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
