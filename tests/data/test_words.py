"""Words, spans of characters and tokens: every word has its tokens, every span its characters."""

# Letters that look like others are meant.
# ruff: noqa: RUF001

import re
import unicodedata
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softprompt.data import make_renderer, make_window_renderer, parse_template, read_data, to_table
from softprompt.data.tag_schemes import TagSpan, read_spans, write_tags
from softprompt.data.text_spans import TextSpan, locate_span, match_spans, read_text_spans
from softprompt.data.words import join_words, locate_words, render_words, split_words
from softprompt.errors import DataError

BOUNDED = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
KINDS = ["bert", "gpt", "closing", "roberta", "t5", "llama", "llama2"]
STRANGE = [
    "e\u0301", "İ", "ﬁ", "½", "ﷺ", "שָׁלוֹם", "\u202eمرحبا\u202c", "हिन्दी", "日本", "😀", "👍🏽",
    "👨\u200d👩\u200d👧", "\u200b", "\u200d", "\ufffd", "\x00", "\u0301", "\u00a0", "\u2028", "...",
    "</s>", "<mask>", "good", "film", "unbelievable", "x" * 40, "Ham\u00adburg",
]  # fmt: skip
WORD = st.one_of(st.sampled_from(STRANGE), st.text(min_size=1, max_size=5))


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return request.getfixturevalue(request.param)


def make(tokenizer, template="{soft:1}Tag: {text}", *, max_length=24, stride=4):
    renderer = make_renderer(
        parse_template(template), tokenizer, vocab_size=len(tokenizer), max_length=max_length
    )
    return make_window_renderer(renderer, field="text", stride=stride)


@BOUNDED
@given(words=st.lists(WORD, min_size=1, max_size=40))
def test_no_word_is_without_a_token(tokenizer, words):
    """No label can be lost, whatever the words, the tokenizer and the length of the row."""
    text, places = join_words(words)
    rendered = render_words(make(tokenizer), {}, text=text, words=places)
    assert len(rendered.pieces) == len(words)
    assert all(rendered.pieces)
    firsts = [pieces[0] for pieces in rendered.pieces]
    assert firsts == sorted(firsts)
    # Every piece is at its place, and its window owns it.
    for (start, end), pieces in zip(places, rendered.pieces, strict=True):
        for piece in pieces:
            tokens = rendered.windows[piece.window].tokens
            (token,) = [token for token in tokens if token.position == piece.position]
            assert token.owned
            assert token.start < end
            assert token.end > start


@BOUNDED
@given(words=st.lists(st.sampled_from(["good", "film", "unbelievable", "it"]), min_size=1))
def test_the_tokens_of_words_are_those_of_the_tokenizer_library(roberta, bert, words):
    """Its own numbers of the words, which do not depend on windows here."""
    text, places = join_words(words)
    for tokenizer in (bert, roberta):
        rendered = render_words(
            make(tokenizer, "{text}", max_length=16, stride=3), {}, text=text, words=places
        )
        found = [
            [rendered.windows[piece.window].row.input_ids[piece.position] for piece in pieces]
            for pieces in rendered.pieces
        ]
        encoding = tokenizer(text, add_special_tokens=False)
        expected = [[] for _ in words]
        for at, index in enumerate(encoding["input_ids"]):
            # A token of the space alone is of no word here: nothing of the word is in it.
            if text[slice(*encoding.token_to_chars(at))].strip():
                expected[encoding.token_to_word(at)].append(index)
        assert found == expected


def test_a_word_without_a_token_has_a_place(bert):
    words = ["good", "\u200b", "film"]
    text, places = join_words(words)
    made = make(bert, "{text}")
    rendered = render_words(made, {}, text=text, words=places)
    assert rendered.replaced == (1,)
    assert locate_words(made.render({"text": text}), places)[1] == ()
    (window,) = rendered.windows
    assert list(window.row.input_ids) == bert("good * film")["input_ids"]


def test_an_empty_word_is_refused(bert):
    text, places = join_words(["good", ""])
    with pytest.raises(DataError, match=r"word 1 .* is empty\. Leave it out"):
        render_words(make(bert), {}, text=text, words=places)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Dr. Müller's 3.5 km", ["Dr", ".", "Müller", "'", "s", "3", ".", "5", "km"]),
        ("snake_case\tx\r\ny", ["snake_case", "x", "y"]),
        ("e\u0301a \u0301", ["e\u0301a", "\u0301"]),
        ("हिन्दी है", ["हिन्दी", "है"]),
        ("שָׁלוֹם", ["שָׁלוֹם"]),
        ("日本語です", [*"日本語です"]),
        ("ไทย", [*"ไทย"]),
        ("👍🏽ok", ["👍🏽", "ok"]),
        ("Ham\u00adburg \u202eab\u202c", ["Ham\u00adburg", "ab"]),
        ("a\u200bb", ["a", "b"]),
        ("한국어 말", ["한국어", "말"]),
        ("", []),
    ],
)
def test_words_of_a_text(text, words):
    assert [text[start:end] for start, end in split_words(text)] == words


