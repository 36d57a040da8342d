# A message is easiest to check on one line.
# ruff: noqa: E501

import re
from string import Formatter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt.data.template import (
    BeginToken,
    Field,
    Literal,
    MaskToken,
    Separator,
    SoftTokens,
    check_fields,
    parse_template,
)
from softprompt.errors import TemplateError

NAMES = st.from_regex(r"[a-z][a-z_0-9 ]*[a-z]", fullmatch=True).filter(
    lambda name: name not in ("mask", "sep", "soft", "bos")
)
PIECES = st.one_of(
    st.text(min_size=1).map(Literal),
    NAMES.map(Field),
    st.integers(1, 99).map(SoftTokens),
)


def write_piece(piece):
    match piece:
        case Literal(text):
            return text.replace("{", "{{").replace("}", "}}")
        case Field(name):
            return f"{{{name}}}"
        case SoftTokens(count):
            return f"{{soft:{count}}}"
        case MaskToken():
            return "{mask}"
        case Separator():
            return "{sep}"
        case BeginToken():
            return "{bos}"


def test_every_kind_of_piece():
    template = parse_template("Review: {text}{soft:10} It was {mask}.{sep}{{{title}}}")
    assert template.pieces == (
        Literal("Review: "),
        Field("text"),
        SoftTokens(10),
        Literal(" It was "),
        MaskToken(),
        Literal("."),
        Separator(),
        Literal("{"),
        Field("title"),
        Literal("}"),
    )
    assert template.fields == ("text", "title")
    assert (template.soft_length, template.masks, template.pair) == (10, 1, True)


def test_counts_over_the_whole_template():
    template = parse_template("{soft:3}{b}{soft:4}{a}{b}")
    assert template.fields == ("b", "a")
    assert (template.soft_length, template.masks, template.pair) == (7, 0, False)


@given(st.lists(PIECES), NAMES)
def test_a_written_template_is_parsed_to_its_pieces(pieces, name):
    source = "".join(map(write_piece, [*pieces, Field(name)]))
    template = parse_template(source)
    assert "".join(map(write_piece, template.pieces)) == source
    assert template.text == source
    # Neighbouring literals are one: apart from that, nothing is lost and nothing moves.
    assert [p for p in template.pieces if not isinstance(p, Literal)] == [
        p for p in [*pieces, Field(name)] if not isinstance(p, Literal)
    ]


@given(st.text(alphabet="ab{} "))
def test_braces_have_the_meaning_of_python(source):
    """str.format's own parser is the oracle for which braces are literal."""
    try:
        theirs = [(text, name) for text, name, *_ in Formatter().parse(source)]
    except ValueError:
        theirs = None
    try:
        template = parse_template(source + "{x}")
    except TemplateError:
        # Empty or padded names are fine with Python only.
        assert theirs is None or re.search(r"\{\s*\}|\{\s|\s\}|\{.*\{", source)
        return
    if theirs is None:
        pytest.fail(f"Python refuses {source!r}")
    names = [name for _, name in theirs if name is not None]
    assert [p.name for p in template.pieces if isinstance(p, Field)] == [*names, "x"]
    literals = "".join(text for text, _ in theirs)
    assert "".join(p.text for p in template.pieces if isinstance(p, Literal)) == literals


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("good {text", "has a '{' without its partner at character 6. Write '{{' for"),
        ("good text}", "has a '}' without its partner at character 10. Write '}}' for"),
        ("{a}{b{c}}", "has a '{' without its partner at character 4."),
        ("{text} {}", "empty braces at character 8"),
        ("{text} {  }", "empty braces at character 8"),
        ("{ text }", "spaces inside the braces at character 1 of the template '{ text }'. Write {text}."),
        ("{text}{soft}", "{soft} at character 7 of the template '{text}{soft}' has no valid number. Write {soft:N}"),
        ("{text}{soft:0}", "{soft:0} at character 7"),
        ("{text}{soft:-3}", "{soft:-3} at character 7"),
        ("{text}{soft:ten}", "Write {soft:N} with N of 1 or more."),
        ("{text}{soft:²}", "Write {soft:N} with N of 1 or more."),
        ("{text}{sotf:10}", "only soft tokens take a number. Write {soft:N} or {sotf}."),
        ("{soft:10} It was {mask}.", "has no field, so every row would look the same. Name a column"),
        ("", "has no field"),
        ("{text}{mask}{mask}", "has {mask} 2 times; at most one is possible"),
        ("{a}{sep}{b}{sep}{c}", "has {sep} 2 times; at most one is possible"),
        ("{bos}{soft:2}{bos}{a}", "has {bos} 2 times; at most one is possible"),
        ("a{bos}{text}", "the template 'a{bos}{text}' has text before {bos}, where only soft tokens are possible. Move {bos} before the text, or leave it out."),
        (" {bos}{text}", "has text before {bos}"),
        ("{text}{bos}", "has text before {bos}"),
        ("{soft:2}{mask}{bos}{text}", "has text before {bos}"),
        ("{a}{sep}{soft:2}{bos}{b}", "has text before {bos}"),
        ("{text}{soft:100001}", "the template has more soft tokens than any backbone can run. Write {soft:N} with at most 100,000 in all"),
        ("{text}" + "{soft:50000}" * 3, "the template has more soft tokens than any backbone can run."),
        ("{text}{soft:1" + "0" * 20 + "}", "the template has more soft tokens than any backbone can run."),
        ("{text}{soft:1" + "0" * 5000 + "}", "the template has more soft tokens than any backbone can run."),
        ("{text} \ud83d{soft:3}", "has half a character at index 7 (a lone surrogate). Give it valid Unicode."),
        ("{te\udcffxt}", "has half a character at index 3"),
        ("{soft:2}{bos:3}{text}", "only soft tokens take a number. Write {soft:N} or {bos}."),
    ],
)  # fmt: skip
def test_a_malformed_template_is_refused_with_its_place(source, message):
    with pytest.raises(TemplateError, match=re.escape(message)):
        parse_template(source)


