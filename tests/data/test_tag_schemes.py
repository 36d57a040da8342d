"""Tag schemes: spans and tags are the same thing, and impossible tags are found."""

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Tokens

from softprompt.data.tag_detection import check_tags, detect_scheme
from softprompt.data.tag_schemes import (
    TagSpan,
    can_follow,
    convert_tags,
    find_fault,
    list_tags,
    read_spans,
    read_spans_leniently,
    repair_tags,
    write_tags,
)
from softprompt.errors import DataError

SCHEMES = ["BIO", "IOB1", "BIOES", "BILOU"]
SEQEVAL = {"BIO": IOB2, "IOB1": IOB1, "BIOES": IOBES, "BILOU": BILOU}
TYPES = ["PER", "LOC"]


@st.composite
def draw_spans(draw, longest=12):
    """Spans that do not overlap, and the number of words."""
    spans, at = [], 0
    for gap, width, label in draw(
        st.lists(
            st.tuples(st.integers(0, 2), st.integers(1, 3), st.sampled_from([*TYPES, "A-B", "_"])),
            max_size=5,
        )
    ):
        spans.append(TagSpan(label, at + gap, at + gap + width))
        at += gap + width
    return tuple(spans), at + draw(st.integers(0, 2))


def all_rows(scheme, length=4):
    """Every row of tags of a scheme, possible or not."""
    return product(list_tags(TYPES, scheme=scheme), repeat=length)


@given(draw_spans())
@pytest.mark.parametrize("scheme", SCHEMES)
def test_spans_become_tags_and_tags_the_same_spans(scheme, drawn):
    spans, length = drawn
    tags = write_tags(spans, length=length, scheme=scheme)
    assert len(tags) == length
    assert find_fault(tags, scheme=scheme) is None
    assert read_spans(tags, scheme=scheme) == read_spans_leniently(tags, scheme=scheme) == spans
    assert repair_tags(tags, scheme=scheme) == tags


@given(draw_spans())
@pytest.mark.parametrize("source", SCHEMES)
@pytest.mark.parametrize("target", SCHEMES)
def test_conversion_keeps_the_spans(source, target, drawn):
    spans, length = drawn
    tags = write_tags(spans, length=length, scheme=source)
    converted = convert_tags(tags, source=source, target=target)
    assert converted == write_tags(spans, length=length, scheme=target)
    assert convert_tags(converted, source=target, target=source) == tags


@pytest.mark.parametrize("scheme", SCHEMES)
def test_strict_spans_are_those_of_seqeval(scheme):
    for tags in all_rows(scheme):
        expected = [(e.tag, e.start, e.end) for e in Tokens([*tags], SEQEVAL[scheme]).entities]
        assert list(map(tuple, read_spans(tags, scheme=scheme))) == expected, tags


@pytest.mark.parametrize("scheme", SCHEMES)
def test_lenient_spans_are_those_of_seqeval(scheme):
    """For the letters of BILOU, those of BIOES with the same meaning."""
    for tags in all_rows(scheme):
        known = [re.sub("^L", "E", re.sub("^U", "S", tag)) for tag in tags]
        expected = [(label, first, last + 1) for label, first, last in get_entities(known)]
        assert list(map(tuple, read_spans_leniently(tags, scheme=scheme))) == expected, tags


@pytest.mark.parametrize("scheme", SCHEMES)
def test_possible_rows_are_those_that_spans_can_make(scheme):
    """Every choice of spans, written as tags, against every row of tags."""
    length = 3
    possible = set()
    for labels in product(["", *TYPES], repeat=length):
        for joined in product([False, True], repeat=length - 1):
            spans, at = [], 0
            while at < length:
                end = at + 1
                while end < length and joined[end - 1] and labels[end] == labels[at]:
                    end += 1
                if labels[at]:
                    spans.append(TagSpan(labels[at], at, end))
                at = end
            possible.add(tuple(write_tags(spans, length=length, scheme=scheme)))
    for tags in all_rows(scheme, length):
        assert (find_fault(tags, scheme=scheme) is None) == (tags in possible), tags
        pairs = zip([None, *tags], [*tags, None], strict=True)
        follows = all(can_follow(before, after, scheme=scheme) for before, after in pairs)
        assert follows == (tags in possible), tags


@pytest.mark.parametrize("scheme", SCHEMES)
def test_repaired_rows_are_possible_and_have_the_lenient_spans(scheme):
    for tags in all_rows(scheme, 3):
        repaired = repair_tags(tags, scheme=scheme)
        assert find_fault(repaired, scheme=scheme) is None
        assert read_spans(repaired, scheme=scheme) == read_spans_leniently(tags, scheme=scheme)