@given(st.text())
def test_words_do_not_overlap_and_leave_nothing_visible_out(text):
    places = split_words(text)
    assert places == sorted(places)
    assert all(start < end for start, end in places)
    assert all(left[1] <= right[0] for left, right in pairwise(places))
    covered = {at for start, end in places for at in range(start, end)}
    for at, character in enumerate(text):
        if at not in covered:
            assert unicodedata.category(character) in {"Zs", "Zl", "Zp", "Cc", "Cf", "Cs"}
        elif character == " ":
            pytest.fail("white space belongs to no word")


@given(st.lists(WORD, min_size=1, max_size=12).map(" ".join), st.data())
def test_spans_of_characters_come_back_exactly(text, data):
    words = split_words(text)
    spans, at = [], 0
    while at < len(words):
        end = data.draw(st.integers(at, min(len(words), at + 3)))
        if end > at:
            spans.append(TextSpan(f"T{end % 2}", words[at][0], words[end - 1][1]))
        at = max(end, at + 1)
    read = read_text_spans([[s.start, s.end, s.label] for s in spans], text=text, where="a")
    assert list(read) == spans
    matched = match_spans(read, words, text=text, where="a")
    assert not matched.widened
    tags = write_tags(matched.spans, length=len(words), scheme="BIO")
    assert [locate_span(span, words) for span in read_spans(tags, scheme="BIO")] == spans


@given(st.text(min_size=1), st.data())
def test_a_span_is_found_or_widened_or_refused(text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    words = split_words(text)
    span = TextSpan("X", start, end)
    touched = [word for word in words if word[0] < end and word[1] > start]
    if not touched:
        with pytest.raises(DataError, match="has no word"):
            match_spans([span], words, text=text, where="a", widen=True)
        return
    matched = match_spans([span], words, text=text, where="a", widen=True)
    found = locate_span(matched.spans[0], words)
    assert (found.start, found.end) == (touched[0][0], touched[-1][1])
    is_inside = found.start < start or found.end > end
    assert matched.widened == ((span,) if is_inside else ())
    if is_inside:
        with pytest.raises(DataError, match="inside of the word"):
            match_spans([span], words, text=text, where="a")


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ("0-4", "the spans of row 3 are a str, but a list is needed"),
        ([{"start": 0, "end": 4}], "is not a span. Write each as"),
        ([[0, 4]], "is not a span"),
        ([[0.0, 4, "LOC"]], "is not a span"),
        ([[False, 4, "LOC"]], "is not a span"),
        ([[0, 4, " "]], "is not a span"),
        ([[0, 4, "LOC", 1]], "is not a span"),
        (
            [[0, 12, "LOC"]],
            "the span 0 to 12 (LOC) of row 3 is not inside of its text, which has 11",
        ),
        ([[4, 4, "LOC"]], "is not inside of its text"),
        ([[-1, 4, "LOC"]], "is not inside of its text"),
        (
            [[0, 4, "LOC"], [2, 7, "PER"]],
            "the span 0 to 4 (LOC, 'Rome') and the span 2 to 7 (PER, 'me is') of row 3 overlap",
        ),
        (
            [[0, 11, "A"], [5, 7, "B"]],
            "the span 0 to 11 (A, 'Rome is old') and the span 5 to 7 (B, 'is') of row 3 overlap",
        ),
    ],
)
def test_spans_that_are_not_possible_are_refused(spans, message):
    with pytest.raises(DataError, match=re.escape(message)):
        read_text_spans(spans, text="Rome is old", where="row 3")


def test_two_spans_in_one_word_are_refused():
    text = "Rome"
    spans = [TextSpan("A", 0, 2), TextSpan("B", 2, 4)]
    with pytest.raises(DataError, match=r"the span 0 to 2 .* and the span 2 to 4 .* in one word"):
        match_spans(spans, split_words(text), text=text, where="row 0", widen=True)


def test_both_forms_of_spans_are_read_from_files(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(
        '{"text": "Rome is old", "spans": [[0, 4, "LOC"]]}\n{"text": "so", "spans": []}\n'
        '{"text": "in Rome", "spans": [[3, 7, "LOC"]]}\n'
    )
    rows = read_data(str(path))
    assert rows["spans"][0] == [{"start": 0, "end": 4, "label": "LOC"}]
    spans = [read_text_spans(row["spans"], text=row["text"], where="a row") for row in rows]
    assert spans == [(TextSpan("LOC", 0, 4),), (), (TextSpan("LOC", 3, 7),)]
    table = to_table([{"text": "Rome", "spans": [(0, 4, "LOC")]}])
    assert table["spans"][0] == rows["spans"][0]


def test_words_and_spans_agree():
    text, places = join_words(["New", "York", "is", "old"])
    assert locate_span(TagSpan("LOC", 0, 2), places) == TextSpan("LOC", 0, 8)
    assert text[0:8] == "New York"
