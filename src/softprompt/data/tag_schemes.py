"""Tag schemes: how the tags of words say where spans begin and end.

A tag is a prefix, ``-`` and a type, such as ``B-PER``, or ``O`` outside of all spans. A prefix
without a type is of the type ``_``. The schemes differ in their prefixes:

- ``BIO`` (also called IOB2): ``B`` begins every span, ``I`` continues it.
- ``IOB1``: ``I`` everywhere; ``B`` only where a span follows another one of its type directly.
- ``BIOES``: as BIO, but ``E`` ends a span of several words, and ``S`` is a span of one word.
- ``BILOU``: the same with the letters ``L`` (last) and ``U`` (unit).
- ``none``: plain tags without spans, such as parts of speech.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias, assert_never, get_args

from softprompt.errors import DataError

TagScheme: TypeAlias = Literal["BIO", "IOB1", "BIOES", "BILOU", "none"]
TAG_SCHEMES: tuple[TagScheme, ...] = get_args(TagScheme)

OUTSIDE = "O"
# The prefixes by what they mean: begins, inside, ends, single.
_LETTERS: Mapping[TagScheme, Mapping[str, str]] = {
    "BIO": {"B": "B", "I": "I"},
    "IOB1": {"B": "B", "I": "I"},
    "BIOES": {"B": "B", "I": "I", "E": "E", "S": "S"},
    "BILOU": {"B": "B", "I": "I", "E": "L", "S": "U"},
    "none": {},
}
_ROLES = {
    scheme: {letter: role for role, letter in letters.items()}
    for scheme, letters in _LETTERS.items()
}
_RULES: Mapping[TagScheme, str] = {
    "BIO": "I-X only follows B-X or I-X of the same type X",
    "IOB1": "B-X only follows B-X or I-X of the same type X",
    "BIOES": "I-X or E-X follows B-X and I-X of the same type X, and nothing else",
    "BILOU": "I-X or L-X follows B-X and I-X of the same type X, and nothing else",
    "none": "every tag may follow every other one",
}
TAG_PREFIXES: Mapping[TagScheme, tuple[str, ...]] = {
    scheme: tuple(roles) for scheme, roles in _ROLES.items()
}
_UNTYPED = "_"
_NO_SPANS = f"the scheme 'none' has no spans. Choose one of {', '.join(TAG_SCHEMES[:-1])}."


class TagSpan(NamedTuple):
    """A span of words.

    Args:
        label: its type.
        start: its first word, counted from 0.
        end: one after its last word.
    """

    label: str
    start: int
    end: int


class _Part(NamedTuple):
    """A tag in its parts; the role is B, I, E, S or O, whatever the letters of the scheme are."""

    role: str
    label: str


_OUT = _Part(OUTSIDE, "")


class TagFault(NamedTuple):
    """The first place where a row's tags are impossible.

    Args:
        word: the number of the word, counted from 0; the last one if the row may not end with it.
        reason: what is wrong there, and the scheme's rule.
    """

    word: int
    reason: str


def list_tags(labels: Iterable[str], *, scheme: TagScheme) -> tuple[str, ...]:
    """All tags of a scheme for some types of spans.

    Args:
        labels: the types; the tags themselves if the scheme is ``none``.
        scheme: the scheme.

    Returns:
        ``O``, then the tags of each type in the order of the types.

    Examples:
        >>> list_tags(["PER", "LOC"], scheme="BIO")
        ('O', 'B-PER', 'I-PER', 'B-LOC', 'I-LOC')
    """
    if scheme == "none":
        return tuple(labels)
    letters = _LETTERS[scheme].values()
    return (OUTSIDE, *(_join_tag(letter, label) for label in labels for letter in letters))


def find_fault(tags: Sequence[str], *, scheme: TagScheme) -> TagFault | None:
    """Find the first impossible tag of a row.

    Args:
        tags: of its words.
        scheme: the scheme.

    Returns:
        The fault; None if the tags are possible.

    Examples:
        >>> find_fault(["O", "I-PER"], scheme="BIO").reason
        "'I-PER' after 'O', but in BIO I-X only follows B-X or I-X of the same type X"
    """
    if scheme == "none":
        return None
    previous, before = _OUT, ""
    for word, tag in enumerate(tags):
        part = _parse_tag(tag, scheme)
        if part is None:
            letters = ", ".join(_ROLES[scheme])
            return TagFault(
                word, f"{tag!r}, but tags of {scheme} are {OUTSIDE} or begin with {letters}"
            )
        if not _can_follow(previous, part, scheme):
            place = f"after {before!r}" if word else "at the beginning of the row"
            return TagFault(word, f"{tag!r} {place}, but in {scheme} {_RULES[scheme]}")
        previous, before = part, tag
    if not _can_follow(previous, _OUT, scheme):
        reason = f"{before!r} at the end of the row, but in {scheme} {_RULES[scheme]}"
        return TagFault(len(tags) - 1, reason)
    return None


def can_follow(previous: str | None, tag: str | None, *, scheme: TagScheme) -> bool:
    """Whether one tag can come after another.

    Args:
        previous: the tag before; None at the beginning of a row.
        tag: the tag; None at the end of a row.
        scheme: of both.

    Raises:
        DataError: one of the two is not a tag of the scheme.

    Examples:
        >>> can_follow("B-PER", "I-PER", scheme="BIO"), can_follow(None, "I-PER", scheme="BIO")
        (True, False)
    """
    if scheme == "none":
        return True
    return _can_follow(_parse(previous or OUTSIDE, scheme), _parse(tag or OUTSIDE, scheme), scheme)


def _can_follow(previous: _Part, part: _Part, scheme: TagScheme) -> bool:
    """Whether a tag can come after another; the borders of a row are as ``O``."""
    is_open = previous.role in {"B", "I"}
    continues = is_open and previous.label == part.label
    match scheme:
        case "BIO":
            return part.role != "I" or continues
        case "IOB1":
            return part.role != "B" or continues
        case "BIOES" | "BILOU":
            return continues if part.role in {"I", "E"} else not is_open
        case "none":
            return True
        case _:
            assert_never(scheme)


def read_spans(tags: Sequence[str], *, scheme: TagScheme) -> tuple[TagSpan, ...]:
    """The spans of tags, where only spans that are written as the scheme says count.

    Of tags that are not possible, those spans remain that seqeval's strict mode finds (Nakayama
    2018, version 1.2.2).

    Args:
        tags: of the words of a row.
        scheme: the scheme; ``none`` has no spans.

    Returns:
        The spans, in order.

    Raises:
        DataError: a tag does not have a prefix of the scheme.

    Examples:
        >>> read_spans(["B-PER", "I-PER", "O", "I-LOC"], scheme="BIO")
        (TagSpan(label='PER', start=0, end=2),)
    """
    if scheme == "none":
        return ()
    parts = [*(_parse(tag, scheme) for tag in tags), _OUT]
    spans, at = [], 0
    while at < len(tags):
        if not _begins(parts[at - 1] if at else _OUT, parts[at], scheme):
            at += 1
            continue
        end = at + 1
        while parts[end].role in {"I", "E"} and _continues(parts[end - 1], parts[end]):
            end += 1
        if _closes(parts[end - 1], parts[end], scheme):
            spans.append(TagSpan(parts[at].label, at, end))
        at = end
    return tuple(spans)


def _continues(previous: _Part, part: _Part) -> bool:
    return previous.role in {"B", "I"} and previous.label == part.label


def _begins(previous: _Part, part: _Part, scheme: TagScheme) -> bool:
    """Whether a span begins at a tag that no span before it has taken."""
    if scheme != "IOB1":
        return part.role in {"B", "S"}
    if part.role == "I":
        return previous.role in {"O", "B"} or previous.label != part.label
    return part.role == "B" and _continues(previous, part)


def _closes(last: _Part, after: _Part, scheme: TagScheme) -> bool:
    """Whether a span that cannot be continued is complete."""
    match scheme:
        case "BIOES" | "BILOU":
            return last.role in {"E", "S"}
        case "IOB1":
            return not (last.role == after.role == "B" and last.label != after.label)
        case _:
            return True


def read_spans_leniently(tags: Sequence[str], *, scheme: TagScheme) -> tuple[TagSpan, ...]:
    """The spans of tags, where a span may begin and end without the prefix for it.

    It reads as the script ``conlleval`` and seqeval's default mode do (version 1.2.2). seqeval does
    not know the letters of BILOU there; here they mean what those of BIOES do.

    Args:
        tags: of the words of a row.
        scheme: the scheme; ``none`` has no spans.

    Returns:
        The spans, in order.

    Raises:
        DataError: a tag does not have a prefix of the scheme.

    Examples:
        >>> read_spans_leniently(["O", "I-PER", "I-LOC"], scheme="BIO")
        (TagSpan(label='PER', start=1, end=2), TagSpan(label='LOC', start=2, end=3))
    """
    if scheme == "none":
        return ()
    spans, begin, previous = [], 0, _OUT
    for at, part in enumerate([*(_parse(tag, scheme) for tag in tags), _OUT]):
        changes = previous.label != part.label
        is_new = previous.role in {"E", "S"} or part.role in {"B", "S", "O"} or changes
        if previous.role != OUTSIDE and is_new:
            spans.append(TagSpan(previous.label, begin, at))
        if part.role != OUTSIDE and (is_new or previous.role == OUTSIDE):
            begin = at
        previous = part
    return tuple(spans)


def write_tags(spans: Iterable[TagSpan], *, length: int, scheme: TagScheme) -> list[str]:
    """The tags of spans.

    Args:
        spans: in any order.
        length: the number of words.
        scheme: not ``none``, which has no spans.

    Returns:
        The tags, one per word.

    Raises:
        DataError: two spans overlap, or one is empty or outside of the words.

    Examples:
        >>> write_tags([TagSpan("PER", 0, 2), TagSpan("LOC", 2, 3)], length=4, scheme="BIOES")
        ['B-PER', 'E-PER', 'S-LOC', 'O']
    """
    if scheme == "none":
        raise DataError(_NO_SPANS)
    tags, before = [OUTSIDE] * length, TagSpan("", 0, 0)
    for span in sorted(spans, key=lambda span: span.start):
        if not 0 <= span.start < span.end <= length:
            msg = f"{span} is not a span of {length} words. Its end is one after its last word."
            raise DataError(msg)
        if span.start < before.end:
            msg = f"{before} and {span} overlap, but a word has one tag. Leave one of them out."
            raise DataError(msg)
        touches = span.start == before.end > 0 and span.label == before.label
        for word, role in enumerate(_list_roles(span, scheme, touches=touches), span.start):
            tags[word] = _join_tag(_LETTERS[scheme][role], span.label)
        before = span
    return tags


def _list_roles(span: TagSpan, scheme: TagScheme, *, touches: bool) -> list[str]:
    """The role of every word of a span that touches another one of its type before it, or not."""
    roles = ["B", *"I" * (span.end - span.start - 1)]
    match scheme:
        case "IOB1" if not touches:
            roles[0] = "I"
        case "BIOES" | "BILOU":
            roles[-1] = "E" if len(roles) > 1 else "S"
        case _:
            pass
    return roles


def convert_tags(tags: Sequence[str], *, source: TagScheme, target: TagScheme) -> list[str]:
    """Write a row's tags in another scheme.

    Args:
        tags: of its words.
        source: their scheme.
        target: the other scheme.

    Returns:
        The tags of the same spans.

    Raises:
        DataError: the tags are not possible in their scheme, or only one of the schemes is
            ``none``.

    Examples:
        >>> convert_tags(["I-PER", "I-PER", "B-PER"], source="IOB1", target="BIOES")
        ['B-PER', 'E-PER', 'S-PER']
    """
    if source == target == "none":
        return list(tags)
    if source == "none":
        raise DataError(_NO_SPANS)
    if (fault := find_fault(tags, scheme=source)) is not None:
        msg = f"word {fault.word} (counted from 0) has the tag {fault.reason}. Correct the tags."
        raise DataError(msg)
    return write_tags(read_spans(tags, scheme=source), length=len(tags), scheme=target)


def repair_tags(tags: Sequence[str], *, scheme: TagScheme) -> list[str]:
    """Make tags possible: the spans that lenient reading finds, as the scheme writes them.

    Args:
        tags: of the words of a row.
        scheme: the scheme.

    Returns:
        The tags; the same ones if they are possible.

    Raises:
        DataError: a tag does not have a prefix of the scheme.

    Examples:
        >>> repair_tags(["O", "I-PER", "I-PER"], scheme="BIO")
        ['O', 'B-PER', 'I-PER']
    """
    if scheme == "none":
        return list(tags)
    return write_tags(read_spans_leniently(tags, scheme=scheme), length=len(tags), scheme=scheme)


def _join_tag(letter: str, label: str) -> str:
    return letter if label == _UNTYPED else f"{letter}-{label}"


def _parse_tag(tag: str, scheme: TagScheme) -> _Part | None:
    """The parts of a tag; None if it is not one of the scheme."""
    if tag == OUTSIDE:
        return _OUT
    letter, dash, label = tag.partition("-")
    role = _ROLES[scheme].get(letter)
    if role is None or (dash and not label):
        return None
    return _Part(role, label or _UNTYPED)


def _parse(tag: str, scheme: TagScheme) -> _Part:
    part = _parse_tag(tag, scheme)
    if part is None:
        letters = ", ".join(_ROLES[scheme])
        msg = (
            f"{tag!r} is not a tag of {scheme}, whose tags are {OUTSIDE} or begin with {letters}. "
            "Choose the scheme that the tags are written in."
        )
        raise DataError(msg)
    return part
