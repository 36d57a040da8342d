"""Decoding is the best of all sequences; aggregation is that of transformers' pipeline."""

from itertools import product

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from softprompt.data.tag_schemes import find_fault, list_tags
from softprompt.errors import DataError
from softprompt.tasks.tag_decoding import (
    aggregate_pieces,
    decode_tags,
    group_pieces,
    make_transitions,
)
from support.tiny_models import CONFIGS, draw_model
from support.tokenizers import set_special_tokens

SCHEMES = ["BIO", "IOB1", "BIOES", "BILOU", "none"]
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("length", [1, 2, 4])
def test_the_best_possible_sequence_is_found(scheme, length):
    """By trial of every sequence."""
    tags = list_tags(["X", "Y"] if length < 4 else ["X"], scheme=scheme)
    transitions = make_transitions(tags, scheme=scheme)
    possible = [
        path
        for path in product(range(len(tags)), repeat=length)
        if find_fault([tags[at] for at in path], scheme=scheme) is None
    ]
    rng = np.random.default_rng(length)
    for scale in (0.1, 1, 5, 30):
        for _ in range(10):
            rows = rng.normal(size=(length, len(tags))) * scale
            totals = [sum(rows[word, tag] for word, tag in enumerate(path)) for path in possible]
            assert decode_tags(rows, transitions) == possible[int(np.argmax(totals))]


@given(st.integers(0, 30), st.integers(0, 2**32 - 1), st.sampled_from(SCHEMES))
def test_decoded_tags_are_possible_for_every_length(length, seed, scheme):
    tags = list_tags(["X", "Y"], scheme=scheme)
    rows = np.random.default_rng(seed).normal(size=(length, len(tags))) * 10
    path = decode_tags(rows, make_transitions(tags, scheme=scheme))
    assert len(path) == length
    assert find_fault([tags[at] for at in path], scheme=scheme) is None


@given(st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_without_a_scheme_every_word_has_its_own_best_tag(length, seed):
    rows = np.random.default_rng(seed).normal(size=(length, 4)).astype(np.float32)
    path = decode_tags(rows, make_transitions("abcd", scheme="none"))
    assert path == tuple(rows.argmax(axis=1))


def test_sequences_without_a_probability_are_refused():
    transitions = make_transitions(["B-X", "E-X"], scheme="BIOES")
    assert decode_tags(np.zeros((2, 2)), transitions) == (0, 1)
    with pytest.raises(DataError, match="no possible sequence of 3 of these tags"):
        decode_tags(np.zeros((3, 2)), transitions)
    with pytest.raises(DataError, match="is NaN"):
        decode_tags(np.full((3, 2), np.nan), transitions)
    # What has no probability is never chosen.
    transitions = make_transitions(["O", "B-X", "I-X"], scheme="BIO")
    rows = np.log(np.array([[0.5, 0.5, 1e-9], [1e-9, 1e-9, 1]]) * [1, 1, 1])
    rows[1, :2] = -np.inf
    assert decode_tags(rows, transitions) == (1, 2)


def make_word_pieces():
    """WordPiece, for which the pipeline knows which tokens are of one word."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "film", "was", "it", "a", "and", "good"]
    pieces += ["terr", "##ib", "##le", "won", "##der", "##ful", "##ness", "bad", "##ly", "##ing"]
    core = Tokenizer(models.WordPiece({p: at for at, p in enumerate(pieces)}, unk_token="[UNK]"))  # noqa: S106
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    set_special_tokens(core, single="[CLS] $A [SEP]", pair="$A $B", specials=["[CLS]", "[SEP]"])
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    return tf.PreTrainedTokenizerFast(tokenizer_object=core, **names)


@pytest.fixture(scope="module")
def pipeline():
    config = CONFIGS["bert"](id2label=dict(enumerate(TAGS)), label2id={}, num_labels=len(TAGS))
    model = draw_model(tf.AutoModelForTokenClassification, config).eval()
    nn.init.normal_(model.classifier.weight, std=1.5)
    return tf.pipeline(
        "token-classification", model=model, tokenizer=make_word_pieces(), device="cpu"
    )


TEXTS = ["the film was terrible", "wonderfully badness and goodness it", "a terrful good film"]


def read_tokens(pipeline, text):
    """The probabilities, characters and word of each token, of the pipeline's own steps."""
    encoding = pipeline.tokenizer(text, return_offsets_mapping=True)
    with torch.no_grad():
        logits = pipeline.model(torch.tensor([encoding["input_ids"]])).logits[0]
    probabilities = logits.double().softmax(dim=-1).numpy()
    kept = [at for at, (start, end) in enumerate(encoding["offset_mapping"]) if end > start]
    return (
        probabilities[kept],
        [encoding["offset_mapping"][at] for at in kept],
        [encoding.token_to_word(at) for at in kept],
    )


def describe(pipeline, text, strategy):
    found = pipeline(text, aggregation_strategy=strategy, ignore_labels=[])
    return [
        (e["entity_group"], pytest.approx(float(e["score"]), abs=1e-5), e["start"], e["end"])
        for e in found
    ]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("strategy", ["first", "average", "max"])
def test_words_are_those_of_the_pipeline(pipeline, text, strategy):
    probabilities, offsets, word_ids = read_tokens(pipeline, text)
    words = [[at for at, w in enumerate(word_ids) if w == word] for word in sorted({*word_ids})]
    found = aggregate_pieces(probabilities, words, strategy=strategy)
    tags = [TAGS[at] for at in found.argmax(axis=1)]
    groups = group_pieces(tags, list(found.max(axis=1)), scheme="BIO")
    spans = [
        (g.label, g.score, offsets[words[g.start][0]][0], offsets[words[g.end - 1][-1]][1])
        for g in groups
    ]
    assert spans
    assert spans == [e for e in describe(pipeline, text, strategy) if e[0] != "O"]


@pytest.mark.parametrize("text", TEXTS)
def test_groups_of_tokens_are_those_of_the_pipeline(pipeline, text):
    probabilities, offsets, _ = read_tokens(pipeline, text)
    tags = [TAGS[at] for at in probabilities.argmax(axis=1)]
    groups = group_pieces(tags, list(probabilities.max(axis=1)), scheme="BIO")
    spans = [(g.label, g.score, offsets[g.start][0], offsets[g.end - 1][1]) for g in groups]
    assert spans
    assert spans == [e for e in describe(pipeline, text, "simple") if e[0] != "O"]


def test_plain_tags_are_grouped_where_they_are_the_same():
    groups = group_pieces(["DET", "NOUN", "NOUN"], [1.0, 0.5, 0.25], scheme="none")
    assert groups == (("DET", 1.0, 0, 1), ("NOUN", 0.375, 1, 3))


def test_no_words_have_no_probabilities():
    assert aggregate_pieces(np.ones((3, 2)), [], strategy="average").shape == (0, 2)
