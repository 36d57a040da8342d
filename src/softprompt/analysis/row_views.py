"""Rows as an explanation changes them: without a word, or with nothing but what is explained."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from softprompt.data.chats import ChatRenderer
from softprompt.data.inputs import Row
from softprompt.data.rendering import Renderer
from softprompt.data.row_words import FieldSpan, PlacedToken, place_tokens, remove_word
from softprompt.data.squad import ContextAnswer
from softprompt.data.table import get_text
from softprompt.data.words import Characters
from softprompt.errors import PromptError
from softprompt.tasks import Example, Task
from softprompt.tasks.extractor import Extractor, find_tokens
from softprompt.tasks.tag_cells import GivenWords, read_row_words
from softprompt.tasks.tagger import Tagger


class _Cut(NamedTuple):
    """Characters that were taken out of a text.

    Args:
        start: the first of the word.
        end: its last plus one.
        missing: the number of characters that are gone, a space among them perhaps.
    """

    start: int
    end: int
    missing: int

    def move(self, place: Characters) -> Characters:
        """Where a part of the text is now that does not overlap the word."""
        start, end = place
        return place if end <= self.start else (start - self.missing, end - self.missing)


@dataclass(frozen=True, eq=False)
class RowView:
    """A row, and the part of it that is explained.

    Args:
        row: the fields of the template; the words of a row that is tagged are `GivenWords`.
        subject: the words whose tags are explained, or the answer; None where the score is that of
            the whole row, or of no answer.
    """

    row: Row
    subject: FieldSpan | None = None

    def get_text(self, field: str) -> str:
        """The text of a field.

        Args:
            field: its name.
        """
        cell = self.row.get(field)
        return cell.text if isinstance(cell, GivenWords) else get_text(self.row, field)

    def remove(self, word: FieldSpan) -> "RowView":
        """The row without a word, which may not be a part of the subject.

        Args:
            word: to be left out.
        """
        text, cell = self.get_text(word.field), self.row[word.field]
        rest = remove_word(text, start=word.start, end=word.end)
        cut = _Cut(word.start, word.end, len(text) - len(rest))
        changed: object = rest
        if isinstance(cell, GivenWords):
            places = [p for p in cell.places if p[1] <= word.start or p[0] >= word.end]
            changed = replace(cell, text=rest, places=tuple(map(cut.move, places)))
        subject = self.subject
        if subject is not None and subject.field == word.field:
            subject = FieldSpan(word.field, *cut.move(subject[1:]))
        return RowView({**self.row, word.field: changed}, subject)

    def strip(self, fields: tuple[str, ...]) -> "RowView":
        """The row without any text but the subject.

        Args:
            fields: those that have text.
        """
        empty: dict[str, object] = {
            name: GivenWords("", (), is_list=True) if isinstance(cell, GivenWords) else ""
            for name, cell in self.row.items()
            if name in fields
        }
        if self.subject is None:
            return RowView({**self.row, **empty})
        field, start, end = self.subject
        text, cell = self.get_text(field)[start:end], self.row[field]
        kept: object = text
        if isinstance(cell, GivenWords):
            places = [(p[0] - start, p[1] - start) for p in cell.places if start <= p[0] < end]
            kept = replace(cell, text=text, places=tuple(places))
        return RowView({**self.row, **empty, field: kept}, FieldSpan(field, 0, len(text)))

    def has_part_of(self, word: FieldSpan) -> bool:
        """Whether a word is a part of the subject, or has one.

        Args:
            word: of the row.
        """
        one = self.subject
        return (
            one is not None
            and one.field == word.field
            and one.start < word.end
            and word.start < one.end
        )

    def render(self, task: Task) -> Example:
        """The row as a task renders it, with the states of the subject's words or its tokens alone.

        Args:
            task: of the template.
        """
        example = task.make_example(self.row, target=False)
        match task:
            case Tagger():
                return self._focus(example)
            case Extractor():
                return replace(example, target=self._locate(example))
            case _:
                return example

    def _focus(self, example: Example) -> Example:
        words, subject = example.words, self.subject
        if words is None or subject is None:
            return example
        pairs = zip(words.words, words.pieces, strict=True)
        own = [pair for pair in pairs if subject.start <= pair[0][0] < subject.end]
        places, pieces = zip(*own, strict=True)
        return replace(example, words=replace(words, words=places, pieces=pieces, tokens=()))

    def _locate(self, example: Example) -> tuple[int, int]:
        """The first and the last token of the answer, counted from 1; 0 for no answer."""
        if self.subject is None:
            return 0, 0
        _, start, end = self.subject
        return find_tokens(ContextAnswer(example.text[start:end], start), example.characters)


def view_row(task: Task, row: Row) -> RowView:
    """The row as it was given, without a subject.

    Args:
        task: of the template.
        row: its fields.

    Raises:
        DataError: the words of a row to be tagged cannot be read.
    """
    if not isinstance(task, Tagger):
        return RowView(row)
    column = task.settings.words_column
    return RowView({**row, column: read_row_words(row.get(column), column)})


def place_row(task: Task, view: RowView) -> list[list[PlacedToken]]:
    """The tokens that have characters of a row's fields, in each way that it is rendered.

    Args:
        task: that renders it.
        view: the row.

    Returns:
        Those of each renderer; of a row in windows, those of each window.
    """
    match task:
        case Tagger() | Extractor():
            return task.place_tokens(view.row)
        case _:
            return [place_tokens(one, view.row) for one in list_text_renderers(task)]


def list_text_renderers(task: Task) -> list[Renderer]:
    """What renders the texts of rows.

    Args:
        task: of a prompt.

    Raises:
        PromptError: rows are conversations.
    """
    check_texts(task)
    return [renderer for renderer in task.renderers if isinstance(renderer, Renderer)]


def check_texts(task: Task) -> None:
    """Check that the words of a task's rows have places that are known.

    Args:
        task: of a prompt.

    Raises:
        PromptError: rows are conversations.
    """
    if any(isinstance(renderer, ChatRenderer) for renderer in task.renderers):
        msg = (
            "the words of conversations (task.messages_column) cannot be explained. Explain a "
            "prompt whose rows are texts."
        )
        raise PromptError(msg)


def list_given_words(view: RowView) -> dict[str, tuple[Characters, ...]]:
    """The words of the fields that were given as words.

    Args:
        view: the row.
    """
    cells = view.row.items()
    return {name: cell.places for name, cell in cells if isinstance(cell, GivenWords)}
