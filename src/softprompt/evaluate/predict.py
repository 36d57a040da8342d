"""Run a task over many rows: answers in the rows' order, and what they are worth."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from softprompt.data.batch import like_length
from softprompt.errors import DataError
from softprompt.evaluate.metrics import Confusion, classification, confusion, generation
from softprompt.prompt import Prompt
from softprompt.tasks import Answer, Classifier, Example, Loss, Task

METRICS = {
    "classify": ("accuracy", "macro_f1", "matthews", "f1"),
    "generate": ("exact_match", "bleu", "chrf", "rouge1", "rouge2", "rougeL"),
}


@dataclass(frozen=True)
class Judged:
    """Rows that were answered and whose right answers are known.

    Args:
        total: the summed loss.
        count: the scored tokens (rows, in classification).
        truth: the right answers.
        answers: the given ones.
    """

    total: float
    count: int
    truth: tuple[str, ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Report:
    """What a prompt is worth on some rows.

    Args:
        rows: how many there were.
        metrics: ``loss`` per scored token, and the task's metrics by name.
        confusion: who was taken for whom; None for free text.
    """

    rows: int
    metrics: Mapping[str, float]
    confusion: Confusion | None


def predict(
    task: Task,
    examples: Sequence[Example],
    *,
    prompt: Prompt | None,
    batch_size: int = 32,
) -> Iterator[tuple[int, Answer]]:
    """Answer rows in batches of like length.

    Yields:
        The row's index and its answer, in the order in which they are ready.
    """
    task = task.answering(examples, prompt)
    for batch in like_length([e.length for e in examples], size=batch_size, seed=None):
        with torch.no_grad():
            answers = task.answer([examples[i] for i in batch], [prompt])
        yield from zip(batch, answers, strict=True)


def bare_answers(task: Task, rows: Sequence[Mapping[str, object]]) -> list[str]:
    """What a task's backbone answers without a prompt, in the rows' order."""
    examples = [task.example(row, target=False) for row in rows]
    found = dict(predict(task, examples, prompt=None))
    return [found[at].label for at in range(len(rows))]


def judge(
    task: Task,
    examples: Sequence[Example],
    *,
    truth: Sequence[str],
    prompt: Prompt | None,
    batch_size: int = 32,
) -> Judged:
    """Answer rows and sum up their loss; a classifier runs the backbone once for both.

    Args:
        truth: the right answer of each row.
    """
    total, count = 0.0, 0
    answers: dict[int, Answer] = {}
    task = task.answering(examples, prompt)
    for batch in like_length([e.length for e in examples], size=batch_size, seed=None):
        chosen = [examples[i] for i in batch]
        with torch.no_grad():
            loss, given = _both(task, chosen, prompt)
        total, count = total + float(loss.total), count + loss.count
        answers |= dict(zip(batch, given, strict=True))
    ordered = tuple(answers[i] for i in range(len(examples)))
    return Judged(total, count, tuple(truth), ordered)


def report(task: Task, parts: Sequence[Judged]) -> Report:
    """Sum up what was judged, perhaps in several processes.

    Raises:
        DataError: there are no rows.
    """
    truth = [t for part in parts for t in part.truth]
    answers = [a.label for part in parts for a in part.answers]
    if not truth:
        msg = "no rows to evaluate. Give a split or a file that has some."
        raise DataError(msg)
    loss = sum(part.total for part in parts) / sum(part.count for part in parts)
    metrics = {"loss": loss}
    table = None
    if task.labels:
        metrics |= classification(truth, answers, labels=task.labels)
        table = confusion(truth, answers, labels=task.labels)
    if not isinstance(task, Classifier):
        metrics |= generation(truth, answers)
    return Report(len(truth), metrics, table)


def _both(
    task: Task, examples: Sequence[Example], prompt: Prompt | None
) -> tuple[Loss, list[Answer]]:
    if not isinstance(task, Classifier):
        return task.loss(examples, [prompt]), task.answer(examples, [prompt])
    scores = task.scores(examples, [prompt])
    wanted = torch.tensor([e.target for e in examples], device=scores.device)
    loss = Loss(F.cross_entropy(scores, wanted, reduction="sum"), len(examples))
    return loss, task.answers(scores)
