"""The words, tags and spans of characters that the cells of a row hold, and the tags of a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from softprompt.data.inputs import Row
from softprompt.data.table import Table, check_names, is_missing, iterate_groups, to_text
from softprompt.data.tag_detection import check_tags, detect_scheme
from softprompt.data.tag_schemes import (
    OUTSIDE,
    TagScheme,
    list_tags,
    read_spans_leniently,
    repair_tags,
    write_tags,
)
from softprompt.data.text_spans import match_spans, read_text_spans
from softprompt.data.words import Characters, join_words, split_words
from softprompt.errors import DataError, format_unknown
from softprompt.tasks.config import Tag
from softprompt.tasks.objectives import parse_list
from softprompt.tasks.tag_sequences import parse_tags
from softprompt.tasks.unused_settings import find_unused_settings

# That of spans of characters, unless a task names another one.
_SPAN_SCHEME: TagScheme = "BIO"
_FEWEST_TAGS = 2


@dataclass(frozen=True)
class GivenWords:
    """The words of a row.

    Args:
        text: of the row; the words of a list have one space between them.
        places: the range of characters ``[start, end)`` of each word.
        is_list: whether they were given as a list, so that their tags are one too.
    """

    text: str
    places: tuple[Characters, ...]
    is_list: bool

    def list_words(self) -> tuple[str, ...]:
        """The words as text."""
        return tuple(self.text[start:end] for start, end in self.places)


def read_row_words(cell: object, column: str) -> GivenWords:
    """Read the words of a cell.

    Args:
        cell: a list of texts, the same as JSON or as Python writes it, or a text; or words that
            were read already.
        column: its name, for messages.

    Returns:
        The words; of a text, those that `split_words` finds.

    Raises:
        DataError: there is no value, or a word is not a text or is blank.

    Examples:
        >>> read_row_words(["New York", "is"], "words").text
        'New York is'
        >>> read_row_words("New York.", "words").places
        ((0, 3), (4, 8), (8, 9))
    """
    if isinstance(cell, GivenWords):
        return cell
    if cell is None or (isinstance(cell, float) and is_missing(cell)):
        msg = (
            f"the field {column!r} has no value. Give it a list of words, or a text (it may be "
            "empty)."
        )
        raise DataError(msg)
    items = _read_list(cell)
    if items is None:
        text = to_text(cell)
        return GivenWords(text, tuple(split_words(text)), is_list=False)
    words = [_read_word(item, number, column) for number, item in enumerate(items)]
    text, places = join_words(words)
    return GivenWords(text, tuple(places), is_list=True)


def _read_list(cell: object) -> Sequence[object] | None:
    """The items of a cell that holds a list of words; None if it is a text."""
    if isinstance(cell, list | tuple):
        return cell
    if not isinstance(cell, str) or not cell.lstrip().startswith("["):
        return None
    try:
        items = parse_list(cell)
    except DataError:  # a text that begins with a bracket
        return None
    return items if all(isinstance(item, str) for item in items) else None


def _read_word(item: object, number: int, column: str) -> str:
    is_number = isinstance(item, int | float) and not isinstance(item, bool)
    word = to_text(item) if is_number and not is_missing(item) else item
    if not isinstance(word, str) or not word.strip():
        what = "blank" if isinstance(word, str) else f"a {type(item).__name__}"
        msg = (
            f"word {number} (counted from 0) of the field {column!r} is {what}, but a word is a "
            "text. Leave it out, with its tag."
        )
        raise DataError(msg)
    return word


def read_row_tags(row: Row, settings: Tag, *, words: GivenWords | None = None) -> tuple[str, ...]:
    """The tags of a row's words, as its cell says.

    Args:
        row: with the words and their tags or spans.
        settings: of the task.
        words: of the row, if they have been read.

    Returns:
        A tag for each word, in the scheme of the rows.

    Raises:
        DataError: a cell has no value or another form, there are not as many tags as words, or a
            span does not fit the words.
    """
    for column in (settings.words_column, settings.target_column):
        if column not in row:
            raise DataError(format_unknown("column", column, options=row))
    words = words or read_row_words(row[settings.words_column], settings.words_column)
    cell = row[settings.target_column]
    if cell is None or (isinstance(cell, float | str) and is_missing(cell)):
        msg = (
            f"the field {settings.target_column!r} has no value. Give a tag for each word, or for "
            "a text its spans (perhaps an empty list)."
        )
        raise DataError(msg)
    if not words.is_list:
        return _read_spans_as_tags(cell, words, settings)
    tags = parse_tags(to_text(cell))
    if len(tags) != len(words.places):
        msg = (
            f"there are {len(tags)} tags for {len(words.places)} words. Give one tag for each word."
        )
        raise DataError(msg)
    return tags


def _read_spans_as_tags(cell: object, words: GivenWords, settings: Tag) -> tuple[str, ...]:
    column, target = settings.words_column, settings.target_column
    items = parse_list(cell) if isinstance(cell, str) else cell
    where = "the row"
    if isinstance(items, list | tuple) and any(isinstance(item, str) for item in items):
        msg = (
            f"the field {target!r} has a list of tags, but the field {column!r} has a text, whose "
            "words may be divided otherwise. Give the words as a list, one for each tag."
        )
        raise DataError(msg)
    scheme = _SPAN_SCHEME if settings.scheme == "auto" else settings.scheme
    if scheme == "none":
        msg = (
            f"the field {target!r} has spans of characters, but task.scheme is 'none', which has "
            "no spans. Leave task.scheme out, or give a tag for each word of a list."
        )
        raise DataError(msg)
    spans = read_text_spans(items, text=words.text, where=where)
    try:
        found = match_spans(
            spans, words.places, text=words.text, where=where, widen=settings.widen_spans
        )
    except DataError as error:
        if settings.widen_spans or "inside of the word" not in str(error):
            raise
        msg = f"{error} That is task.widen_spans = true."
        raise DataError(msg) from error
    return tuple(write_tags(found.spans, length=len(words.places), scheme=scheme))


def read_tag_rows(table: Table, settings: Tag, *, split: str) -> Iterator[tuple[str, ...]]:
    """Read the tags of all rows of a table.

    Args:
        table: the rows.
        settings: of the task.
        split: the name of the rows, for messages.

    Yields:
        The tags of a row.

    Raises:
        DataError: a column is missing, or as `read_row_tags`; the message names the row.
    """
    columns = (settings.words_column, settings.target_column)
    check_names(columns, table.column_names, where=f"the {split} data")
    rows = (row for group in iterate_groups(table, columns) for row in group)
    for index, row in enumerate(rows):
        try:
            yield read_row_tags(row, settings)
        except DataError as error:
            msg = f"row {index} (counted from 0) of the {split} data: {error}"
            raise DataError(msg) from error


def resolve_tag_scheme(settings: Tag, table: Table) -> Tag:
    """The settings of a task with the scheme of its training rows.

    Args:
        settings: of the task.
        table: the training rows.

    Raises:
        DataError: the rows cannot be read, or are of no one scheme.
    """
    if settings.scheme != "auto":
        return settings
    rows = list(read_tag_rows(table, settings, split="train"))
    try:
        found = detect_scheme(rows, where="the training data")
    except DataError as error:
        msg = (
            f"{error} The key is task.scheme; task.repair_tags = true reads such tags as conlleval "
            "does."
        )
        raise DataError(msg) from error
    return replace(settings, scheme=found.scheme)


def find_tags(settings: Tag, table: Table) -> tuple[str, ...]:
    """All tags of a task: those of the types that the training rows have, in the output's scheme.

    Args:
        settings: of the task.
        table: the training rows.

    Raises:
        DataError: the rows cannot be read, or have only one tag.
    """
    settings = resolve_tag_scheme(settings, table)
    scheme = get_scheme(settings)
    kinds: set[str] = set()
    for tags in read_tag_rows(table, settings, split="train"):
        if scheme == "none":
            kinds.update(tags)
        else:
            kinds.update(span.label for span in read_spans_leniently(tags, scheme=scheme))
    if len(kinds) < _FEWEST_TAGS - (scheme != "none"):
        only = f"the tag {min(kinds)!r} alone" if kinds else f"no tag but {OUTSIDE}"
        msg = (
            f"the training data has {only}, so there is nothing to learn. Give rows with other "
            "tags, too."
        )
        raise DataError(msg)
    found = list_tags(sorted(kinds), scheme=settings.output_scheme or scheme)
    if settings.labels is None:
        return found
    missing = [tag for tag in found if tag not in settings.labels]
    if missing or len({*settings.labels}) < len(settings.labels):
        msg = (
            f"task.labels lists {', '.join(map(repr, settings.labels))}, but needs each of "
            f"{', '.join(map(repr, found))} once. List these, or leave task.labels out."
        )
        raise DataError(msg)
    return tuple(settings.labels)


def get_scheme(settings: Tag) -> TagScheme:
    """The scheme of the rows.

    Args:
        settings: of a task; before its training rows are read ``auto`` counts as BIO.
    """
    return _SPAN_SCHEME if settings.scheme == "auto" else settings.scheme


def check_tag_rows(table: Table, settings: Tag, *, split: str) -> None:
    """Check that every row has words, and tags that are possible in the scheme.

    A tag that no training row has is possible: it has no part in the loss, and counts as an error.

    Args:
        table: the rows.
        settings: of the task, with its scheme.
        split: the name of the rows, for messages.

    Raises:
        DataError: a row has no words, its tags are not possible, or a setting means nothing for
            the training rows.
    """
    if split == "train":
        _check_settings(table, settings)
    rows = list(read_tag_rows(table, settings, split=split))
    bare = [index for index, tags in enumerate(rows) if not tags]
    if bare:
        msg = (
            f"row {bare[0]} (counted from 0) of the {split} data has no words in "
            f"{settings.words_column!r}. Leave such rows out."
        )
        raise DataError(msg)
    scheme = get_scheme(settings)
    if settings.repair_tags:
        for tags in rows:
            repair_tags(tags, scheme=scheme)  # which refuses tags of another scheme
        return
    try:
        check_tags(rows, scheme=scheme, where=f"the {split} data")
    except DataError as error:
        msg = (
            f"{error} The key is task.scheme; task.repair_tags = true reads such tags as conlleval "
            "does."
        )
        raise DataError(msg) from error


def _check_settings(table: Table, settings: Tag) -> None:
    """Check that every setting that was given has an effect on training rows like these."""
    faults = [*find_unused_settings(settings)]
    if settings.widen_spans or settings.repair_tags:
        column = settings.words_column
        rows = (row for group in iterate_groups(table, (column,)) for row in group)
        forms = {read_row_words(row[column], column).is_list for row in rows}
        if settings.widen_spans and forms == {True}:
            faults.append(
                "task.widen_spans: means nothing for lists of words, which have a tag for each. "
                "Take it out."
            )
        if settings.repair_tags and forms == {False}:
            faults.append(
                "task.repair_tags: means nothing for spans of characters, which are always written "
                "as possible tags. Take it out."
            )
    if faults:
        raise DataError(faults[0])


# Usual names of columns, the most certain first.
_WORD_NAMES = ("words", "tokens", "word", "token", "sentence")
_TEXT_NAMES = ("text", "sentence", "content", "document")
_TAG_NAMES = ("tags", "ner_tags", "pos_tags", "tag", "ner", "labels", "upos", "chunk_tags", "iob")
_SPAN_NAMES = ("spans", "entities", "annotations", "label", "labels")
# So many rows show what a column has.
_SHOWN = 100


def find_tag_columns(table: Table) -> tuple[str, str] | None:
    """The columns of words and of their tags, or of a text and its spans, by names and values.

    Args:
        table: the training data.

    Returns:
        The two columns; None if the rows have neither.
    """
    names = {name.strip().lower(): name for name in reversed(table.column_names)}
    rows = [row for group in iterate_groups(table.select(range(min(_SHOWN, len(table)))),
            table.column_names) for row in group]  # fmt: skip
    for words, targets in ((_WORD_NAMES, _TAG_NAMES), (_TEXT_NAMES, _SPAN_NAMES)):
        is_text = words is _TEXT_NAMES
        for word, target in product(words, targets):
            if word not in names or target not in names or word == target:
                continue
            settings = Tag(words_column=names[word], target_column=names[target], widen_spans=True)
            if _have_tags(rows, settings, is_text=is_text):
                return names[word], names[target]
    return None


def _have_tags(rows: Sequence[Row], settings: Tag, *, is_text: bool) -> bool:
    """Whether rows are words with tags, or texts with spans, of which there is one somewhere."""
    found = False
    for row in rows:
        try:
            words = read_row_words(row[settings.words_column], settings.words_column)
            tags = read_row_tags(row, settings, words=words)
        except DataError:
            return False
        if words.is_list == is_text:
            return False
        found = found or any(tag != OUTSIDE for tag in tags)
    return found
