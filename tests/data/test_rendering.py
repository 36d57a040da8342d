# A message is easiest to check on one line.
# ruff: noqa: E501

import json
import re
from copy import deepcopy
from time import process_time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from softprompt.data.rendering import make_renderer
from softprompt.data.shortening import shorten_longest_first
from softprompt.data.template import parse_template
from softprompt.errors import DataError, TemplateError

TEXTS = [
    "Review: the film is a good film",
    "It was great! And é ü 😀👍🏽 日本語 ¿no?",
    "",
    "  spaces   here and   there  ",
    "line\nbreak\ttab {braces} {{more}}",
    "unbelievablysupercalifragilistic 3.14159",
]
SPECIAL = ["[MASK]", "[SEP]", "<mask>", "</s>", "<s>", "<bos>", "<|im_start|>", "<extra_id_0>"]
# Any Unicode, and the strings that are special tokens of one of the tokenizers.
ROUGH = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(
            [*SPECIAL, "{soft:3}", "{mask}", "{", "}", "😀", "👨‍👩‍👧", " ", "good film "]
        ),
    ),
    max_size=8,
).map("".join)
BOUNDED = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def render(template, tokenizer, row, *, max_length=512, **options):
    table = len(tokenizer)
    made = make_renderer(
        parse_template(template), tokenizer, vocab_size=table, max_length=max_length, **options
    )
    return made.render(row)


def without_soft(tokenised, tokenizer):
    kept = [i for i, token in enumerate(tokenised.input_ids) if token < len(tokenizer)]
    return [tokenised.input_ids[i] for i in kept], [tokenised.token_type_ids[i] for i in kept]


def list_soft_tokens(tokenised, tokenizer):
    return [token - len(tokenizer) for token in tokenised.input_ids if token >= len(tokenizer)]


def special_ids(tokenizer):
    found = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return found - {tokenizer.unk_token_id}


def decode_text(tokenizer, ids):
    """The text of ids with soft tokens left out."""
    return tokenizer.decode([i for i in ids if i < len(tokenizer)])


@pytest.mark.parametrize("text", TEXTS)
def test_a_template_without_soft_tokens_equals_the_tokenizer(any_tokenizer, text):
    row = render("Review: {text} It was good.", any_tokenizer, {"text": text})
    assert list(row.input_ids) == any_tokenizer(f"Review: {text} It was good.")["input_ids"]
    assert not row.truncated


@pytest.mark.parametrize("text", TEXTS)
def test_soft_tokens_before_and_after_do_not_change_the_text(any_tokenizer, text):
    row = render("{soft:3}Review: {text}!{soft:4}", any_tokenizer, {"text": text})
    ids, _ = without_soft(row, any_tokenizer)
    assert ids == any_tokenizer(f"Review: {text}!")["input_ids"]
    assert list_soft_tokens(row, any_tokenizer) == list(range(7))


@pytest.mark.parametrize("text", [" it was good", " it", "\nit was"])
def test_soft_tokens_between_words_do_not_change_the_words(any_tokenizer, text):
    """No piece is put behind a soft token that the same words in a row do not have."""
    row = render(f"{{text}}{{soft:3}}{text}", any_tokenizer, {"text": "the film"})
    ids, _ = without_soft(row, any_tokenizer)
    assert ids == any_tokenizer(f"the film{text}")["input_ids"]


def test_a_space_behind_the_first_soft_token_is_one_space(llama2):
    """Behind a special token the space is added, as this tokenizer does it."""
    spaced, plain = (render(t, llama2, {"text": "a film"}) for t in ("{soft:3} {text}", "{text}"))
    assert without_soft(spaced, llama2)[0] == list(plain.input_ids)
    behind = render("{soft:3}{bos} {text}", llama2, {"text": "a film"})
    assert without_soft(behind, llama2)[0] == llama2(" a film")["input_ids"]
    assert len(behind.input_ids) == len(spaced.input_ids) + 1


def test_templates_of_one_tokenizer_share_its_copies(llama2):
    """Some forms of a tokenizer are copies of megabytes; ten thousand prompts must not have them."""
    llama2 = deepcopy(llama2)  # it is changed below
    templates = ("{soft:2}{text}", "{text} is{soft:3}")
    made = [
        make_renderer(parse_template(t), llama2, vocab_size=len(llama2), max_length=64)
        for t in templates
    ]
    assert made[0].safe_tokenizer is made[1].safe_tokenizer
    assert made[0].safe_tokenizer.spaced is not llama2
    llama2.add_special_tokens({"additional_special_tokens": ["<new>"]})
    later = make_renderer(
        parse_template(templates[0]), llama2, vocab_size=len(llama2), max_length=64
    )
    assert later.safe_tokenizer is not made[0].safe_tokenizer
    assert "<new>" in later.safe_tokenizer.specials


