"""The scheme of a data set's tags: recognised, and checked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from softprompt.data.tag_schemes import OUTSIDE, TAG_PREFIXES, TagScheme, find_fault
from softprompt.errors import DataError

_PREFIXES = frozenset(letter for letters in TAG_PREFIXES.values() for letter in letters)
_SHARED = frozenset("BI")


@dataclass(frozen=True)
class DetectedScheme:
    """The scheme of a data set's tags.

    Args:
        scheme: the scheme.
        reason: how it was recognised.
    """

    scheme: TagScheme
    reason: str


def detect_scheme(rows: Iterable[Sequence[str]], *, where: str = "the data") -> DetectedScheme:
    """Recognise the scheme of a data set by all of its tags.

    Args:
        rows: the tags of the words of each row.
        where: the name of the data in messages.

    Returns:
        The scheme and the reason for it. Rows whose tags are all ``O`` are in every scheme; BIO is
        chosen.

    Raises:
        DataError: only some of the tags have the form of a scheme, or no scheme has all of them.

    Examples:
        >>> detect_scheme([["I-PER", "I-PER", "O"], ["O", "I-LOC"]]).scheme
        'IOB1'
        >>> detect_scheme([["DET", "NOUN"]]).scheme
        'none'
    """
    kept = [list(tags) for tags in rows]
    tags = {tag for of_row in kept for tag in of_row} - {OUTSIDE}
    if not tags:
        return DetectedScheme("BIO", f"all tags of {where} are {OUTSIDE}, as in every scheme")
    typed = {tag for tag in tags if tag[:1] in _PREFIXES and tag[1:2] == "-" and tag[2:]}
    if typed or tags <= _PREFIXES:
        typed |= tags & _PREFIXES
    if not typed:
        return DetectedScheme("none", f"no tag of {where} has a prefix such as B-")
    if odd := sorted(tags - typed):
        msg = (
            f"some tags of {where} have the form of a scheme, such as {min(typed)!r}, but not "
            f"{odd[0]!r} ({_find_tag(kept, odd[0])}). Correct it, or choose the scheme 'none' if "
            "these are plain tags."
        )
        raise DataError(msg)
    letters = {tag[0] for tag in typed}
    for scheme in ("BIOES", "BILOU"):
        if letters & (set(TAG_PREFIXES[scheme]) - _SHARED):
            return _accept(scheme, letters, kept, where=where)
    return _choose_scheme(kept, where=where)


def _accept(
    scheme: TagScheme, letters: set[str], rows: Sequence[Sequence[str]], *, where: str
) -> DetectedScheme:
    """The scheme, if it has all letters."""
    if other := sorted(letters - set(TAG_PREFIXES[scheme])):
        tag = next(tag for tags in rows for tag in tags if tag[:1] == other[0])
        mine = sorted(letters & set(TAG_PREFIXES[scheme]) - _SHARED)
        msg = (
            f"the tags of {where} have the prefix {mine[0]} of {scheme}, and {tag!r} "
            f"({_find_tag(rows, tag)}), which is of another scheme. Write all of them in one."
        )
        raise DataError(msg)
    own = sorted(letters - _SHARED)
    return DetectedScheme(scheme, f"{where} has the prefix {' and '.join(own)}")


def _choose_scheme(rows: Sequence[Sequence[str]], *, where: str) -> DetectedScheme:
    """BIO or IOB1, by the tags that spans begin with."""
    faults = {scheme: _find_row_fault(rows, scheme) for scheme in ("BIO", "IOB1")}
    match faults["BIO"], faults["IOB1"]:
        case None, _:
            return DetectedScheme("BIO", f"every span of {where} begins with B")
        case _, None:
            return DetectedScheme("IOB1", f"spans of {where} begin with I, unless they touch")
        case (bio, iob1):
            msg = (
                f"the tags of {where} are neither BIO ({bio}) nor IOB1 ({iob1}). Name the scheme "
                "that is meant, and correct the tags that are not possible in it."
            )
            raise DataError(msg)


def _find_row_fault(rows: Sequence[Sequence[str]], scheme: TagScheme) -> str | None:
    """The first fault of the rows, with its place."""
    for number, tags in enumerate(rows):
        if (fault := find_fault(tags, scheme=scheme)) is not None:
            return f"row {number}, word {fault.word}: {fault.reason}"
    return None


def _find_tag(rows: Sequence[Sequence[str]], tag: str) -> str:
    """The first place of a tag."""
    row = next(number for number, tags in enumerate(rows) if tag in tags)
    return f"row {row}, word {list(rows[row]).index(tag)}, counted from 0"


def check_tags(rows: Iterable[Sequence[str]], *, scheme: TagScheme, where: str) -> None:
    """Check that the tags of rows are possible in a scheme.

    Args:
        rows: the tags of the words of each row.
        scheme: the scheme.
        where: the name of the data in messages.

    Raises:
        DataError: a row's tags are not possible.
    """
    faults = [
        (row, fault)
        for row, tags in enumerate(rows)
        if (fault := find_fault(tags, scheme=scheme)) is not None
    ]
    if faults:
        row, fault = faults[0]
        more = f" ({len(faults)} rows of {where} have such tags)" if len(faults) > 1 else ""
        msg = (
            f"row {row}, word {fault.word} of {where} (both counted from 0) has the tag "
            f"{fault.reason}{more}. Correct the tags, or name the scheme that they are written in."
        )
        raise DataError(msg)
