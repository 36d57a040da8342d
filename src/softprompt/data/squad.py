"""Questions, contexts and answers: SQuAD's files as rows, and the answers of a row.

A row is one of the data sets ``squad`` and ``squad_v2``: ``id``, ``title``, ``context``,
``question``, and ``answers``, a mapping of the lists ``text`` and ``answer_start``, which are empty
if the question has no answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from softprompt.errors import DataError

_FORM = '{"text": ["Rome"], "answer_start": [17]}'
# The most places of an answer that a message lists.
_MOST_PLACES = 3


class ContextAnswer(NamedTuple):
    """A right answer.

    Args:
        text: a part of the context.
        start: its first character in the context, counted from 0 in Unicode characters.
    """

    text: str
    start: int


def read_answer_column(value: object, context: str, *, where: str) -> tuple[ContextAnswer, ...]:
    """Read the answers of a row, and check that each stands in the context where it says.

    Args:
        value: a mapping of the lists ``text`` and ``answer_start``, or a list of mappings with one
            of each.
        context: of the question.
        where: the row, for messages, such as ``row 3 of train.jsonl``.

    Returns:
        The answers; none if the question has no answer.

    Raises:
        DataError: the value has another form, or an answer does not stand where it says.

    Examples:
        >>> answers = {"text": ["Rome"], "answer_start": [3]}
        >>> read_answer_column(answers, "In Rome", where="row 0")
        (ContextAnswer(text='Rome', start=3),)
    """
    answers = [_read_pair(pair, where=where) for pair in _list_pairs(value, where=where)]
    for answer in answers:
        if not answer.text.strip():
            msg = (
                f"an answer of {where} is empty. Leave it out: a question without an answer has "
                'empty lists, {"text": [], "answer_start": []}.'
            )
            raise DataError(msg)
        if not context.startswith(answer.text, answer.start) or answer.start < 0:
            raise DataError(_describe_displaced(answer, context, where=where))
    return tuple(answers)


def _list_pairs(value: object, *, where: str) -> Sequence[tuple[object, object]]:
    """The text and the offset of each answer."""
    match value:
        case {"text": list() as texts, "answer_start": list() as starts}:
            if len(texts) == len(starts):
                return [*zip(texts, starts, strict=True)]
            msg = (
                f"the answers of {where} are {len(texts)} texts, but {len(starts)} values of "
                "answer_start. Give one for each."
            )
            raise DataError(msg)
        case list() as items if all(isinstance(item, Mapping) for item in items):
            return [(item.get("text"), item.get("answer_start")) for item in items]
        case _:
            msg = (
                f"the answers of {where} are a {type(value).__name__} without the lists text and "
                f"answer_start. Write them as {_FORM}."
            )
            raise DataError(msg)


def _read_pair(pair: tuple[object, object], *, where: str) -> ContextAnswer:
    match pair:
        case str() as text, int() as start if not isinstance(start, bool):
            return ContextAnswer(text, start)
        case text, start:
            msg = (
                f"an answer of {where} has the text {text!r} and the answer_start {start!r}, but a "
                f"text and the number of its first character are needed. Write it as in {_FORM}."
            )
            raise DataError(msg)


def _describe_displaced(answer: ContextAnswer, context: str, *, where: str) -> str:
    """Where an answer stands instead."""
    text, start = answer
    there = context[max(0, start) : max(0, start) + len(text)]
    fact = (
        f"the answer {text!r} of {where} does not stand at character {start} of its context, where "
        f"{there!r} is"
    )
    places = list(_find_all(context, text))
    if len(places) == 1:
        return f"{fact}; it stands once, at {places[0]}. Write that, if it is meant."
    if places:
        listed = ", ".join(map(str, places[:_MOST_PLACES]))
        more = " and more" if len(places) > _MOST_PLACES else ""
        return (
            f"{fact}; it stands at {listed}{more}. Write which of them is meant; offsets are "
            "counted in characters, not in bytes."
        )
    lower = context.lower().find(text.lower())
    if lower >= 0 and len(context.lower()) == len(context):
        return (
            f"{fact}; with other letters, {context[lower : lower + len(text)]!r} stands at {lower}."
            " Write the answer as the context does."
        )
    return f"{fact}, nor anywhere else in it. Copy the answer from the context, or leave it out."


def _find_all(context: str, text: str) -> Iterator[int]:
    at = context.find(text)
    while at >= 0:
        yield at
        at = context.find(text, at + 1)


def is_squad(record: Mapping[str, object]) -> bool:
    """Whether a JSON object is a file of SQuAD: under ``data`` a list of articles with paragraphs.

    Args:
        record: the whole content of a file.
    """
    match record:
        case {"data": [{"paragraphs": list()}, *_]}:
            return True
        case _:
            return False


def list_squad_rows(path: Path, record: Mapping[str, object]) -> list[dict[str, object]]:
    """The questions of a file of SQuAD, 1.1 or 2.0, as rows.

    The plausible answers of version 2.0 to questions without an answer are left out.

    Args:
        path: of the file.
        record: its content.

    Returns:
        A row for each question, in the order of the file.

    Raises:
        DataError: a part of the file is missing, or an answer does not stand where it says.
    """
    rows = []
    for number, article in enumerate(_get_list(record, "data", where=str(path))):
        where = f"article {number} (counted from 0) of {path}"
        title = {"title": article["title"]} if "title" in article else {}
        for at, paragraph in enumerate(_get_list(article, "paragraphs", where=where)):
            place = f"paragraph {at} of {where}"
            context = _get_string(paragraph, "context", where=place)
            for question in _get_list(paragraph, "qas", where=place):
                row = _make_row(question, context, where=place, path=path)
                rows.append({"id": row["id"], **title, **row})
    return rows


def _make_row(
    question: Mapping[str, object], context: str, *, where: str, path: Path
) -> dict[str, object]:
    identifier = _get_string(question, "id", where=f"a question in {where}")
    place = f"question {identifier!r} of {path}"
    if "answers" not in question and question.get("is_impossible") is not True:
        msg = (
            f"{place} has no answers. Give them as SQuAD does; a question without an answer has an "
            "empty list."
        )
        raise DataError(msg)
    answers = read_answer_column(question.get("answers", []), context, where=place)
    if question.get("is_impossible") is True and answers:
        msg = (
            f"{place} is marked is_impossible, but has the answer {answers[0].text!r}. Leave out "
            "one of the two."
        )
        raise DataError(msg)
    return {
        "id": identifier,
        "context": context,
        "question": _get_string(question, "question", where=place),
        "answers": {
            "text": [answer.text for answer in answers],
            "answer_start": [answer.start for answer in answers],
        },
    }


def _get_list(
    record: Mapping[str, object], name: str, *, where: str
) -> Sequence[Mapping[str, object]]:
    """A list of objects under a key."""
    match record.get(name):
        case list() as items if all(isinstance(item, Mapping) for item in items):
            return cast("Sequence[Mapping[str, object]]", items)
        case _:
            msg = f"{where} has no list of objects {name!r}. Write it as SQuAD's files have it."
            raise DataError(msg)


def _get_string(record: Mapping[str, object], name: str, *, where: str) -> str:
    match record.get(name):
        case str() as text:
            return text
        case _:
            msg = f"{where} has no text {name!r}. Write it as SQuAD's files have it."
            raise DataError(msg)
