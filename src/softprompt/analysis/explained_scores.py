"""The scores that explanations divide among words, of rows of every kind of task."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import log
from typing import NamedTuple, TypeAlias, TypeVar, assert_never

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from softprompt.analysis.explanation import ScoreKind
from softprompt.data.inputs import Row
from softprompt.data.row_words import FieldSpan
from softprompt.data.table import get_text
from softprompt.data.tag_schemes import TagSpan, read_spans_leniently
from softprompt.errors import DataError, PromptError, format_unknown
from softprompt.inference.ensemble import Ensemble
from softprompt.inference.model import PromptModel
from softprompt.tasks import Classifier, Example, Prediction
from softprompt.tasks.chooser import Chooser
from softprompt.tasks.extraction import AnswerPrediction
from softprompt.tasks.extractor import Extractor
from softprompt.tasks.generation import TextGenerator, get_target_ids
from softprompt.tasks.label_sets import LabelSets
from softprompt.tasks.objectives import ScoreObjective, SingleLabel, list_target
from softprompt.tasks.regression import Numbers, WordNumbers
from softprompt.tasks.tag_cells import read_row_words
from softprompt.tasks.tag_decoding import PieceAggregation
from softprompt.tasks.tag_sequences import TagPrediction
from softprompt.tasks.tagger import Tagger

Views: TypeAlias = Sequence[Sequence[Example]]  # rows, each as every member renders it
_LABEL: ScoreKind = "label"
_NUMBER: ScoreKind = "number"
_Found = TypeVar("_Found", bound=Prediction)


class ExplainedScore(NamedTuple):
    """What is explained.

    Args:
        kind: of the score.
        label: the label, the tag, the type of the span, the answer, the text or the number.
        compute: the score, of rows as each member renders them.
        sum_up: the sum of these, in one run.
        subject: the part of the row that the score is of; None for the whole row.
    """

    kind: ScoreKind
    label: str
    compute: Callable[[Views], Float[Tensor, " B"]]
    sum_up: Callable[[Views], Float[Tensor, ""]]
    subject: FieldSpan | None = None


def choose_scores(
    model: PromptModel | Ensemble,
    row: Row,
    *,
    members: Sequence[PromptModel],
    label: str | None,
    word: int | None,
) -> tuple[ExplainedScore, ...]:
    """Choose what is explained of a row.

    Args:
        model: that predicts.
        row: the fields of the template.
        members: the model itself, or those of the ensemble.
        label: whose score is explained; None for the prediction.
        word: the number of the word whose tag is explained; None for the spans that were found.

    Returns:
        One score; of a row with tags, one for each span.

    Raises:
        DataError: the row has no words, or not so many.
        PromptError: there is no such label, or the predictions have no score of their own.
    """
    task = members[0].task
    if label is not None and model.labels and label not in model.labels:
        raise PromptError(format_unknown("label", label, options=model.labels))
    if word is not None and not isinstance(task, Tagger):
        msg = f"word = {word} is for tags of words, but the task is {task.kind!r}. Leave it out."
        raise PromptError(msg)
    match task:
        case Classifier():
            return (_choose_label(model, members, task.objective, row=row, label=label),)
        case Tagger():
            return _choose_tags(model, members, task, row=row, wanted=(word, label))
        case Extractor():
            return (_choose_answer(_take_only(members), task, row, label=label),)
        case TextGenerator():
            return (_choose_text(_take_only(members), task, row, label=label),)
        case Chooser():
            msg = (
                "each row has its own options, each with a score of its own, so a choice cannot be "
                "explained by one score. Look at the probabilities, which predict gives."
            )
            raise PromptError(msg)
        case _:
            raise TypeError(task)


def _take_only(members: Sequence[PromptModel]) -> PromptModel:
    """The only member, of a task whose scores of several prompts are not averaged."""
    if len(members) == 1:
        return members[0]
    what = "write text" if isinstance(members[0].task, TextGenerator) else "find answers"
    msg = (
        f"an ensemble of {len(members)} prompts that {what} has no log-probability of its "
        "own, so its answer cannot be explained. Explain that of a member, such as "
        "ensemble.members[0]."
    )
    raise PromptError(msg)


def _choose_tags(
    model: PromptModel | Ensemble,
    members: Sequence[PromptModel],
    task: Tagger,
    *,
    row: Row,
    wanted: tuple[int | None, str | None],
) -> tuple[ExplainedScore, ...]:
    """The tags of each span that was found; or that of a word, or another one in its place."""
    number, label = wanted
    tags = _get_prediction(model.predict([row])[0], TagPrediction).tags
    if not tags:
        msg = "the row has no words, so there is nothing to explain. Give it some text."
        raise DataError(msg)
    if number is not None and not 0 <= number < len(tags):
        msg = (
            f"word = {number}, but the row has {len(tags)} words. Give a number from 0 to "
            f"{len(tags) - 1} (--word)."
        )
        raise DataError(msg)
    scheme = task.objective.scheme
    spans = () if scheme == "none" else read_spans_leniently(tags, scheme=scheme)
    make = partial(_make_tag_score, members, task, row=row)
    if number is None and label is None and spans:
        return tuple(make("span", span, tags=tags[span.start : span.end]) for span in spans)
    at = number if number is not None else spans[0].start if spans else 0
    tag = tags[at] if label is None else label
    return (make("tag", TagSpan(tag, at, at + 1), tags=(tag,)),)


def _make_tag_score(
    members: Sequence[PromptModel],
    task: Tagger,
    kind: ScoreKind,
    span: TagSpan,
    *,
    row: Row,
    tags: Sequence[str],
) -> ExplainedScore:
    """The score of the tags of some words in a row."""
    field = task.settings.words_column
    places = read_row_words(row[field], field).places[span.start : span.end]
    columns = torch.tensor([task.labels.index(tag) for tag in tags])
    compute = partial(_compute_tag_scores, members, task.objective.aggregation, columns=columns)
    subject = FieldSpan(field, places[0][0], places[-1][1])
    return ExplainedScore(kind, span.label, compute, lambda views: compute(views).sum(), subject)


def _choose_answer(
    member: PromptModel, task: Extractor, row: Row, *, label: str | None
) -> ExplainedScore:
    """The predicted answer or another part of the context, or that there is none."""
    field, start, end = task.windows.field, None, None
    if label is None:
        found = _get_prediction(member.predict([row])[0], AnswerPrediction)
        label, start, end = found.text, found.start, found.end
    elif label:
        start = get_text(row, field).find(label)
        end = start + len(label)
        if start < 0:
            msg = (
                f"the answer {label!r} is not a part of the field {field!r}. Copy it from there, "
                "or write '' for no answer."
            )
            raise PromptError(msg)
    subject = None if start is None or end is None else FieldSpan(field, start, end)
    compute = partial(_compute_answer_scores, member, task)
    return ExplainedScore("answer", label, compute, lambda views: compute(views).sum(), subject)


def _get_prediction(found: Prediction, kind: type[_Found]) -> _Found:
    if not isinstance(found, kind):
        raise TypeError(found)
    return found


def _compute_tag_scores(
    members: Sequence[PromptModel],
    aggregation: PieceAggregation,
    views: Views,
    *,
    columns: Int[Tensor, " W"],
) -> Float[Tensor, " B"]:
    """The log of the mean probability of each word's tag, summed over the words of the subject."""
    of_members = []
    for model, examples in zip(members, zip(*views, strict=True), strict=True):
        task = model.task
        if isinstance(task, Tagger):  # all members have the same kind of task
            states = task.compute_row_states(
                examples, [model.prompt], rows=_number_rows(model, examples)
            )
            rows = [
                _score_words(task, aggregation, *pair)
                for pair in zip(examples, states, strict=True)
            ]
            of_members.append(torch.stack(rows))
    logs = torch.stack(of_members).logsumexp(dim=0) - log(len(of_members))  # [B, W, C]
    wanted = columns.to(logs.device)[:, None].expand(len(logs), -1, 1)
    return logs.gather(2, wanted).sum(dim=(1, 2))


