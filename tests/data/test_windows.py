"""Windows of long texts: every token once, at its place, and none without its characters."""

# Letters that look like others are meant.
# ruff: noqa: RUF001

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from softprompt.data.rendering import make_renderer
from softprompt.data.template import parse_template
from softprompt.data.windows import cut_windows, divide_ownership, make_window_renderer
from softprompt.errors import DataError, TemplateError

BOUNDED = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# Combining marks, an accent before and after composition, letters that become two, wide letters,
# right-to-left text with its marks, emoji of several characters, zero width, and white space.
ADVERSARIAL = [
    "e\u0301", "é", "İ", "ﬁ", "½", "ﷺ", "Ａ", "שָׁלוֹם", "\u202eمرحبا\u202c", "हिन्दी",
    "😀", "👨\u200d👩\u200d👧", "👍🏽", "🇨🇭", "\u200b", "\u200d", "\ufeff", "\ufffd", "\x00",
    "\u0301", "\t", "\r\n", "\n", "\u00a0", "\u2028", "  ", " ", "</s>", "<mask>", "[SEP]",
    "日本語", "word", "good film", "unbelievable", "x" * 40,
]  # fmt: skip
ROUGH = st.lists(st.one_of(st.sampled_from(ADVERSARIAL), st.text(max_size=6)), max_size=60).map(
    "".join
)
TEMPLATES = [
    "{text}",
    "{soft:2}{text}",
    "Review: {text} It was good.",
    "{soft:1}{other} {text}{soft:2}!",
    "{other}{soft:1}{text}",
    "{text}{other}",
]


@pytest.fixture(scope="session")
def gemma():
    """BPE of characters with pieces of bytes for those that it does not know, as Gemma's."""
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"goditefilmwr"]
    vocabulary = {piece: at for at, piece in enumerate(dict.fromkeys(["<unk>", "<bos>", *pieces]))}
    core = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))  # noqa: S106
    core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")  # noqa: S106


