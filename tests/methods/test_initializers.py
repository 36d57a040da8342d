"""Initial prompts are real words, or noise at the scale of real words."""

import pytest
import torch
from torch.testing import assert_close

from softprompt.errors import PromptError
from softprompt.injection import capture_keys_and_values, forward
from softprompt.methods import parse_layers
from softprompt.methods.initializers import (
    FromLabels,
    FromPrompt,
    FromRandom,
    FromText,
    FromVocabulary,
    Initializer,
    initialize_prompt,
)
from softprompt.prompt import InputPrompt, KVPrefix
from support.parametrize import for_each


@pytest.fixture
def start(backbone):
    """An initial prompt by family: by default an input prompt of 6 soft tokens."""

    def get(
        family: str, initial: Initializer, *, seed: int = 0, dtype=torch.float32, **how: object
    ):
        how = {"kind": "input", "length": 6} | how
        generator = torch.Generator().manual_seed(seed)
        return initialize_prompt(backbone(family, dtype), initial, generator=generator, **how)

    return get


def ids_of(own, text: str) -> torch.Tensor:
    return torch.tensor(own.tokenizer(text, add_special_tokens=False)["input_ids"])


def rows_of(own, vectors: torch.Tensor) -> list[int]:
    """The rows of the embedding table that are nearest to some vectors."""
    table = own.embed(torch.arange(own.geometry.vocab_size))
    return [torch.cdist(v[None], table).argmin().item() for v in vectors]


@for_each("family")
def test_text_is_its_tokens_embeddings(backbone, start, family):
    own = backbone(family)
    ids = ids_of(own, "the movie was great")
    assert len(ids) == 4
    assert torch.equal(
        start(family, FromText("the movie was great"), length=4).vectors, own.embed(ids)
    )


def test_text_is_repeated_or_cut_to_length(backbone, start):
    own = backbone("gpt2")
    vectors = own.embed(ids_of(own, "a good movie"))
    assert torch.equal(start("gpt2", FromText("a good movie"), length=2).vectors, vectors[:2])
    whole = torch.cat([vectors, vectors, vectors])[:7]
    assert torch.equal(start("gpt2", FromText("a good movie"), length=7).vectors, whole)


@for_each("family")
def test_text_acts_like_the_text(backbone, plain, maker, start, family):
    """The initial prompt acts like the same words: the last states are the same."""
    own, make = backbone(family), maker(family)
    ids = ids_of(own, "the movie was great")
    hard, soft = make.words(9), make.words(9)
    hard[1:5], soft[1:5] = ids, make.soft(4)
    prompt = start(family, FromText("the movie was great"), length=4)
    states = forward(own, make.batch(soft), prompts=[prompt])
    assert_close(states, forward(own, make.batch(hard), prompts=[None]), rtol=1e-5, atol=1e-5)


def test_labels_are_means_and_the_rest_is_vocabulary(backbone, start):
    own = backbone("llama")
    words = (" good", " wonderful")
    assert len(ids_of(own, words[1])) > 1
    vectors = start("llama", FromLabels(words)).vectors
    for vector, word in zip(vectors, words, strict=False):
        assert_close(vector, own.embed(ids_of(own, word)).mean(dim=0))
    sampled = rows_of(own, vectors[2:])
    assert_close(own.embed(torch.tensor(sampled)), vectors[2:])
    assert len({*sampled}) == 4


def test_more_labels_than_soft_tokens_are_cut(backbone, start):
    words = (" good", " bad", " dull")
    two, three = (start("llama", FromLabels(words), length=n).vectors for n in (2, 3))
    assert torch.equal(two, three[:2])
    assert len(three) == 3


@for_each("family")
def test_a_vocabulary_sample_is_of_words_and_without_replacement(backbone, start, family):
    own = backbone(family)
    usual = set(range(len(own.tokenizer))) - {*own.tokenizer.all_special_ids}
    vectors = start(family, FromVocabulary(), length=len(usual)).vectors
    rows = rows_of(own, vectors)
    assert_close(own.embed(torch.tensor(rows)), vectors)
    # Every word once: nothing twice, no special token, no spare row of the table.
    assert sorted(rows) == sorted(usual)