def _score_words(
    task: Tagger, aggregation: PieceAggregation, example: Example, states: Float[Tensor, "_ H"]
) -> Float[Tensor, "W C"]:
    """The log-probabilities of the tags of a row's words, by those of their tokens."""
    logs: Tensor = task.head(states.float()).log_softmax(dim=-1)
    pieces = () if example.words is None else example.words.pieces
    return torch.stack([_join_pieces(logs[list(own)], aggregation) for own in pieces])


def _join_pieces(logs: Float[Tensor, "_ C"], aggregation: PieceAggregation) -> Float[Tensor, " C"]:
    match aggregation:
        case "first" | "simple":
            return logs[0]
        case "average":
            return logs.logsumexp(dim=0) - log(len(logs))
        case "max":
            return logs[logs.max(dim=-1).values.argmax()]
        case other:
            assert_never(other)


def _compute_answer_scores(
    member: PromptModel, task: Extractor, views: Views
) -> Float[Tensor, " B"]:
    """The log-probability of the answer's first token as start, and of its last as end."""
    examples = [example for (example,) in views]
    rows = _number_rows(member, examples)
    found = []
    scores = task.compute_scores(examples, [member.prompt], rows=rows)
    for example, of_row in zip(examples, scores, strict=True):
        logs = of_row.join().log_softmax(dim=0)
        first, last = map(int, list_target(example.target or ()))
        found.append(logs[first, 0] + logs[last, 1])
    return torch.stack(found)


