"""Guarantee 1: a soft prompt made of real words acts like those words, at any place in a row."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from softprompt.backbone import BatchInputs
from softprompt.decoding import CacheKind
from softprompt.errors import PromptError
from softprompt.injection import Decoding, capture_keys_and_values, forward, generate, to_kv_prefix
from softprompt.prompt import InputPrompt, KVPrefix
from support.parametrize import for_each
from support.tiny_models import REFUSED

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
# The places of three soft tokens in rows of 9 and of 6 tokens.
PLACES = {"front": (0, 1, 2), "middle": (2, 3, 4), "end": (-3, -2, -1), "apart": (0, 2, 5)}


def logits(plain, row: Tensor, decoder: Tensor | None) -> Tensor:
    """The logits of transformers' own model for one row without padding."""
    given = {} if decoder is None else {"decoder_input_ids": decoder[:1]}
    with torch.no_grad():
        return plain(input_ids=row[None], **given).logits[0]


def check(backbone, inputs: BatchInputs, expected: list[Tensor], **prompts: object) -> None:
    """Compare at the real tokens (or the decoder's)."""
    actual = backbone.lm_head(forward(backbone, inputs, **prompts))
    for b, wanted in enumerate(expected):
        real = (
            actual[b]
            if inputs.decoder_input_ids is not None
            else actual[b][inputs.attention_mask[b].bool()]
        )
        assert_close(real, wanted, **CLOSE)


@pytest.mark.parametrize("place", PLACES)
@for_each("side", "family")
def test_words_as_soft_tokens_act_like_words(backbone, plain, maker, family, place, side):
    own, make = backbone(family), maker(family)
    words = make.words(3)
    hard = [maker(family, 1).words(9), maker(family, 2).words(6 if side != "none" else 9)]
    soft = [row.clone() for row in hard]
    for row, twin in zip(hard, soft, strict=True):
        row[list(PLACES[place])] = words
        twin[list(PLACES[place])] = make.soft(3)
    inputs = make.batch(*soft, side="right" if side == "none" else side, extra=2 * (side != "none"))
    expected = [logits(plain(family), row, inputs.decoder_input_ids) for row in hard]
    check(own, inputs, expected, prompts=[InputPrompt(own.embed(words))])


@for_each("encoder")
def test_words_around_a_mask(backbone, plain, maker, encoder):
    own, make = backbone(encoder), maker(encoder)
    words = make.words(4)
    hard = maker(encoder, 1).words(9)
    hard[4] = own.tokenizer.mask_token_id
    soft = hard.clone()
    hard[[2, 3, 5, 6]], soft[[2, 3, 5, 6]] = words, make.soft(4)
    expected = [logits(plain(encoder), hard, None)]
    check(own, make.batch(soft), expected, prompts=[InputPrompt(own.embed(words))])


@for_each("family")
def test_the_order_of_soft_tokens_is_the_templates(backbone, plain, maker, family):
    own, make = backbone(family), maker(family)
    words, hard = make.words(2), maker(family, 1).words(6)
    soft = hard.clone()
    hard[[1, 4, 5]] = words[[1, 0, 1]]
    soft[[1, 4, 5]] = make.soft(2)[[1, 0, 1]]
    inputs = make.batch(soft)
    expected = [logits(plain(family), hard, inputs.decoder_input_ids)]
    check(own, inputs, expected, prompts=[InputPrompt(own.embed(words))])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("lengths", [(4, 2), (15, 9)], ids=["short", "past the window"])
@for_each("baked")
def test_a_baked_head_acts_like_its_words(backbone, plain, maker, baked, side, lengths):
    own, make = backbone(baked), maker(baked)
    words = make.words(3)
    head, soft = torch.tensor([0, *words.tolist()]), torch.cat([torch.tensor([0]), make.soft(3)])
    tails = [maker(baked, 1 + b).words(length) for b, length in enumerate(lengths)]
    prefix = to_kv_prefix(own, InputPrompt(own.embed(words)), head=soft)
    assert prefix.shift_positions
    assert prefix.length == 4
    expected = [logits(plain(baked), torch.cat([head, t]), None)[4:] for t in tails]
    check(own, make.batch(*tails, side=side, extra=1), expected, prompts=[prefix])


