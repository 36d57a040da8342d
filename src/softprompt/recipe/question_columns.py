"""Find the question, the context and the answers among a table's columns."""

from dataclasses import dataclass

from softprompt.data import Table
from softprompt.data.table import is_missing, list_text_columns, to_text
from softprompt.errors import DataError
from softprompt.tasks.extraction import list_answer_texts, read_context_answers
from softprompt.tasks.targets import read_truth

_QUESTION, _CONTEXT, _START = "question", "context", "answer_start"
# Rows by which the context is found.
_TRIED_ROWS = 50


@dataclass(frozen=True)
class QuestionColumns:
    """The columns of extractive question answering.

    Args:
        question: its name.
        context: that of the text that answers are parts of.
        answers: that of the answers.
        unanswerable: the number of rows without an answer.
    """

    question: str
    context: str
    answers: str
    unanswerable: int


def find_question_columns(table: Table, source: str) -> QuestionColumns | None:
    """Find the columns of questions, contexts and answers in SQuAD's form.

    Args:
        table: the training data.
        source: the name of the table in messages.

    Returns:
        The columns; None if no column has such answers.

    Raises:
        DataError: there are answers, but no context that they stand in, or no question.
    """
    answers = next((name for name in table.column_names if _has_answers(table, name)), None)
    if answers is None:
        return None
    texts = [name for name in list_text_columns(table) if name != answers]
    holding = [name for name in texts if _holds_answers(table, name, answers=answers)]
    context = _CONTEXT if _CONTEXT in texts else next(iter(holding), None)
    others = [name for name in texts if name != context]
    question = _QUESTION if _QUESTION in others else others[0] if len(others) == 1 else None
    if context is None or question is None:
        lacking = "text that these are parts of" if context is None else "question"
        name = _CONTEXT if context is None else _QUESTION
        msg = (
            f"column {answers!r} of {source} has answers with their places, but no column looks "
            f"like the {lacking}: {', '.join(table.column_names)}. Call that column {name!r}."
        )
        raise DataError(msg)
    found = [list_answer_texts(text) for text in read_truth(table, answers) if text]
    return QuestionColumns(question, context, answers, sum(not texts for texts in found))


def _has_answers(table: Table, name: str) -> bool:
    """Whether a column has answers with their places, as records or as JSON."""
    if _START in str(table.data.schema.field(name).type):
        return True
    cells = (value for value in table[name][:] if not is_missing(value))
    first = next(cells, None)
    return isinstance(first, str) and first.lstrip().startswith(("{", "[")) and _START in first


def _holds_answers(table: Table, name: str, *, answers: str) -> bool:
    """Whether the answers of the first rows stand in a column where they say."""
    rows = min(len(table), _TRIED_ROWS)
    pairs = zip(table[name][:rows], read_truth(table.select(range(rows)), answers), strict=True)
    try:
        for cell, text in pairs:
            read_context_answers(text, "" if is_missing(cell) else to_text(cell), where="a row")
    except DataError:
        return False
    return True