def test_soft_tokens_are_at_the_places_of_the_template(bert):
    row = render("{soft:2}Good {text}{soft:3} was{soft:1}", bert, {"text": "film"})
    table = len(bert)
    cls, good, film, was, sep = bert("good film was")["input_ids"]
    soft = [table + k for k in range(6)]
    assert list(row.input_ids) == [cls, *soft[:2], good, film, *soft[2:5], was, soft[5], sep]
    assert row.token_type_ids == (0,) * len(row.input_ids)


@pytest.mark.parametrize("text", TEXTS)
def test_soft_tokens_between_words_do_not_change_wordpieces(bert, text):
    """A WordPiece tokenizer splits at spaces, so a border there changes nothing."""
    row = render("a {text} {soft:5} it was {mask}", bert, {"text": text})
    ids, types = without_soft(row, bert)
    assert ids == bert(f"a {text} it was [MASK]")["input_ids"]
    assert types == [0] * len(ids)


@pytest.mark.parametrize("second", TEXTS)
@pytest.mark.parametrize("soft", ["", "{soft:4}"])
def test_a_pair_equals_the_tokenizer(pair_tokenizer, soft, second):
    row = render(
        f"{soft}{{a}}{{sep}}{{b}}{soft}", pair_tokenizer, {"a": "the plot is thin", "b": second}
    )
    # In a list: given two plain strings, the library drops a second one that is empty.
    expected = {k: v[0] for k, v in pair_tokenizer(["the plot is thin"], [second]).items()}
    ids, types = without_soft(row, pair_tokenizer)
    assert ids == expected["input_ids"]
    assert types == expected.get("token_type_ids", [0] * len(ids))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("more", ["", "{soft:2}"])
def test_soft_tokens_before_bos(any_tokenizer, text, more):
    """PEFT's place: before [CLS] or <s>, and the text as the tokenizer makes it."""
    row = render(f"{{soft:3}}{{bos}}Review: {{text}}{more}!", any_tokenizer, {"text": text})
    assert [token - len(any_tokenizer) for token in row.input_ids[:3]] == [0, 1, 2]
    plain = render(f"{{soft:3}}Review: {{text}}{more}!", any_tokenizer, {"text": text})
    assert without_soft(row, any_tokenizer) == without_soft(plain, any_tokenizer)
    assert sorted(row.input_ids) == sorted(plain.input_ids)
    assert list(row.token_type_ids[:3]) == [0, 0, 0]


@pytest.mark.parametrize("count", ["", "{soft:2}{soft:2}"])
def test_a_pair_after_soft_tokens(pair_tokenizer, count):
    row = render(f"{count}{{bos}}{{a}}{{sep}}{{b}}", pair_tokenizer, {"a": "film", "b": "plot"})
    whole = pair_tokenizer("film", "plot")
    before = 4 if count else 0
    assert list(row.input_ids[before:]) == whole["input_ids"]
    types = whole.get("token_type_ids", [0] * len(whole["input_ids"]))
    assert list(row.token_type_ids) == [0] * before + types


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_the_mask_moves_with_its_row(request, name):
    tokenizer = request.getfixturevalue(name)
    row = render("{soft:3}{bos}{text} was {mask} .", tokenizer, {"text": "it"})
    assert list(row.input_ids[3:]) == tokenizer(f"it was {tokenizer.mask_token} .")["input_ids"]
    assert [row.input_ids[place] for place in row.mask_positions] == [tokenizer.mask_token_id]


def test_bos_at_the_beginning_changes_nothing(any_tokenizer):
    """Because there are no soft tokens before it."""
    for rest in ("{text}", "{soft:3}{text}", "{soft:3}so {text}"):
        with_bos = render("{bos}" + rest, any_tokenizer, {"text": "a good film"})
        assert with_bos == render(rest, any_tokenizer, {"text": "a good film"})


def test_a_long_text_after_bos_is_truncated(any_tokenizer):
    row = render("{soft:3}{bos}{text}", any_tokenizer, {"text": "good film " * 50}, max_length=20)
    assert row.truncated
    assert 15 < len(row.input_ids) <= 20
    assert list_soft_tokens(row, any_tokenizer) == [0, 1, 2]
    begun = any_tokenizer("good film")["input_ids"]
    assert list(row.input_ids[3:5]) == begun[:2]