@pytest.mark.parametrize("length", [4, 15])
@pytest.mark.parametrize("width", [4, 11])
@for_each("baked")
def test_a_prompt_baked_with_a_text_acts_as_before(backbone, maker, baked, length, width):
    """Also where the head alone is longer than the window."""
    own, make = backbone(baked), maker(baked)
    prompt = make.input_prompt(2)
    head = torch.cat([make.words(width - 2), make.soft(2)])
    tail = maker(baked, 1).words(length)
    prefix = to_kv_prefix(own, prompt, head=head)
    whole = forward(own, make.batch(torch.cat([head, tail])), prompts=[prompt])[0, width:]
    assert_close(forward(own, make.batch(tail), prompts=[prefix])[0], whole, **CLOSE)


@pytest.mark.parametrize("cache", get_args(CacheKind))
@for_each("baked")
def test_a_baked_head_writes_as_before(backbone, maker, baked, cache):
    """Beyond the window too: at every step the same tokens are outside of it."""
    own, make = backbone(baked), maker(baked)
    prompt, head = make.input_prompt(2), torch.cat([make.words(3), make.soft(2)])
    tails, decoding = [make.words(6), make.words(3)], Decoding(max_new_tokens=9, cache=cache)
    prefix = to_kv_prefix(own, prompt, head=head)
    baked_rows = make.batch(*tails, side="left")
    whole = make.batch(*(torch.cat([head, tail]) for tail in tails), side="left")
    assert generate(own, baked_rows, prompts=[prefix], decoding=decoding) == generate(
        own, whole, prompts=[prompt], decoding=decoding
    )


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("bert", "a prompt for bert cannot be baked: its tokens see what comes after them"),
        ("t5", "a prompt for t5 cannot be baked: its tokens see what comes after them"),
    ],
)
def test_what_cannot_be_baked_is_refused(backbone, maker, family, message):
    make = maker(family)
    with pytest.raises(PromptError) as error:
        to_kv_prefix(backbone(family), make.input_prompt(4), head=make.soft(4))
    assert message in str(error.value)


def test_windows_that_are_not_reported_are_not_guessed(backbone, maker):
    own, make = backbone("mistral"), maker("mistral")
    silent = replace(own, geometry=replace(own.geometry, reports_window=False))
    fact = "does not report which layers use the sliding window"
    with pytest.raises(PromptError, match=f"mistral cannot be baked: it {fact}. Run it "):
        to_kv_prefix(silent, make.input_prompt(4), head=make.soft(4))
    with pytest.raises(PromptError, match=f"positions shifted by 3, but mistral {fact}. Train"):
        forward(silent, make.batch(make.words(4)), prompts=[make.prefix(3, shift_positions=True)])


@for_each("baked")
def test_a_text_captured_stands_in_front(backbone, plain, maker, baked):
    """Keys and values of a text, with shifted positions, act like that text."""
    own, make = backbone(baked), maker(baked)
    text, row = make.words(3), maker(baked, 1).words(13)
    found = capture_keys_and_values(own, text)
    assert not found.shift_positions
    moved = KVPrefix(found.keys, found.values, found.sites, shift_positions=True)
    expected = [logits(plain(baked), torch.cat([text, row]), None)[3:]]
    check(own, make.batch(row), expected, prompts=[moved])


def test_keys_of_a_custom_attention_cannot_be_read(backbone, maker):
    with pytest.raises(
        PromptError, match="a custom attention implementation, so its keys and values cannot"
    ):
        capture_keys_and_values(backbone(REFUSED), maker(REFUSED).words(3))


@pytest.mark.parametrize("family", ["llama", "t5", "albert"])
def test_capturing_through_a_prompt_reads_what_the_prompt_makes(backbone, maker, family):
    """Soft tokens of real words have those words' keys and values."""
    own, make = backbone(family), maker(family)
    words = make.words(3)
    hard = capture_keys_and_values(own, words)
    soft = capture_keys_and_values(own, make.soft(3), prompt=InputPrompt(own.embed(words)))
    assert_close(soft.keys, hard.keys, **CLOSE)
    assert_close(soft.values, hard.values, **CLOSE)
