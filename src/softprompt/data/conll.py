"""Files of words and tags in columns, as of CoNLL's shared tasks: one word per line.

A blank line ends a sentence, which becomes a row with the lists ``words`` and ``tags``.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from softprompt.errors import DataError

CONLL_FORMATS = (".conll", ".conllu", ".iob", ".iob2", ".bio")
# Other white space, such as a no-break space, can be a word.
_BLANKS = " \t"
_SPACES = re.compile(f"[{_BLANKS}]+")
_DOCUMENT = "-DOCSTART-"
# Columns of CoNLL-U (universaldependencies.org/format.html), by the names that they get here.
_CONLLU = {"words": 1, "lemmas": 2, "tags": 3, "xpos": 4, "deprels": 7}
_CONLLU_WIDTH = 10
# Words written as one (1-2), and words that are not written (8.1).
_CONLLU_EXTRA = re.compile(r"\d+[-.]\d+")
_FEWEST_WITH_NUMBERS = 3

NumberedWord = tuple[int, Sequence[str]]
Sentence = list[NumberedWord]


def read_conll(
    path: Path, text: str, *, is_conllu: bool, separator: str | None = None
) -> dict[str, list[object]]:
    """The columns of a table whose cells are lists with one text per word.

    Args:
        path: of the file, for messages.
        text: its content.
        is_conllu: whether it is CoNLL-U, whose columns have fixed meanings.
        separator: between the columns of other files. None: tabs if most lines have one, otherwise
            any number of spaces.

    Returns:
        Of CoNLL-U: ``words``, ``lemmas``, ``tags`` (UPOS), ``xpos`` and ``deprels``. Of other
        files: ``words``, the first column; ``tags``, the last one; and ``column_2`` and so on
        between them. If the first of three or more columns counts the words of each sentence, the
        second one has the words. A file of one column has no tags.

    Raises:
        DataError: lines have different numbers of columns, or an empty word or tag.
    """
    if is_conllu:
        sentences, names = list(_read_conllu(path, text)), _CONLLU
    else:
        sentences = list(_read_columns(path, text, separator=separator))
        names = _name_columns(sentences)
    for sentence in sentences:
        for number, cells in sentence:
            _check_cells(path, number, names=names, cells=cells)
    return {
        name: [[cells[at] for _, cells in sentence] for sentence in sentences]
        for name, at in names.items()
    }


def _check_cells(
    path: Path, number: int, *, names: Mapping[str, int], cells: Sequence[str]
) -> None:
    for name in ("words", "tags"):
        if name in names and not cells[names[name]]:
            msg = (
                f"line {number} of {path} has an empty {name.removesuffix('s')}. Write one in "
                "every line that is not blank."
            )
            raise DataError(msg)


def _number_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines, each with its number. Other signs of a new line may be words."""
    return ((number, line.strip(" \r")) for number, line in enumerate(text.split("\n"), 1))


def _read_conllu(path: Path, text: str) -> Iterator[Sentence]:
    """The sentences of a file of CoNLL-U."""
    lines = ((n, line) for n, line in _number_lines(text) if not line.startswith("#"))
    words = ((number, line.split("\t") if line.strip(_BLANKS) else []) for number, line in lines)
    for sentence in _split_sentences(words):
        for number, cells in sentence:
            if len(cells) != _CONLLU_WIDTH:
                msg = (
                    f"line {number} of {path} has {len(cells)} columns, but CoNLL-U has "
                    f"{_CONLLU_WIDTH}, separated by tabs. Correct the line; or, if the last column "
                    "of the file has the tags, let its name end in .conll."
                )
                raise DataError(msg)
        kept = [word for word in sentence if not _CONLLU_EXTRA.fullmatch(word[1][0])]
        if kept:
            yield kept


def _read_columns(path: Path, text: str, *, separator: str | None) -> Iterator[Sentence]:
    """The sentences of a file with tabs or spaces between its columns."""
    lines = list(_number_lines(text))
    words = [line for _, line in lines if line.strip(_BLANKS) and not line.startswith("#")]
    if separator is None and 2 * sum("\t" in line for line in words) > len(words):
        separator = "\t"
    width = Counter(len(_split_columns(line, separator)) for line in words).most_common(1)
    columns = width[0][0] if width else 1
    split = ((number, _split_columns(line, separator)) for number, line in lines)
    kept = ((number, cells) for number, cells in split if cells[:1] != [_DOCUMENT])
    for sentence in _split_sentences(kept, comments_without=columns):
        for number, cells in sentence:
            if len(cells) != columns:
                between = {None: "spaces", "\t": "tabs"}.get(separator, repr(separator))
                msg = (
                    f"line {number} of {path} has {len(cells)} columns (separated by {between}), "
                    f"but most lines have {columns}. Write a word and its tags in every line, and "
                    "a blank line between sentences."
                )
                raise DataError(msg)
        yield sentence


def _split_columns(line: str, separator: str | None) -> list[str]:
    """The cells of a line; none if it is blank."""
    if not line.strip(_BLANKS):
        return []
    if separator is None:
        return _SPACES.split(line.strip(_BLANKS))
    return [cell.strip(" ") for cell in line.split(separator)]


def _split_sentences(
    words: Iterable[tuple[int, list[str]]], *, comments_without: int | None = None
) -> Iterator[Sentence]:
    """The sentences between blank lines.

    Before the first word of a sentence, lines that begin with ``#`` are left out if they do not
    have ``comments_without`` cells, or say ``key = value``: a word may be ``#``, too.
    """
    sentence: Sentence = []
    for number, cells in words:
        if cells:
            is_marked = cells[0].startswith("#") and comments_without is not None
            is_comment = len(cells) != comments_without or any("=" in cell for cell in cells[1:])
            if sentence or not (is_marked and is_comment):
                sentence.append((number, cells))
        elif sentence:
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def _name_columns(sentences: Sequence[Sentence]) -> dict[str, int]:
    """The columns by their names."""
    width = len(sentences[0][0][1]) if sentences else 1
    first = int(width >= _FEWEST_WITH_NUMBERS and _has_numbers(sentences))
    names = {"words": first}
    names |= {f"column_{at + 1}": at for at in range(first + 1, width - 1)}
    return names | ({"tags": width - 1} if width > first + 1 else {})


def _has_numbers(sentences: Sequence[Sentence]) -> bool:
    """Whether the first column counts the words of each sentence, from 0 or from 1."""
    columns = [[cells[0] for _, cells in sentence] for sentence in sentences]
    return any(
        all(column == [str(start + at) for at in range(len(column))] for column in columns)
        for start in (0, 1)
    )