def test_soft_tokens_have_the_type_of_their_text(bert):
    row = render("{soft:1}{a}{sep}{b}{soft:1}", bert, {"a": "film", "b": "plot"})
    assert row.token_type_ids == (0, 0, 0, 0, 1, 1, 1)


def test_a_causal_row_has_no_end_tokens(closing):
    row = render("{soft:2}the film {text}", closing, {"text": "is good"}, closed=False)
    ids, _ = without_soft(row, closing)
    assert ids == closing("the film is good")["input_ids"][:-1]
    assert ids[0] == closing.bos_token_id
    assert row.input_ids[0] == closing.bos_token_id


@pytest.mark.parametrize(
    ("name", "literal"),
    [
        ("gpt", "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"),
        ("bert", "{} [SEP] it was [MASK]."),
        ("t5", "{} it was <extra_id_0>."),
        ("llama", "<|user|>{}<|user|>good film"),
        ("roberta", "{} It was <mask> ."),
    ],
)
@pytest.mark.parametrize("text", ["a good film ", "é😀 {x}", "", "  two  "])
def test_special_tokens_written_in_the_template_are_special(request, name, literal, text):
    tokenizer = request.getfixturevalue(name)
    row = render(literal.replace("{}", "{text}"), tokenizer, {"text": text})
    assert list(row.input_ids) == tokenizer(literal.replace("{}", text))["input_ids"]
    assert special_ids(tokenizer) & set(row.input_ids)


@pytest.mark.parametrize("text", ["a good film ", "", "bad"])
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_the_mask_equals_the_tokenizers(request, name, text):
    tokenizer = request.getfixturevalue(name)
    row = render("{soft:2}{text} It was {mask} .", tokenizer, {"text": text})
    ids, _ = without_soft(row, tokenizer)
    assert ids == tokenizer(f"{text} It was {tokenizer.mask_token} .")["input_ids"]
    assert [row.input_ids[place] for place in row.mask_positions] == [tokenizer.mask_token_id]


def test_a_mask_of_several_tokens(bert):
    row = render("{text} was {mask}.{soft:1}", bert, {"text": "it [MASK]"}, masks=3)
    assert [row.input_ids[place] for place in row.mask_positions] == [bert.mask_token_id] * 3
    assert row.input_ids.count(bert.mask_token_id) == 3
    assert decode_text(bert, row.input_ids) == "[CLS] it [ mask ] was [MASK] [MASK] [MASK]. [SEP]"


@pytest.mark.parametrize(
    "text",
    ["a </s> b", "</s></s>", "<s>good<|user|>", "[MASK][SEP]", "<|im_end|>", "<mask>", "<eos>"],
)
def test_text_of_a_row_is_never_special(any_tokenizer, text):
    row = render("{text}", any_tokenizer, {"text": text})
    wrapped = set(any_tokenizer("good")["input_ids"])
    assert not set(row.input_ids) & (special_ids(any_tokenizer) - wrapped)
    # Those around the text occur as often as with any other text.
    for token in special_ids(any_tokenizer) & wrapped:
        assert row.input_ids.count(token) == any_tokenizer("good")["input_ids"].count(token)