@pytest.fixture(scope="session")
def normalizing():
    """WordPiece of characters whose normalizer changes lengths: NFKC, lower case, no accents."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789⁄日本"]
    pieces = ["[UNK]", *letters, *(f"##{letter}" for letter in letters)]
    core = Tokenizer(models.WordPiece({p: at for at, p in enumerate(pieces)}, unk_token="[UNK]"))  # noqa: S106
    core.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.NFD(), normalizers.StripAccents()]
    )
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")  # noqa: S106


KINDS = ["bert", "gpt", "closing", "roberta", "t5", "llama", "llama2", "gemma", "normalizing"]


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return request.getfixturevalue(request.param)


def make(template, tokenizer, *, max_length=24, stride=4, field="text"):
    renderer = make_renderer(
        parse_template(template), tokenizer, vocab_size=len(tokenizer), max_length=max_length
    )
    return make_window_renderer(renderer, field=field, stride=stride)


def render_whole(made, row):
    """The row as one window, which a backbone without a limit would run."""
    renderer = make_renderer(
        made.renderer.template,
        made.renderer.tokenizer,
        vocab_size=made.renderer.vocab_size,
        max_length=100_000,
    )
    name = made.renderer.template.field_places[made.place]
    return make_window_renderer(renderer, field=name, stride=0).render(row)[0]


@BOUNDED
@given(text=ROUGH, other=ROUGH, template=st.sampled_from(TEMPLATES), stride=st.integers(0, 5))
def test_every_token_is_owned_once_and_no_window_is_too_long(
    tokenizer, text, other, template, stride
):
    made = make(template, tokenizer, max_length=30, stride=stride)
    row = {"text": text, "other": other}
    windows = made.render(row)
    assert all(len(window.row.input_ids) <= 30 for window in windows)
    assert all(len(w.row.token_type_ids) == len(w.row.input_ids) for w in windows)
    if not any(window.row.truncated for window in windows):
        whole = render_whole(made, row)
        owned = [
            (window.row.input_ids[token.position], token.start, token.end)
            for window in windows
            for token in window.tokens
            if token.owned
        ]
        assert owned == [(whole.row.input_ids[t.position], t.start, t.end) for t in whole.tokens]
    for window in windows:
        places = [token.position for token in window.tokens]
        assert places == list(range(places[0], places[0] + len(places))) if places else True


@BOUNDED
@given(text=ROUGH, other=ROUGH, template=st.sampled_from(TEMPLATES))
def test_a_row_that_fits_is_what_the_renderer_makes(tokenizer, text, other, template):
    made = make(template, tokenizer, max_length=60)
    row = {"text": text, "other": other}
    rendered, windows = made.renderer.render(row), made.render(row)
    if rendered.truncated:
        assert len(windows) > 1 or windows[0].row.truncated
    else:
        assert [window.row for window in windows] == [rendered]
        assert all(token.owned for token in windows[0].tokens)


@BOUNDED
@given(text=ROUGH, template=st.sampled_from(TEMPLATES))
def test_what_is_before_and_after_the_field_is_in_every_window(tokenizer, text, template):
    made = make(template, tokenizer, max_length=40)
    row = {"text": text, "other": "a film"}
    whole = render_whole(made, row)
    places = {token.position for token in whole.tokens}
    around = [i for at, i in enumerate(whole.row.input_ids) if at not in places]
    for window in made.render(row):
        places = {token.position for token in window.tokens}
        assert [i for at, i in enumerate(window.row.input_ids) if at not in places] == around


@BOUNDED
@given(text=ROUGH, stride=st.integers(0, 7))
@pytest.mark.parametrize("kind", ["bert", "gpt", "roberta", "closing", "llama2", "normalizing"])
def test_windows_are_those_of_the_tokenizer_library(request, kind, text, stride):
    """Its own division of a text, where no text is a special token."""
    tokenizer = request.getfixturevalue(kind)
    text = re.sub(r"</?s>|<mask>|\[SEP\]", "", text)
    encoding = tokenizer(
        text, truncation=True, max_length=20, stride=stride, return_overflowing_tokens=True
    )
    made = make("{text}", tokenizer, max_length=20, stride=stride)
    expected = encoding["input_ids"]
    assert [list(window.row.input_ids) for window in made.render({"text": text})] == expected


def measure_piece(piece):
    """The number of bytes of a piece of a byte-level BPE, or of one such as Gemma's."""
    if len(piece.encode()) == 6 and piece.startswith("<0x"):
        return 1
    return len(piece) if piece not in {"<s>", "</s>"} else 0


@BOUNDED
@given(text=ROUGH, template=st.sampled_from(TEMPLATES[:3]))
@pytest.mark.parametrize("kind", ["gpt", "roberta", "gemma"])
def test_offsets_are_those_of_the_bytes(request, kind, text, template):
    """A byte-level token has known bytes, so its characters are those that the bytes belong to."""
    tokenizer = request.getfixturevalue(kind)
    before, after = template.replace("{soft:2}", "").split("{text}")
    joined = before + text + after
    whole = render_whole(make(template, tokenizer, max_length=40), {"text": text})
    owners = [at for at, character in enumerate(joined) for _ in character.encode()]
    expected, at = {}, 0
    for position, index in enumerate(whole.row.input_ids):
        if index >= len(tokenizer):
            continue  # a soft token
        width = measure_piece(tokenizer.convert_ids_to_tokens(index))
        if width:
            first, last = owners[at], owners[at + width - 1]
            begin, end = len(before), len(before) + len(text)
            if first < end and last >= begin:
                expected[position] = (max(first, begin) - begin, min(last + 1, end) - begin)
        at += width
    assert at == len(owners)
    assert {token.position: token[1:3] for token in whole.tokens} == expected


def list_characters(made, text):
    """The characters that tokens cover, over all windows."""
    return {
        place
        for window in made.render({"text": text})
        for token in window.tokens
        if token.owned
        for place in range(token.start, token.end)
    }


