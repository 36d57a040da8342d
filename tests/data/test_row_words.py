"""Words of a text, and which tokens of a rendered row they become."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt.data import make_renderer, parse_template
from softprompt.data.row_words import (
    FieldSpan,
    PlacedToken,
    RowWords,
    divide_text,
    place_tokens,
    remove_word,
)
from softprompt.data.words import split_words
from support.parametrize import for_each


def words_of(text: str) -> list[str]:
    return [text[start:end] for start, end in divide_text(text)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", []),
        (" \n ", []),
        ("a good film", ["a", "good", "film"]),
        ("It isn't well-made.", ["It", "isn't", "well-made", "."]),
        ("rock 'n' roll - no", ["rock", "'", "n", "'", "roll", "-", "no"]),
        ("snake_case x2 3.5", ["snake_case", "x2", "3", ".", "5"]),
        ("हिन्दी में", ["हिन्दी", "में"]),  # with vowel signs and a virama
        ("e\u0301t\u00e9 ☺\ufe0f!", ["e\u0301t\u00e9", "☺\ufe0f", "!"]),
        ("映画は good", ["映", "画", "は", "good"]),
        ("goodは", ["good", "は"]),
        ("กิน", ["กิ", "น"]),
        ("don\u2019t", ["don\u2019t"]),
    ],
)
def test_words(text: str, wanted: list[str]) -> None:
    assert words_of(text) == wanted


@given(st.text(max_size=30))
def test_they_are_the_words_of_a_text_or_several_of_them(text: str) -> None:
    """Each once and in their order, those between which an apostrophe or a hyphen stands as one."""
    pieces = split_words(text)
    for start, end in divide_text(text):
        part = pieces[: next(at for at, piece in enumerate(pieces, 1) if piece[1] == end)]
        pieces = pieces[len(part) :]
        assert part[0][0] == start
        assert len(part) == 1 or all(text[a] in "'-\u2019\u2010" for a, _ in part[1::2])
        assert all(text[a].isalnum() for a, _ in part[::2]) or len(part) == 1
    assert not pieces


@pytest.mark.parametrize(
    ("text", "word", "wanted"),
    [
        ("a good film", "good", "a film"),
        ("a good film", "a", "good film"),
        ("a good film", "film", "a good"),
        ("good, dull", ",", "good dull"),
        ("good, dull", "good", ", dull"),
        ("only", "only", ""),
        ("so good, dull", "good", "so, dull"),
        ("so (good) dull", "good", "so () dull"),
        ("so good) dull", "good", "so) dull"),
        ("the f(x)", "f", "the (x)"),
        ("a\n good", "good", "a\n"),
    ],
)
def test_a_word_is_removed_with_one_space(text: str, word: str, wanted: str) -> None:
    start = text.index(word)
    assert remove_word(text, start=start, end=start + len(word)) == wanted


TEXTS = [
    {"text": "the film was wonderful", "other": "no"},
    {"text": "  goodness,greatly\nbad ", "other": "été"},
    {"text": "映画", "other": ""},
    {"text": "☺☺", "other": "a" * 40},
]


@for_each("family")
@pytest.mark.parametrize("row", TEXTS, ids=range(len(TEXTS)))
def test_tokens_are_those_of_the_row(backbone, family, row) -> None:
    """In their places; together they have every character of a field that is not white space."""
    own = backbone(family)
    template = parse_template("so{soft:2} {text} is{other} and {text}.")
    renderer = make_renderer(
        template, own.tokenizer, vocab_size=own.geometry.vocab_size, max_length=500
    )
    rendered, placed = renderer.render(row), place_tokens(renderer, row)
    assert [rendered.input_ids[token.position] for token in placed] == [t.id for t in placed]
    assert [t.position for t in placed] == sorted({t.position for t in placed})
    for name, text in row.items():
        spans = [t.span for t in placed if t.span.field == name]
        covered = {at for span in spans for at in range(span.start, span.end)}
        assert {at for at, letter in enumerate(text) if not letter.isspace()} <= covered
        assert covered <= {*range(len(text))}
    words = RowWords(row, placed)
    for token in placed:
        number = words.find(token.span)
        if number is None:
            assert not row[token.span.field].strip()
            continue
        word = words.spans[number]
        own_text = row[word.field][token.span.start : token.span.end]
        if own_text.strip():
            first = token.span.start + len(own_text) - len(own_text.lstrip())
            assert word.start <= first
            assert token.span.end <= word.end
        assert word.field == token.span.field
    assert {words.find(token.span) for token in placed} >= {*range(len(words.spans))}


def test_cut_text_has_no_words(backbone) -> None:
    """What is left of a field is its beginning."""
    own = backbone("llama")
    renderer = make_renderer(
        parse_template("{text} is"), own.tokenizer, vocab_size=own.geometry.vocab_size, max_length=6
    )
    row = {"text": "good bad good bad good bad good bad"}
    words = RowWords(row, place_tokens(renderer, row))
    written = own.tokenizer.decode(renderer.render(row).input_ids, skip_special_tokens=True)
    assert 0 < len(words.spans) < len(row["text"].split())
    assert written == row["text"][: words.spans[-1].end] + " is"


def test_words_that_a_token_joins_are_one() -> None:
    spans = [("text", 0, 2), ("text", 2, 4), ("text", 4, 5), ("text", 5, 6)]
    tokens = [PlacedToken(at, 9, FieldSpan(*span)) for at, span in enumerate(spans)]
    words = RowWords({"text": "映画は a 終"}, tokens)
    # 映画 | は and a space | a … | and a space: the last word has no token
    assert words.spans == (
        FieldSpan("text", 0, 2),
        FieldSpan("text", 2, 3),
        FieldSpan("text", 4, 5),
    )
    assert [words.find(token.span) for token in tokens] == [0, 1, 2, 2]