def test_a_prompt_longer_than_the_vocabulary_begins_again(backbone, start):
    usual = len(backbone("gpt2").tokenizer) - 4
    vectors = start("gpt2", FromVocabulary(), length=usual + 3).vectors
    assert torch.equal(vectors[usual:], vectors[:3])


@pytest.mark.parametrize("initial", [FromVocabulary(), FromRandom(), FromLabels((" good",))])
def test_the_seed_alone_decides(start, initial):
    torch.manual_seed(1)
    first = start("gpt2", initial).vectors
    torch.manual_seed(2)
    assert torch.equal(start("gpt2", initial).vectors, first)
    assert not torch.equal(start("gpt2", initial, seed=1).vectors, first)


@for_each("family")
def test_noise_has_the_scale_of_the_table(backbone, start, family):
    """And the width: Gemma's tokens are 5.7 times its table's entries."""
    vectors = start(family, FromRandom(), length=400).vectors
    assert vectors.shape == (400, backbone(family).geometry.embedding_size)
    assert vectors.std().item() == pytest.approx(backbone(family).geometry.embedding_rms, rel=0.05)
    assert vectors.mean().item() == pytest.approx(0, abs=0.05)


class TestPrefix:
    """Keys and values: of a text, or noise."""

    @for_each("kv")
    def test_of_a_text(self, backbone, start, kv):
        own = backbone(kv)
        found = capture_keys_and_values(own, ids_of(own, "the movie was great"))
        layers = tuple(range(own.geometry.num_attention_sites))[1:]
        how = {"kind": "kv", "length": 4, "layers": layers}
        prefix = start(kv, FromText("the movie was great"), **how)
        assert prefix.sites == layers
        assert torch.equal(prefix.keys, found.keys[1:])
        assert torch.equal(prefix.values, found.values[1:])
        assert not prefix.shift_positions

    def test_of_a_text_repeated(self, backbone, start):
        own = backbone("llama")
        ids = ids_of(own, "a good movie")
        prefix = start("llama", FromText("a good movie"), kind="kv", length=5, layers=(0, 1))
        assert torch.equal(
            prefix.keys, capture_keys_and_values(own, torch.cat([ids, ids[:2]])).keys
        )

    def test_of_label_words(self, backbone, start):
        own = backbone("llama")
        ids = torch.cat([ids_of(own, " good"), ids_of(own, " bad")])
        prefix = start("llama", FromLabels((" good", " bad")), kind="kv", length=2, layers=(0, 1))
        assert torch.equal(prefix.keys, capture_keys_and_values(own, ids).keys)

    def test_of_no_label_words(self, start):
        with pytest.raises(PromptError) as error:
            start("llama", FromLabels(()), kind="kv", layers=(0, 1))
        assert str(error.value) == (
            "keys and values cannot be initialized from label words, as there are none. Add a "
            "verbalizer, or choose text or vocabulary."
        )

    def test_noise(self, start):
        prefix = start("llama", FromRandom(), kind="kv", length=300, layers=(1,))
        assert prefix.keys.shape == prefix.values.shape == (1, 2, 300, 10)
        for drawn in (prefix.keys, prefix.values):
            assert drawn.std().item() == pytest.approx(0.02, rel=0.05)
        assert not torch.equal(prefix.keys, prefix.values)


@pytest.mark.parametrize("kind", ["input", "kv"])
@pytest.mark.parametrize("initial", [FromText("good movie"), FromVocabulary(), FromRandom()])
def test_it_is_fp32_whatever_the_backbone(start, kind, initial):
    prompt = start("llama", initial, dtype=torch.bfloat16, kind=kind, layers=(0, 1))
    for tensor in prompt.to_tensors().values():
        assert tensor.dtype == torch.float32
        assert not tensor.requires_grad