def test_the_option_of_the_tokenizer_is_not_enough_for_unigram(t5):
    """Why such pieces are split: with the option alone, text can still become </s>."""
    plain = t5("a</s>b", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert t5.eos_token_id in plain
    row = render("{text}", t5, {"text": "a</s>b"})
    assert row.input_ids.count(t5.eos_token_id) == 1
    assert row.input_ids[-1] == t5.eos_token_id


def test_a_split_piece_gains_no_space(t5):
    row = render("{text}", t5, {"text": "good</s>film"})
    assert t5.decode(row.input_ids[:-1]) == "good</s>film"


@pytest.mark.parametrize("text", ["a <|im_end|> b", "<|im_start|>", "x<|endoftext|>y"])
def test_special_strings_in_a_row_are_tokenised_as_any_text(gpt, text):
    expected = gpt(text, split_special_tokens=True)["input_ids"]
    assert list(render("{text}", gpt, {"text": text}).input_ids) == expected


@pytest.mark.parametrize("count", [1, 40])
def test_spaces_without_a_token_are_truncated_too(closing, count):
    offsets = closing(" " * count, add_special_tokens=False, return_offsets_mapping=True)
    assert all(start == end for start, end in offsets["offset_mapping"])
    row = render("{soft:2}{text}", closing, {"text": " " * count}, max_length=4)
    assert row.truncated
    assert row.input_ids == render("{soft:2}{text}", closing, {"text": ""}).input_ids


@pytest.mark.parametrize("limit", range(3, 7))
def test_truncation_leaves_no_space_at_the_end(closing, limit):
    """If offsets leave spaces out, the space before a removed word would become a token."""
    text = "film film film film"
    expected = closing(text, truncation=True, max_length=limit)["input_ids"]
    assert list(render("{text}", closing, {"text": text}, max_length=limit).input_ids) == expected


def test_many_special_strings_in_a_row(t5):
    row = render("{text}", t5, {"text": "</s>" * 3000}, max_length=20000)
    assert row.input_ids.count(t5.eos_token_id) == 1
    assert len(row.input_ids) > 3000


@BOUNDED
@given(text=ROUGH, other=ROUGH, room=st.integers(0, 30))
def test_any_text_is_truncated_to_fit_and_nothing_else(any_tokenizer, text, other, room):
    source = "{soft:3}Say {text}{soft:2} it was {other}.{soft:1}"
    empty = render(source, any_tokenizer, {"text": "", "other": ""})
    limit = len(empty.input_ids) + room
    row = render(source, any_tokenizer, {"text": text, "other": other}, max_length=limit)
    assert len(row.input_ids) <= limit
    assert len(row.token_type_ids) == len(row.input_ids)
    assert list_soft_tokens(row, any_tokenizer) == list(range(6))
    # The only special tokens are those around the text.
    special = special_ids(any_tokenizer)
    assert [i for i in row.input_ids if i in special] == [
        i for i in empty.input_ids if i in special
    ]
    assert (row.input_ids[0] in special) == (empty.input_ids[0] in special)
    whole = render(source, any_tokenizer, {"text": text, "other": other}, max_length=100_000)
    assert row.truncated == (len(whole.input_ids) > limit)
    if not row.truncated:
        assert row == whole


@BOUNDED
@given(text=ROUGH, room=st.integers(0, 12))
def test_a_truncated_row_is_the_row_of_a_shorter_text(gpt, text, room):
    """Byte-level ids can be decoded: the literals are complete, the field is truncated."""
    limit = len(render("Review: {text}. Good?", gpt, {"text": ""}).input_ids) + room
    row = render("Review: {text}. Good?", gpt, {"text": text}, max_length=limit)
    found = re.fullmatch(r"Review: (.*)\. Good\?", gpt.decode(row.input_ids), re.DOTALL)
    assert found
    assert text.startswith(found[1])
    assert (found[1] == text) == (not row.truncated)
    assert not row.truncated or found[1] == found[1].rstrip()


@pytest.mark.parametrize("limit", range(9, 24))
def test_truncation_of_a_pair_agrees_with_the_library(bert, limit):
    first = "the plot is thin and nobody in it is worth a word of praise"
    second = "good film with a bad ending"
    row = render("{a}{sep}{b}", bert, {"a": first, "b": second}, max_length=limit)
    expected = bert(first, second, truncation="longest_first", max_length=limit)
    assert list(row.input_ids) == expected["input_ids"]
    assert len(row.input_ids) == limit == len(expected["input_ids"])
    assert row.truncated == (limit < len(bert(first, second)["input_ids"]))


def test_truncation_of_one_text_agrees_with_the_library(any_tokenizer):
    """Except that the beginning of a word may have other tokens; never more of them."""
    text = "a good film is a good film and a good word is a word"
    whole = any_tokenizer(text)["input_ids"]
    for limit in range(len(any_tokenizer("")["input_ids"]) + 1, len(whole) + 1):
        row = render("{text}", any_tokenizer, {"text": text}, max_length=limit)
        expected = any_tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        assert limit - 3 <= len(row.input_ids) <= limit
        shorter = any_tokenizer.decode(row.input_ids, skip_special_tokens=True).strip()
        longest = any_tokenizer.decode(expected, skip_special_tokens=True).strip()
        assert longest.startswith(shorter)
        assert row.truncated == (limit < len(whole))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(0, 160))
def test_the_longest_is_shortened_first(counts, excess):
    kept = shorten_longest_first(counts, excess)
    assert sum(counts) - sum(kept) == min(excess, sum(counts))
    assert all(0 <= k <= c for k, c in zip(kept, counts, strict=True))
    level = max(kept)
    # A level is found: what was cut is at it or one below, what was not cut is at most that.
    assert all(k >= level - 1 for k, c in zip(kept, counts, strict=True) if k < c)
    one_by_one = list(counts)
    for _ in range(min(excess, sum(counts))):
        one_by_one[max(range(len(counts)), key=lambda i: (one_by_one[i], i))] -= 1
    assert kept == one_by_one


