"""Label words become tokens, or the message names the reason why not."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from softprompt.data.tokenizer import make_text_encoder
from softprompt.errors import DataError, TemplateError
from softprompt.tasks.verbalizer import LabelWords, score_labels, tokenize_verbalizer
from support.tokenizers import train_unigram


@pytest.fixture
def read(tokenizer):
    def get(verbalizer, *, kind="causal", end=2, **more: object):
        encoder = make_text_encoder(tokenizer(kind), vocab_size=366)
        return tokenize_verbalizer(encoder, verbalizer, end=end, **more)

    return get


def message(read, verbalizer, **more: object) -> str:
    with pytest.raises(DataError) as error:
        read(verbalizer, **more)
    return str(error.value)


def test_words_are_their_tokens(read, tokenizer):
    words = read({"up": [" good", " wonderful"], "down": [" bad"]})
    spell = tokenizer("causal")
    assert words.labels == ("up", "down")
    assert [[spell.decode(list(w)) for w in ws] for ws in words.tokens] == [
        [" good", " wonderful"],
        [" bad"],
    ]
    assert words.lengths == (1, 2)
    assert not words.all_single_token
    assert read({"up": [" good"], "down": [" bad"]}).all_single_token


def test_the_end_is_put_behind_all_words_if_one_begins_another(read):
    words = read({"up": [" great"], "down": [" greatly"], "so": [" good"]})
    assert all(word[-1] == 2 for word in words.all)
    assert not words.all_single_token


def test_a_text_to_text_models_words_always_end(read):
    words = read({"up": ["good"], "down": ["bad"]}, always_end=True)
    assert [word[-1] for word in words.all] == [2, 2]


def test_a_word_that_begins_another_without_an_end_token(read):
    assert message(read, {"up": [" great"], "down": [" greatly"]}, end=None) == (
        "the label word ' great' is a prefix of the label word ' greatly', and the tokenizer has "
        "no end token to distinguish them. Choose words of which none is a prefix of another."
    )


def test_two_labels_with_the_same_word(read):
    assert message(read, {"up": [" good", " great"], "down": [" bad", " good"]}) == (
        "labels 'up' and 'down' have the same word for this tokenizer: ' good' and ' good' are "
        "both tokens [290]. Choose distinct words."
    )


def test_one_label_with_the_same_word_twice(read):
    """It would count twice."""
    assert message(read, {"up": [" good", " great", " good"], "down": [" bad"]}) == (
        "label 'up' has the word ' good' twice (tokens [290]), and it would count twice. Write it "
        "once."
    )


@pytest.mark.parametrize("word", ["", "{good}"])
def test_a_word_that_cannot_be_written(word):
    """Unigram knows no braces."""
    core = train_unigram("always", ["<pad>", "</s>", "<unk>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")  # noqa: S106
    encoder = make_text_encoder(tokenizer, vocab_size=len(tokenizer))
    with pytest.raises(DataError) as error:
        tokenize_verbalizer(encoder, {"up": [word], "down": [" bad"]}, end=1)
    assert str(error.value) == (
        f"the word {word!r} of label 'up' cannot be written with this backbone's vocabulary. "
        "Choose another word."
    )


@pytest.mark.parametrize("word", ["x</s>y", "</s>", "<s> good", "<mask>"])
def test_special_tokens_in_a_word_are_plain_text(read, tokenizer, word):
    words = read({"up": [word], "down": [" bad"]})
    (ids,) = words.tokens[0]
    assert not {*tokenizer("causal").all_special_ids} & {*ids}
    assert tokenizer("causal").decode(list(ids)) == word


def test_a_word_beyond_the_table_is_refused(tokenizer):
    encoder = make_text_encoder(tokenizer("causal"), vocab_size=300)
    with pytest.raises(TemplateError, match="but the backbone's embedding table has 300 rows"):
        tokenize_verbalizer(encoder, {"up": [" wonderful"], "down": [" fresh"]}, end=2)


def test_a_label_without_words(read):
    assert message(read, {"up": [], "down": [" bad"]}) == (
        "label 'up' has no word, so it could never be the answer. Give it one."
    )


@pytest.mark.parametrize("verbalizer", [{}, {"up": [" good"]}])
def test_one_label_is_no_choice(read, verbalizer):
    assert message(read, verbalizer) == (
        "a verbalizer needs at least 2 labels to choose from, but this one has "
        f"{len(verbalizer)}. Add the others."
    )


@pytest.mark.parametrize(
    ("words", "contexts"),
    [
        ([(1,), (2,)], [()]),
        ([(1, 2), (1, 3)], [(1,)]),
        ([(1,), (1, 3)], [(1,)]),
        ([(1, 2), (3, 4)], [(1,), (3,)]),
        ([(1, 2, 3), (1, 4)], [(1, 2)]),
        ([(1, 2, 3), (1, 4, 5), (6,)], [(1, 2), (1, 4)]),
    ],
)
def test_every_stem_is_run_in_as_few_continuations_as_it_takes(words, contexts):
    found = LabelWords(
        tuple("abc"[: len(words)]), tuple((word,) for word in words)
    ).list_continuations()
    assert sorted(found) == contexts
    stems = {word[:at] for word in words for at in range(len(word))}
    assert stems <= {context[:at] for context in found for at in range(len(context) + 1)}


def test_scores_of_a_known_distribution():
    """Two points with known probabilities; a label of two words is their sum."""
    chances = torch.tensor([[[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]]])
    words = LabelWords(("a", "b"), (((0,), (1, 2)), ((2, 1),)))
    scores = score_labels(
        chances.log(), words, readouts={(0,): [0], (1, 2): [0, 1], (2, 1): [0, 1]}
    )
    assert scores.exp().tolist()[0] == pytest.approx([0.5 + 0.2 * 0.3, 0.3 * 0.6])