@BOUNDED
@given(words=st.lists(st.sampled_from(ADVERSARIAL[:13] + ADVERSARIAL[-4:]), max_size=40))
def test_offsets_of_normalized_text(normalizing, words):
    """What normalisation makes of the characters of a token contains that token."""
    text = " ".join(words)
    normalizer = normalizing.backend_tokenizer.normalizer
    made = make("{text}", normalizing, max_length=16)
    for window in made.render({"text": text}):
        for token in window.tokens:
            piece = normalizing.convert_ids_to_tokens(window.row.input_ids[token.position])
            written = normalizer.normalize_str(text[token.start : token.end])
            assert piece == "[UNK]" or piece.removeprefix("##") in written


@BOUNDED
@given(words=st.lists(st.sampled_from(["film", "good", "😀", "日本", "e\u0301", "İ"]), min_size=1))
@pytest.mark.parametrize("gap", [" ", "\t", "\r\n", "\u00a0 ", "  \u200b "])
def test_every_visible_character_has_a_token(tokenizer, words, gap):
    text = gap.join(words)
    made = make("It: {text}!", tokenizer, max_length=24)
    missing = set(range(len(text))) - list_characters(made, text)
    assert all(text[at] in gap + "\u0301" for at in missing)


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7, 23])
@pytest.mark.parametrize("room", [5, 6])
@pytest.mark.parametrize("stride", [0, 1, 2, 3, 4])
def test_owners_are_those_of_bert(count, room, stride):
    """The rule as Devlin et al. state it, by trial of every window."""
    windows = cut_windows(count, room=room, stride=stride)
    owners = divide_ownership(windows)
    for token in range(count):
        contexts = [
            min(token - window.start, window.stop - 1 - token) if token in window else -1
            for window in windows
        ]
        assert [at for at, owned in enumerate(owners) if token in owned] == [
            contexts.index(max(contexts))
        ]
    assert sum(map(len, owners)) == count


def test_a_long_question_leaves_half_of_the_positions_to_the_text(bert):
    made = make("{question}{sep}{text}", bert, max_length=43, stride=8)
    words = {"question": "film " * 100, "text": "good " * 100}
    windows = made.render(words)
    assert {len(window.tokens) for window in windows[:-1]} == {20}
    assert all(window.row.truncated for window in windows)
    assert windows[0].row.input_ids[:21] == made.renderer.render(words).input_ids[:21]
    # A text that is short leaves the question its room.
    (window,) = made.render({"question": "film " * 30, "text": "good"})
    assert not window.row.truncated


def test_the_types_of_a_pair_are_kept(bert):
    made = make("{question}{sep}{text}", bert, max_length=20, stride=2)
    for window in made.render({"question": "a film", "text": "good " * 30}):
        assert {window.row.token_type_ids[token.position] for token in window.tokens} == {1}
        assert window.row.token_type_ids[:4] == (0, 0, 0, 0)


def test_the_mask_stays_at_its_place_in_every_window(bert):
    made = make("{text} {mask} so", bert, max_length=12, stride=2)
    windows = made.render({"text": "good " * 30})
    for window in windows:
        (place,) = window.row.mask_positions
        assert window.row.input_ids[place] == bert.mask_token_id
    assert len(windows) > 3


@pytest.mark.parametrize(
    ("template", "options", "message"),
    [
        ("{text}", {"field": "txt"}, "unknown field 'txt'. Options: text. Did you mean 'text'?"),
        ("{text} {text}", {}, "is there 2 times, but only a text that is there once"),
        (
            "{text}",
            {"stride": 22},
            "leaves 22 of 24 positions for it. Choose a stride from 0 to 21",
        ),
        ("{text}", {"stride": -1}, "cannot share -1 tokens"),
        ("{other} {text}", {"stride": 11}, "leaves 11 of 24 positions"),
        ("{soft:22}{text}", {}, "leaves none of 24 positions for the field 'text'. Shorten the"),
    ],
)
def test_a_template_that_cannot_be_divided(bert, template, options, message):
    with pytest.raises(TemplateError, match=re.escape(message)):
        make(template, bert, **options)


def test_a_row_without_the_field(bert):
    with pytest.raises(DataError, match="no field 'text'"):
        make("{text}", bert).render({"txt": "a"})