def _number_rows(model: PromptModel, examples: Sequence[Example]) -> Tensor:
    """The index of the prompt of each row, with which no part of rows is run apart."""
    return torch.zeros(len(examples), dtype=torch.long, device=model.backbone.device)


def _choose_label(
    model: PromptModel | Ensemble,
    members: Sequence[PromptModel],
    objective: ScoreObjective,
    *,
    row: Row,
    label: str | None,
) -> ExplainedScore:
    """A label, or the number of a row.

    Raises:
        PromptError: a label is given, but there are none; or there are several numbers.
    """
    column, kind = 0, _NUMBER
    if objective.labels:
        if label is None:
            probabilities = model.predict([row])[0].probabilities
            label = max(probabilities, key=probabilities.__getitem__)
        column, kind = objective.labels.index(label), _LABEL
    elif label is not None:
        msg = f"the task predicts numbers, so there is no label {label!r}. Leave the label out."
        raise PromptError(msg)
    elif isinstance(objective, Numbers) and objective.num_outputs > 1:
        msg = (
            f"a row has {objective.num_outputs} numbers, and one score is explained. Train a "
            "prompt for each of them."
        )
        raise PromptError(msg)
    else:
        label = model.predict([row])[0].label
    compute = partial(_compute_label_scores, members, column=column)
    return ExplainedScore(kind, label, compute, lambda views: compute(views).sum())


def _choose_text(
    model: PromptModel, task: TextGenerator, row: Row, *, label: str | None
) -> ExplainedScore:
    """A text with its tokens and the end token, if it was reached."""
    if label is None:
        prediction = model.predict([row])[0]
        label, tokens = prediction.label, prediction.token_ids or ()
        if len(tokens) < task.decoding.max_new_tokens:
            tokens = (*tokens, *model.backbone.eos_token_ids[:1])
    else:
        tokens = get_target_ids(task.make_example({**row, task.target_column: label}))
    sum_up = partial(_sum_text_scores, model, tokens=tokens)
    return ExplainedScore(
        "text", label, lambda views: torch.stack([sum_up([view]) for view in views]), sum_up
    )


def _compute_label_scores(
    members: Sequence[PromptModel], views: Views, *, column: int
) -> Float[Tensor, " B"]:
    """The log of the mean probability of a label, or the mean number."""
    of_members, is_number = [], False
    for model, examples in zip(members, zip(*views, strict=True), strict=True):
        if isinstance(model.task, Classifier):  # all members have the same kind of task
            rows = _number_rows(model, examples)
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
    model: PromptModel, views: Views, *, tokens: tuple[int, ...]
) -> Float[Tensor, ""]:
    """The log-probability of the tokens, summed over rows."""
    examples = [replace(example, target=tokens) for (example,) in views]
    rows = _number_rows(model, examples)
    return -model.task.compute_loss(examples, [model.prompt], rows=rows).total
