"""The scores that explanations divide among words, of rows of every kind of task."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import log
from typing import NamedTuple, TypeAlias, TypeVar, assert_never

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from softprompt.analysis.explanation import ScoreKind
from softprompt.data.inputs import Row
from softprompt.data.row_words import FieldSpan
from softprompt.data.table import get_text
from softprompt.errors import DataError, PromptError, format_unknown
from softprompt.inference.ensemble import Ensemble
from softprompt.inference.model import PromptModel
from softprompt.tasks import Classifier, Example, Prediction
from softprompt.tasks.extraction import AnswerPrediction
from softprompt.tasks.extractor import Extractor
from softprompt.tasks.generation import TextGenerator, get_target_ids
from softprompt.tasks.label_sets import LabelSets
from softprompt.tasks.objectives import ScoreObjective, SingleLabel
from softprompt.tasks.regression import Numbers, WordNumbers
from softprompt.tasks.tag_cells import read_row_words
from softprompt.tasks.tag_sequences import TagPrediction
from softprompt.tasks.tagger import Tagger

Views: TypeAlias = Sequence[Sequence[Example]]  # rows, each as every member renders it
_OUTSIDE = "O"
_Found = TypeVar("_Found", bound=Prediction)


class ExplainedScore(NamedTuple):
    """What is explained.

    Args:
        kind: of the score.
        label: the label, the tag, the answer or the text.
        compute: the score, of rows as each member renders them.
        sum_up: the sum of these, in one run.
        subject: the part of the row that the score is of; None for the whole row.
    """

    kind: ScoreKind
    label: str
    compute: Callable[[Views], Float[Tensor, " B"]]
    sum_up: Callable[[Views], Float[Tensor, ""]]
    subject: FieldSpan | None = None


def choose_score(
    model: PromptModel | Ensemble,
    members: Sequence[PromptModel],
    row: Row,
    *,
    label: str | None,
    word: int | None,
) -> ExplainedScore:
    """Choose what is explained of a row.

    Args:
        model: that predicts.
        members: the model itself, or those of the ensemble.
        row: the fields of the template.
        label: whose score is explained; None for the prediction.
        word: the number of the word whose tag is explained; None for the first one with a tag other
            than ``O``.

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
            chosen, column = _choose_column(model, task.objective, row, label=label)
            compute = partial(_compute_label_scores, members, column=column)
            kind: ScoreKind = "label" if task.objective.labels else "number"
            return ExplainedScore(kind, chosen, compute, lambda views: compute(views).sum())
        case Tagger():
            return _choose_tag(model, members, row, label=label, word=word)
        case Extractor():
            return _choose_answer(_take_only(members), task, row, label=label)
        case TextGenerator():
            member = _take_only(members)
            text, tokens = _choose_text(member, task, row, label=label)
            sum_up = partial(_sum_text_scores, member, tokens=tokens)
            return ExplainedScore(
                "text", text, lambda views: torch.stack([sum_up([view]) for view in views]), sum_up
            )
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


def _choose_tag(
    model: PromptModel | Ensemble,
    members: Sequence[PromptModel],
    row: Row,
    *,
    label: str | None,
    word: int | None,
) -> ExplainedScore:
    """A word, and the tag that it is given, or another one."""
    tags = _get_prediction(model.predict([row])[0], TagPrediction).tags
    if not tags:
        msg = "the row has no words, so there is nothing to explain. Give it some text."
        raise DataError(msg)
    if word is not None and not 0 <= word < len(tags):
        msg = (
            f"word = {word}, but the row has {len(tags)} words. Give a number from 0 to "
            f"{len(tags) - 1} (--word)."
        )
        raise DataError(msg)
    named = (at for at, tag in enumerate(tags) if tag != _OUTSIDE)
    number = next(named, 0) if word is None else word
    tag = tags[number] if label is None else label
    task = members[0].task
    column = task.settings.words_column if isinstance(task, Tagger) else ""
    place = read_row_words(row[column], column).places[number]
    compute = partial(_compute_tag_scores, members, column=model.labels.index(tag))
    subject = FieldSpan(column, *place)
    return ExplainedScore("tag", tag, compute, lambda views: compute(views).sum(), subject)


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
    members: Sequence[PromptModel], views: Views, *, column: int
) -> Float[Tensor, " B"]:
    """The log of the mean probability of a tag, each of the only word that a row has left."""
    of_members = []
    for model, examples in zip(members, zip(*views, strict=True), strict=True):
        task = model.task
        if isinstance(task, Tagger):  # all members have the same kind of task
            states = task.compute_row_states(
                examples, [model.prompt], rows=_number_rows(model, examples)
            )
            pairs = zip(examples, states, strict=True)
            of_members.append(torch.stack([_score_word(task, *pair)[column] for pair in pairs]))
    return torch.stack(of_members).logsumexp(dim=0) - log(len(of_members))


def _score_word(task: Tagger, example: Example, states: Float[Tensor, "_ H"]) -> Tensor:
    """The log-probabilities of a word's tags, by those of its tokens."""
    pieces = () if example.words is None else example.words.pieces[0]
    logs: Tensor = task.head(states[list(pieces)].float()).log_softmax(dim=-1)
    match task.objective.aggregation:
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
        first, last = example.target if isinstance(example.target, tuple) else (0, 0)
        found.append(logs[int(first), 0] + logs[int(last), 1])
    return torch.stack(found)


def _number_rows(model: PromptModel, examples: Sequence[Example]) -> Tensor:
    """The index of the prompt of each row, with which no part of rows is run apart."""
    return torch.zeros(len(examples), dtype=torch.long, device=model.backbone.device)


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