@given(st.lists(draw_spans(), min_size=1, max_size=4))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_detection_finds_a_scheme_that_all_rows_are_possible_in(scheme, drawn):
    rows = [write_tags(spans, length=length, scheme=scheme) for spans, length in drawn]
    found = detect_scheme(rows).scheme
    assert all(find_fault(tags, scheme=found) is None for tags in rows)
    prefixes = {tag[0] for tags in rows for tag in tags} - {"O"}
    if not prefixes:
        assert found == "BIO"  # as the docstring says
    elif prefixes - {"B", "I"} or scheme in {"BIO", "IOB1"}:
        assert found == scheme


@pytest.mark.parametrize(
    ("rows", "scheme"),
    [
        ([["DET", "NOUN", "O"]], "none"),
        ([["B-PER", "I-PER"], ["O"]], "BIO"),
        ([["I-PER", "I-PER"], ["O"]], "IOB1"),
        ([["I-PER", "B-PER"]], "IOB1"),
        ([["B", "I", "O"]], "BIO"),
        ([["S-PER"]], "BIOES"),
        ([["U-PER"]], "BILOU"),
        ([["B-PER", "L-PER", "O"]], "BILOU"),
    ],
)
def test_schemes_are_recognised(rows, scheme):
    assert detect_scheme(rows).scheme == scheme


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["O"], ["B-PER", "PER"]], "not 'PER' (row 1, word 1, counted from 0). Correct it"),
        ([["S-PER", "O"], ["U-PER"]], "prefix S of BIOES, and 'U-PER' (row 1, word 0"),
        ([["I-PER", "O"], ["B-PER"]], "neither BIO (row 0, word 0: 'I-PER' at the beginning of"),
        ([["I-PER", "O"], ["B-PER"]], "nor IOB1 (row 1, word 0: 'B-PER' at the beginning of"),
    ],
)
def test_mixed_tags_are_refused(rows, message):
    with pytest.raises(DataError, match=re.escape(message)):
        detect_scheme(rows)


@pytest.mark.parametrize(
    ("scheme", "tags", "word", "message"),
    [
        ("BIO", ["O", "I-PER"], 1, "'I-PER' after 'O', but in BIO I-X only follows"),
        ("BIO", ["B-LOC", "I-PER"], 1, "'I-PER' after 'B-LOC'"),
        ("IOB1", ["B-PER"], 0, "'B-PER' at the beginning of the row"),
        ("BIOES", ["O", "B-PER"], 1, "'B-PER' at the end of the row, but in BIOES I-X or E-X"),
        ("BILOU", ["B-PER", "O"], 1, "'O' after 'B-PER', but in BILOU I-X or L-X follows"),
        ("BIO", ["E-PER"], 0, "'E-PER', but tags of BIO are O or begin with B, I"),
        ("BIO", ["B-"], 0, "'B-', but tags of BIO are O or begin"),
    ],
)
def test_impossible_tags_are_refused_with_their_place(scheme, tags, word, message):
    assert find_fault(tags, scheme=scheme).word == word
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        check_tags([["O"], tags, tags], scheme=scheme, where="train.conll")
    assert f"row 1, word {word} of train.conll" in str(caught.value)
    assert "(2 rows of train.conll have such tags)" in str(caught.value)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([("PER", 0, 2), ("LOC", 1, 3)], "overlap, but a word has one tag"),
        ([("PER", 1, 1)], "is not a span of 3 words"),
        ([("PER", 2, 4)], "is not a span of 3 words"),
        ([("PER", -1, 1)], "is not a span of 3 words"),
    ],
)
def test_spans_that_are_not_possible_are_refused(spans, message):
    with pytest.raises(DataError, match=message):
        write_tags([TagSpan(*span) for span in spans], length=3, scheme="BIO")


def test_plain_tags_have_no_spans():
    tags = ["DET", "NOUN"]
    assert read_spans(tags, scheme="none") == read_spans_leniently(tags, scheme="none") == ()
    assert (
        convert_tags(tags, source="none", target="none") == tags == repair_tags(tags, scheme="none")
    )
    assert find_fault(tags, scheme="none") is None
    assert list_tags(tags, scheme="none") == ("DET", "NOUN")
    with pytest.raises(DataError, match="Choose one of BIO, IOB1, BIOES, BILOU"):
        convert_tags(tags, source="none", target="BIO")
    with pytest.raises(DataError, match="'DET' is not a tag of BIO"):
        read_spans(tags, scheme="BIO")
    with pytest.raises(DataError, match=r"word 1 \(counted from 0\) has the tag 'I-A' after 'O'"):
        convert_tags(["O", "I-A"], source="BIO", target="IOB1")
