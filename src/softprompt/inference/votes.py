"""Votes: how the predictions of several prompts are combined, and what they must have in common."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Literal, assert_never, get_args

from jaxtyping import Int
from torch import Tensor

from softprompt.artifact.checks import read_task_settings
from softprompt.errors import PromptError, format_unknown
from softprompt.inference.loops import check_numbers
from softprompt.inference.model import PromptModel
from softprompt.prompt import Prompt
from softprompt.tasks import Classifier, Example, Objective, Prediction, Task
from softprompt.tasks.base import ReadoutTask
from softprompt.tasks.choices import ChoicePrediction, Choices
from softprompt.tasks.chooser import Chooser
from softprompt.tasks.config import Classify, Regress
from softprompt.tasks.generation import TextGenerator
from softprompt.tasks.heads import PooledHeadTask
from softprompt.tasks.objectives import ScoreObjective, SingleLabel, average_probabilities
from softprompt.tasks.regression import Numbers
from softprompt.tasks.tag_sequences import TagPrediction, TagSequences
from softprompt.tasks.tagger import Tagger

Vote = Literal["majority", "mean"]

# Settings of the task that may differ between members.
_MAY_DIFFER = {
    "template",
    "head",
    "class_weights",
    "likelihood_weight",
    "label_smoothing",
    "temperature",
    "thresholds",
    "mean",
    "scale",
    "null_threshold",
    "n_best",
    "max_answer_tokens",
    "stride",
}


def combine(
    predictions: Sequence[Prediction], vote: Vote, *, objective: Objective | None = None
) -> Prediction:
    """Combine the predictions of several prompts for one row.

    The probabilities are the mean of theirs with either vote, so the label of a ``majority`` vote
    may not be the likeliest.

    Source: Lester et al. 2021, "Prompt ensembling" (the majority of five prompts).

    Args:
        predictions: at least one; with the same labels, or texts.
        vote: ``majority`` takes the label that most of them have; of tied labels, the one with the
            highest mean probability, then the first of the labels; of tied texts, the first.
            ``mean`` takes the label with the highest mean probability, or the mean of numbers.
        objective: of the task; None for one of several labels.

    Returns:
        The label or text of the vote, with the mean probabilities.
    """
    mean = average_probabilities(predictions)
    labels = [*mean]
    match vote:
        case "majority":
            count = Counter(p.label for p in predictions)
            tied = [label for label in (labels or count) if count[label] == max(count.values())]
            label = max(tied, key=lambda label: mean.get(label, 0.0))
            first = next(p for p in predictions if p.label == label)
            return replace(first, probabilities=mean)
        case "mean":
            if isinstance(objective, ScoreObjective):
                return objective.average(predictions)
            if isinstance(objective, TagSequences):
                return objective.average([p for p in predictions if isinstance(p, TagPrediction)])
            if isinstance(objective, Choices):
                options = [p for p in predictions if isinstance(p, ChoicePrediction)]
                return objective.average(options)
            return SingleLabel((*labels,)).average(predictions)
        case _:
            assert_never(vote)


def predict_each(
    tasks: Sequence[Task],
    examples: Sequence[Example],
    *,
    prompts: Sequence[Prompt],
    rows: Int[Tensor, " B"],
) -> list[list[Prediction]]:
    """The predictions of each member of an ensemble, in one run of the backbone.

    Args:
        tasks: of the members, the same but for their heads.
        examples: the rows of the first member, then those of the next, as many for each.
        prompts: of the members.
        rows: for each row the number of its member.
    """
    first, size = tasks[0], len(examples) // len(tasks)
    parts = [slice(begin, begin + size) for begin in range(0, len(examples), size)]
    if not isinstance(first, ReadoutTask):
        texts = first.predict(examples, prompts, rows=rows)
        return [texts[part] for part in parts]
    compute = first.compute_row_states
    if isinstance(first, Chooser):
        compute = first.compute_option_states
    states = compute(examples, prompts, rows=rows)
    pairs = zip([task for task in tasks if isinstance(task, ReadoutTask)], parts, strict=True)
    found = [task.read_rows(examples[part], states[part]) for task, part in pairs]
    check_numbers([prediction for of_member in found for prediction in of_member])
    return found


def choose_vote(task: Task) -> Vote:
    """How the seeds of a run vote: by their mean probabilities; by majority where there are none.

    Args:
        task: of the run.
    """
    return "mean" if isinstance(task, Classifier | Tagger | Chooser) else "majority"


def check_vote(vote: str, task: Task) -> None:
    """Check that a task's predictions can be combined by a vote.

    Raises:
        PromptError: there is no such vote, or it does not fit the task.
    """
    if vote not in get_args(Vote):
        raise PromptError(format_unknown("vote", vote, options=get_args(Vote)))
    if vote == "majority" and task.objective.detail_names == Numbers.detail_names:
        msg = "numbers have no majority, since hardly two are the same. Use vote 'mean'."
        raise PromptError(msg)
    if vote == "majority" and isinstance(task, Tagger):
        msg = "tags of words are averaged, so that they fit each other. Use vote 'mean'."
        raise PromptError(msg)
    if vote == "mean" and not isinstance(task, Classifier | Tagger | Chooser):
        what = "generated texts" if isinstance(task, TextGenerator) else "parts of a text"
        msg = (
            f"{what} have no probabilities, so there is no mean. Use vote 'majority', "
            "or a task of kind 'classify'."
        )
        raise PromptError(msg)


def check_same_task(first: PromptModel, other: PromptModel, *, number: int) -> None:
    """Check that a member of an ensemble has the task of the first one.

    Args:
        first: the first member.
        other: the other one.
        number: of the other one, counted from 1.

    Raises:
        PromptError: it has another task.
    """
    expected, actual = _describe_task(first), _describe_task(other)
    for name in expected | actual:
        if expected.get(name) != actual.get(name):
            msg = (
                f"the members of an ensemble need the same task, but {name} is "
                f"{expected.get(name)!r} for the first and {actual.get(name)!r} for member "
                f"{number}. Choose prompts that were trained for the same task."
            )
            raise PromptError(msg)


def _describe_task(model: PromptModel) -> dict[str, object]:
    """The settings that members have in common, and the labels in their order."""
    settings = read_task_settings(model.artifact.manifest)
    facts = {name: value for name, value in asdict(settings).items() if name not in _MAY_DIFFER}
    if isinstance(settings, Classify | Regress):
        facts["words"] = settings.list_words()
        # What the head reads, whatever name an older artifact has for it.
        facts["pooling"] = model.task.pooling if isinstance(model.task, PooledHeadTask) else None
    return {"kind": settings.kind, **facts, "labels": [*model.labels]}