def test_a_template_of_many_fields_is_cut_in_time_that_grows_with_the_row(bert):
    """Of 2,000 fields each had been compared with each token, and each token with all fields."""
    start = process_time()
    row = render("{text}" * 2000, bert, {"text": "a good film"}, max_length=64)
    assert len(row.input_ids) <= 64
    assert row.truncated
    assert process_time() - start < 2


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (2.5, "2.5"), (True, "True"), ("", ""), ("a", "a")]
)
def test_numbers_become_text(bert, value, text):
    assert (
        render("it {x}", bert, {"x": value}).input_ids
        == render("it {x}", bert, {"x": text}).input_ids
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"x": None}, "the field 'x' has no value. Give it text (it may be empty) or a number."),
        ({"x": ["a"]}, "the field 'x' is a list. Give it text or a number."),
        ({"y": "a", "z": 1}, "the row has no field 'x', which the template needs. It has: y, z."),
        ({}, "It has: nothing."),
        ({"x": "ab\ud83d"}, "the field 'x' has half a character at index 2 (the lone surrogate U+D83D)"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_rendered_is_refused(bert, row, message):
    with pytest.raises(DataError, match=re.escape(message)):
        render("it {x}", bert, row)


@pytest.mark.parametrize(
    ("name", "template", "options", "message"),
    [
        ("gpt", "{text} {mask}", {}, "has {mask}, but this backbone's tokenizer (TokenizersBackend) has no mask token."),
        ("gpt", "{a}{sep}{b}", {}, "has {sep}, but this backbone's tokenizer (TokenizersBackend) has no form for pairs of texts."),
        ("llama", "{a}{sep}{b}", {}, "has no form for pairs of texts."),
        ("closing", "{a}{sep}{b}", {}, "has no form for pairs of texts."),
        (
            "bert", "{soft:10}good film {text}", {"max_length": 12},
            "prompt (10 soft tokens) + fixed text (4 tokens) = 14 positions, but the backbone has 12 for them. Shorten the template's own text to 2 tokens or the prompt to 8.",
        ),
        ("bert", "{soft:10}{text}", {"max_length": 5}, "Shorten the prompt to 3."),
        ("bert", "good film {text}", {"max_length": 2}, "Shorten the template's own text to 2 tokens."),
        ("bert", "{soft:3}good film {text}", {"max_length": 2}, "Shorten both."),
    ],
)  # fmt: skip
def test_a_template_that_does_not_fit_the_tokenizer_is_refused(
    request, name, template, options, message
):
    with pytest.raises(TemplateError, match=re.escape(message)):
        render(template, request.getfixturevalue(name), {}, **options)


def test_a_table_smaller_than_the_tokenizers_ids_is_refused(bert):
    """Otherwise the id V would be soft token 0."""
    with pytest.raises(
        TemplateError, match="the id 101, but the backbone's embedding table has 100"
    ):
        make_renderer(parse_template("{text}"), bert, vocab_size=100, max_length=9)
    made = make_renderer(parse_template("{text}"), bert, vocab_size=2000, max_length=9)
    with pytest.raises(TemplateError, match="embedding table has 2000 rows"):
        made.render({"text": "film"})


def test_the_callers_tokenizer_is_not_changed(llama):
    before = llama.backend_tokenizer.to_str()
    render("<|user|>{text}{soft:2} good", llama, {"text": "a </s> film"})
    assert llama.backend_tokenizer.to_str() == before


def test_truncation_and_padding_in_the_tokenizers_file_change_no_row(any_tokenizer, tmp_path):
    """A file keeps them if they were on when it was saved, as in many sentence encoders."""
    any_tokenizer.save_pretrained(tmp_path)
    plain = type(any_tokenizer).from_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    core = Tokenizer.from_file(str(file))
    core.enable_truncation(5)
    core.enable_padding(length=40, pad_id=0, pad_token=core.id_to_token(0))
    core.save(str(file))
    assert json.loads(file.read_text("utf-8"))["truncation"]["max_length"] == 5
    other = type(any_tokenizer).from_pretrained(tmp_path)
    template = "{soft:3}Review: {text} was{soft:2}"
    for text in TEXTS:
        found = render(template, other, {"text": text})
        assert found == render(template, plain, {"text": text})
