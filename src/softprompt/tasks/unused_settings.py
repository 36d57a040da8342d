"""Settings of a task that its other settings leave without any effect."""

from collections.abc import Iterator
from dataclasses import fields
from typing import TypeAlias

from softprompt.errors import TemplateError
from softprompt.tasks.config import (
    Choose,
    Classify,
    Extract,
    Generate,
    Regress,
    Tag,
    TaskSettings,
)


def find_unused_settings(settings: TaskSettings) -> Iterator[str]:
    """The faults of settings that are not at their defaults, but have no effect because of others.

    Args:
        settings: of the task.

    Yields:
        The key, why it means nothing, and what to do.

    Examples:
        >>> (fault,) = find_unused_settings(Generate(temperature=0.7))
        >>> fault.partition(": the")[0]
        'task.temperature: means nothing without task.do_sample = true'
    """
    yield from _find_faults(settings, _list_reasons(settings))
    yield from _find_faults(settings, _list_chat_reasons(settings))


def check_chat_settings(settings: TaskSettings) -> None:
    """Check that settings of conversations are those of a task whose rows are conversations.

    Args:
        settings: of the task.

    Raises:
        TemplateError: one of them has no meaning.
    """
    for fault in _find_faults(settings, _list_chat_reasons(settings)):
        raise TemplateError(fault)


# Names of settings, and why they mean nothing.
_Reason: TypeAlias = tuple[tuple[str, ...], str]


def _find_faults(settings: TaskSettings, reasons: Iterator[_Reason]) -> Iterator[str]:
    values = vars(settings)
    given = {field.name for field in fields(settings) if values[field.name] != field.default}
    for names, reason in reasons:
        yield from (f"task.{name}: means nothing {reason}" for name in names if name in given)


def _list_chat_reasons(settings: TaskSettings) -> Iterator[_Reason]:
    if not isinstance(settings, Classify | Generate):
        return
    if settings.messages_column is None:
        reason = (
            "without task.messages_column. Name the column of the conversations, or take it out."
        )
        yield ("chat_template_kwargs", "train_on"), reason
    elif isinstance(settings, Generate):
        reason = (
            "with task.messages_column: the answer to a conversation is its last message. Take it "
            "out."
        )
        yield ("target_column",), reason


def _list_reasons(settings: TaskSettings) -> Iterator[_Reason]:
    match settings:
        case Classify():
            yield from _list_classification_reasons(settings)
        case Generate():
            yield from _list_generation_reasons(settings)
        case Regress(words=words) if words is not None:
            reason = (
                "with task.words, which the language-model head scores. Take it out, or take "
                "task.words out, which trains a head."
            )
            yield ("head", "pooling"), reason
        case Tag():
            yield from _list_tagging_reasons(settings)
        case Choose(head=None):
            reason = "without task.head: options are scored as text. Take it out, or set task.head."
            yield ("pooling",), reason
        case Regress() | Extract() | Choose():
            return


def _list_classification_reasons(settings: Classify) -> Iterator[_Reason]:
    if settings.verbalizer is not None:
        reason = "with a verbalizer, whose own order is that of the labels. Take it out."
        yield ("labels",), reason
        reason = (
            "with a verbalizer, whose words the language-model head scores. Take it out, or take "
            "task.verbalizer out, which trains a head."
        )
        yield ("head", "pooling"), reason
    if settings.multi_label:
        reason = (
            "with task.multi_label = true: each label has a threshold of its own. Take it out, and "
            "set task.thresholds."
        )
        yield ("temperature", "abstain_below"), reason
        reason = (
            "with task.multi_label = true: a row has any number of labels, each right or wrong. "
            "Take it out."
        )
        yield ("ordinal",), reason
    else:
        reason = (
            "without task.multi_label = true: of single labels the most probable is predicted. "
            "Take it out; task.abstain_below is the least probability of a prediction."
        )
        yield ("thresholds",), reason


def _list_generation_reasons(settings: Generate) -> Iterator[_Reason]:
    if settings.choices is None:
        reason = "without task.choices: any text can be written. Take it out, or list the choices."
        yield ("constrained_decoding",), reason
    if not settings.do_sample:
        reason = (
            "without task.do_sample = true: the likeliest token is taken. Take it out, or set "
            "task.do_sample = true."
        )
        yield ("temperature", "top_k", "top_p"), reason


def _list_tagging_reasons(settings: Tag) -> Iterator[_Reason]:
    if settings.scheme == "none":
        reason = 'with task.scheme = "none": any tag may follow any other. Take it out.'
        yield ("constrained_decoding", "repair_tags"), reason
    elif settings.aggregation == "simple":
        reason = (
            'with task.aggregation = "simple", which takes the likeliest tag of each token. Take '
            "it out."
        )
        yield ("constrained_decoding",), reason