class TestFromPrompt:
    """Another prompt is copied, or refused with both shapes."""

    def message(self, start, prompt, **how: object) -> str:
        with pytest.raises(PromptError) as error:
            start("llama", FromPrompt(prompt), **how)
        return str(error.value)

    def test_vectors(self, start, maker):
        given = maker("llama").input_prompt(6)
        taken = start("llama", FromPrompt(given))
        assert torch.equal(taken.vectors, given.vectors)
        assert taken.vectors.data_ptr() != given.vectors.data_ptr()

    def test_some_layers_of_a_prefix(self, start, maker):
        given = maker("llama").prefix(6)
        taken = start("llama", FromPrompt(given), kind="kv", layers=(1,))
        assert taken.sites == (1,)
        assert torch.equal(taken.keys, given.keys[1:])

    def test_positions_stay_as_they_were_trained(self, start, maker):
        given = maker("llama").prefix(6, shift_positions=True)
        assert start("llama", FromPrompt(given), kind="kv", layers=(0, 1)).shift_positions

    def test_layers_that_it_lacks(self, start, maker):
        given = maker("llama").prefix(6, layers=(1,))
        assert self.message(start, given, kind="kv", layers=(0, 1)) == (
            "the prompt to start from has no keys and values on layers [0]. Train on its layers: "
            "[1]."
        )

    def test_another_kind(self, start):
        assert self.message(start, InputPrompt(torch.zeros(6, 32)), kind="kv", layers=(0,)) == (
            "the prompt to start from consists of vectors of 6 soft tokens, but the method trains "
            "keys and values of 6. Start from a prompt of the same kind."
        )

    def test_another_length(self, start):
        given = InputPrompt(torch.zeros(5, 32))
        assert "consists of vectors of 5 soft tokens, but the method trains vectors of 6" in (
            self.message(start, given)
        )


def test_a_text_without_tokens_is_refused(start):
    with pytest.raises(PromptError) as error:
        start("llama", FromText(""))
    assert str(error.value) == (
        "the text to initialize from, '', has no tokens. Give at least one word."
    )


def test_the_types_are_the_prompts(start):
    assert isinstance(start("llama", FromRandom()), InputPrompt)
    assert isinstance(start("llama", FromRandom(), kind="kv", layers=(0,)), KVPrefix)


class TestLate:
    """Vectors that enter at a later layer are initialized from the states of words there."""

    @for_each("causal")
    def test_words_are_that_layers_states(self, backbone, plain, start, causal):
        own = backbone(causal)
        if not own.geometry.num_layers:
            with pytest.raises(PromptError):
                start(causal, FromText("a good movie"), layers=(1,))
            return
        ids = torch.cat([torch.tensor([0]), ids_of(own, "the movie was great")])  # <s> is first
        with torch.no_grad():
            said = plain(causal).base_model(input_ids=ids[None], output_hidden_states=True)
        states = said.hidden_states[1][0, 1:]
        found = start(causal, FromText("the movie was great"), length=4, layers=(1,))
        assert found.start_layer == 1
        if found.vectors.shape == states.shape:  # OPT-350M projects its states
            assert_close(found.vectors, states, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        "initial", [FromVocabulary(), FromLabels((" good", " bad")), FromRandom()]
    )
    @for_each("kv")
    def test_every_start_has_the_scale_of_its_states(self, backbone, start, kv, initial):
        own = backbone(kv)
        vectors = start(kv, initial, length=40, layers=(1,)).vectors
        words = start(kv, FromText("the movie was great"), length=40, layers=(1,)).vectors
        assert vectors.shape == (40, own.geometry.layer_width)
        assert 0.3 < vectors.pow(2).mean().sqrt() / words.pow(2).mean().sqrt() < 3

    def test_an_artifact_of_another_layer_is_refused(self, start):
        """The layers that the message names are the layers of the prompt to start from."""
        for layer, layers, remedy in ((1, (), "1:"), (0, (1,), "all")):
            initial = FromPrompt(InputPrompt(torch.zeros(6, 32), layer))
            with pytest.raises(PromptError) as error:
                start("llama", initial, layers=layers)
            assert str(error.value) == (
                f"the prompt to start from enters at layer {layer}, but the method's prompt enters "
                f'at layer {1 - layer}. Set layers = "{remedy}" for the method.'
            )
            selected = () if remedy == "all" else parse_layers(remedy, 2)
            assert start("llama", initial, layers=selected).start_layer == layer