def test_an_unknown_field_suggests_a_similar_name():
    with pytest.raises(TemplateError) as caught:
        check_fields(parse_template("{text} {titel}"), ["text", "title", "label"])
    assert str(caught.value) == (
        "in the template '{text} {titel}': unknown field 'titel'. "
        "Options: label, text, title. Did you mean 'title'?"
    )


def test_known_fields_are_accepted():
    assert check_fields(parse_template("{text} {title}"), ["text", "title", "label"]) is None


@pytest.mark.parametrize(
    ("template", "words", "expected"),
    [
        ("Review: {text}\nSentiment:{soft:5}", "it is", "Review: {text}\nSentiment: it is"),
        ("{soft:2}{text}{soft:3}", "say", "say {text}"),
        ("a {soft:2} {text}", "say", "a say {text}"),
        ("{{soft:2}} {text}{soft:1}", "{x}", "{{soft:2}} {text} {{x}}"),
        ("a{soft:2}{text}{soft:1}b", "", "a{text}b"),
        ("{text}", "say", "{text}"),
        ("{soft:2}{bos}{text}{soft:1}", "say", "say {text}"),
        ("{bos}{text}{soft:1}", "say", "{text} say"),
        ("{soft:2}{bos}{text}", "", "{text}"),
    ],
)
def test_words_in_place_of_soft_tokens(template, words, expected):
    assert parse_template(template).replace_soft_tokens(words) == expected


@pytest.mark.parametrize(
    ("source", "before_bos", "leading", "hard_text"),
    [
        ("{soft:3}{bos}{text}", 3, 3, "{text}"),
        ("{soft:3}{soft:1}{bos}{soft:2}{text}{soft:5}", 4, 6, "{text}"),
        ("{bos}{soft:2}{text}", 0, 2, "{text}"),
        ("{soft:2}{text}", 0, 2, "{text}"),
        ("{soft:2}it {text}{soft:1} is", 0, 2, "it {text} is"),
        ("{bos}it {text}", 0, 0, "it {text}"),
        ("{soft:1}{bos}{a}{sep}{b}{{bos}}{mask}", 1, 1, "{a}{sep}{b}{{bos}}{mask}"),
    ],
)
def test_soft_tokens_before_text_and_bos(source, before_bos, leading, hard_text):
    template = parse_template(source)
    assert (template.soft_before_bos, template.leading_soft_tokens) == (before_bos, leading)
    assert template.hard_text == hard_text
    assert parse_template(template.hard_text).soft_length == 0


@pytest.mark.parametrize("count", ["1", "007", "0" * 5000 + "7", "100000"])
def test_any_number_that_a_backbone_may_run_is_read(count):
    assert parse_template("{text}{soft:" + count + "}").soft_length == int(count[-6:])
