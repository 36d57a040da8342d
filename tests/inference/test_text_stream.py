"""Text that is shown as it grows adds up to the text of all tokens."""

# The "passwords" of S106 are names of special tokens.
# ruff: noqa: S106

import pytest
import tokenizers as tk
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt.inference.text_stream import TextStream
from softprompt.tasks.answers import spell_tokens
from support.tokenizers import train_byte_level, train_prepending, train_unigram

SPECIALS = ["<s>", "</s>", "<unk>"]


def train_byte_fallback() -> tk.Tokenizer:
    """Words and, as in Llama 2, single bytes for what has no token."""
    core = train_prepending(SPECIALS + [f"<0x{byte:02X}>" for byte in range(256)])
    core.decoder = tk.decoders.Sequence(
        [
            tk.decoders.Replace("▁", " "),
            tk.decoders.ByteFallback(),
            tk.decoders.Fuse(),
            tk.decoders.Strip(" ", 1, 0),
        ]
    )
    return core


def train_word_pieces() -> tk.Tokenizer:
    core = tk.Tokenizer(tk.models.WordPiece(unk_token="<unk>"))
    core.pre_tokenizer = tk.pre_tokenizers.Whitespace()
    core.decoder = tk.decoders.WordPiece(cleanup=False)
    trainer = tk.trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIALS)
    core.train_from_iterator(["a fine film, and a finer one", "films of the finest"] * 9, trainer)
    return core


MAKERS = {
    "bytes": lambda: train_byte_level(SPECIALS),
    "byte fallback": train_byte_fallback,
    "unigram": lambda: train_unigram("first", SPECIALS),
    "prepending": lambda: train_prepending(SPECIALS),
    "word pieces": train_word_pieces,
}
TOKENIZERS = {
    name: tf.PreTrainedTokenizerFast(
        tokenizer_object=make(), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    for name, make in MAKERS.items()
}


def stream_all(tokenizer, ids, stop=()) -> tuple[list[str], TextStream]:
    stream = TextStream(lambda some: spell_tokens(tokenizer, some), stop=stop)
    parts = []
    for token in ids:
        parts.append(stream.add(token))
        if stream.is_stopped:
            break
    return [*parts, stream.finish()], stream


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_tokens_add_up_to_their_text(name, data):
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=12))
    parts, stream = stream_all(tokenizer, ids)
    assert "".join(parts) == spell_tokens(tokenizer, ids).strip() == stream.text


@pytest.mark.parametrize("name", ["bytes", "byte fallback"])
@settings(deadline=None, max_examples=100)
@given(text=st.text(min_size=1, max_size=12))
def test_characters_come_whole(name, text):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text, add_special_tokens=False)
    parts, stream = stream_all(tokenizer, ids)
    assert "".join(parts) == stream.text == spell_tokens(tokenizer, ids).strip()
    assert "\ufffd" in text or "\ufffd" not in stream.text


def test_an_emoji_waits_for_its_last_byte():
    tokenizer = TOKENIZERS["bytes"]
    ids = tokenizer.encode("a 🙂 b", add_special_tokens=False)
    parts, _ = stream_all(tokenizer, ids)
    assert len(ids) > 6
    assert [part for part in parts if part] == ["a", " 🙂", " b"]


@settings(deadline=None, max_examples=150)
@given(
    text=st.text("ab \n", max_size=14),
    stop=st.lists(st.text("ab \n", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_cut_as_a_search_of_the_whole_text_does(text, stop):
    """The first to be complete cuts; of those that are complete at once, the first to begin."""
    stream, parts = TextStream(lambda ids: "".join(map(chr, ids)), stop=stop), []
    for number, character in enumerate(text):
        before = [text[: number + 1].find(one) for one in stop]
        found = [begin for begin in before if begin >= 0]
        parts.append(stream.add(ord(character)))
        if found:
            assert stream.is_stopped
            assert "".join(parts) + stream.finish() == text[: min(found)].strip()
            return
        assert not stream.is_stopped
    assert "".join(parts) + stream.finish() == text.strip()


def test_what_may_be_a_stop_string_is_held_back():
    stream = TextStream(lambda ids: "".join(map(chr, ids)), stop=["END", "ENOUGH"])
    assert [stream.add(ord(c)) for c in "a EN"] == ["a", "", "", ""]
    assert stream.add(ord("x")) == " ENx"
    assert [stream.add(ord(c)) for c in "EN"] == ["", ""]
    assert stream.finish() == "EN"
    assert stream.text == "a ENxEN"
