"""Guarantees 8 and 9: only its own prompt affects a row; without one it is the bare backbone."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from softprompt.backbone import make_example_inputs
from softprompt.errors import PromptError
from softprompt.injection import forward, inject_prompts
from softprompt.prompt import InputPrompt, KVPrefix
from support.parametrize import for_each
from support.tiny_models import REFUSED

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def cases(make) -> list[tuple[object, torch.Tensor]]:
    """Prompts of all kinds and lengths, each with a row that fits it."""
    found = [
        (make.input_prompt(3), make.rows("input", 7, length=3)[0]),
        (None, make.words(6)),
        (make.input_prompt(1), make.rows("input", 5, length=1)[0]),
    ]
    sites = make.backbone.geometry.num_attention_sites
    if sites:
        found += [
            (make.prefix(4), make.rows("kv", 4)[0]),
            (make.prefix(2, layers=(sites - 1,)), make.rows("kv", 6)[0]),
            (make.prefix(1, layers=(0,)), make.rows("kv", 7)[0]),
            (make.late_prompt(2), make.rows("input", 6, length=2)[0]),
        ]
    if make.backbone.geometry.supports_position_shift:
        own = make.backbone.geometry.self_attention_sites
        found.append((make.prefix(2, shift_positions=True, layers=own), make.rows("kv", 5)[0]))
    return found


@for_each("side", "family")
def test_a_batch_of_different_prompts_is_each_row_alone(backbone, maker, family, side):
    own, make = backbone(family), maker(family)
    prompts, rows = zip(*cases(make), strict=True)
    # Each prompt for its own row and, in another order, once more.
    order = [*range(len(rows)), *reversed(range(len(rows)))]
    inputs = make.batch(*(rows[i] for i in order), side="right" if side == "none" else side)
    together = forward(own, inputs, prompts=prompts, rows=torch.tensor(order))
    for b, i in enumerate(order):
        alone = forward(own, make.batch(rows[i]), prompts=[prompts[i]])[0]
        real = together[b] if make.decodes else together[b][inputs.attention_mask[b].bool()]
        assert_close(real, alone, **CLOSE)


@for_each("family")
def test_prompts_of_a_batch_differ(backbone, maker, family):
    """The test above would pass if prompts had no effect: they have one."""
    own, make = backbone(family), maker(family)
    for prompt, row in cases(make):
        if prompt is not None:
            prompted = forward(own, make.batch(row), prompts=[prompt])
            plain = row.where(row < own.geometry.vocab_size, 7)
            bare = forward(own, make.batch(plain), prompts=[None])
            assert (prompted - bare).abs().max() > 1e-2


def hidden(plain, inputs) -> torch.Tensor:
    """The last states as transformers' own model has them."""
    given = {"input_ids": inputs.input_ids, "attention_mask": inputs.attention_mask}
    with torch.no_grad():
        if inputs.decoder_input_ids is not None:
            given |= {"decoder_input_ids": inputs.decoder_input_ids, "output_hidden_states": True}
            return plain(**given).decoder_hidden_states[-1]
        return plain.base_model(**given)[0]


@for_each("family")
def test_no_prompt_is_the_bare_model_exactly(backbone, plain, maker, family):
    own, make = backbone(family), maker(family)
    inputs = make.batch(make.words(9), maker(family, 1).words(5))
    real = inputs.attention_mask.bool() if inputs.decoder_input_ids is None else ...
    bare = forward(own, inputs, prompts=[None])
    assert torch.equal(bare[real], hidden(plain(family), inputs)[real])


@for_each("family")
def test_an_input_prompt_leaves_its_neighbours_exactly_alone(backbone, plain, maker, family):
    own, make = backbone(family), maker(family)
    inputs = make.batch(make.rows("input", 9)[0], maker(family, 1).words(9))
    rows = torch.tensor([0, 1])
    states = forward(own, inputs, prompts=[make.input_prompt(3), None], rows=rows)
    bare = make.batch(make.words(9), maker(family, 1).words(9))
    assert torch.equal(states[1], hidden(plain(family), bare)[1])


@for_each("kv")
def test_a_masked_prefix_is_the_bare_model(backbone, plain, maker, kv):
    """In a mixed batch the row without a prompt has the other rows' columns, masked."""
    own, make = backbone(kv), maker(kv)
    inputs = make.batch(make.words(7), maker(kv, 1).words(7))
    prompts = [make.prefix(3), None, make.prefix(5, layers=(1,))]
    states = forward(own, inputs, prompts=prompts, rows=torch.tensor([0, 1]))
    # The sums have additional zeros, so they may differ by a rounding of the last bit.
    assert_close(states[1], hidden(plain(kv), inputs)[1], rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_a_row_cannot_look_beyond_its_own_prompt(backbone, maker, family):
    """After a prompt's last vector comes the first one of the next prompt."""
    own, make = backbone(family), maker(family)
    short, long = make.input_prompt(2), make.input_prompt(4)
    row = make.rows("input", 6, length=3)[0]
    inputs = make.batch(make.rows("input", 6, length=2)[0], row)
    with pytest.raises(PromptError) as error:
        forward(own, inputs, prompts=[short, long], rows=torch.tensor([0, 0]))
    assert str(error.value) == (
        "row 1 has soft token 2, but its prompt has 2 soft tokens. Render it with the "
        "prompt's own template."
    )


@pytest.mark.parametrize("shape", ["kv", "none"])
def test_soft_tokens_without_vectors_are_refused(backbone, maker, shape):
    own, make = backbone("llama"), maker("llama")
    prompt = make.prefix(4) if shape == "kv" else None
    with pytest.raises(PromptError, match="has soft token 2, but its prompt has 0 soft"):
        forward(own, make.batch(*make.rows("input", 6)), prompts=[prompt])


@pytest.mark.parametrize("rows", [[0, 2], [-1, 0], [0]])
def test_rows_must_name_prompts(backbone, maker, rows):
    own, make = backbone("gpt2"), maker("gpt2")
    inputs = make.batch(make.words(4), make.words(4))
    with pytest.raises(PromptError) as error:
        forward(own, inputs, prompts=[None, make.prefix(1)], rows=torch.tensor(rows))
    assert str(error.value) == (
        f"`rows` must name one of the 2 prompts for each of the 2 rows; it is {rows}."
    )


def test_several_prompts_need_rows(backbone, maker):
    own, make = backbone("gpt2"), maker("gpt2")
    with pytest.raises(PromptError, match="2 prompts need `rows`, the index of each row's prompt"):
        forward(own, make.batch(make.words(4)), prompts=[None, make.prefix(1)])


def test_the_hook_is_removed_after_the_context(backbone, maker):
    own, make = backbone("llama"), maker("llama")
    inputs = make.batch(make.words(5))
    bare = own.compute_hidden_states(inputs)
    with inject_prompts(own, inputs, prompts=[make.prefix(3)]):
        assert not torch.allclose(own.compute_hidden_states(inputs), bare, atol=1e-2)
    assert torch.equal(own.compute_hidden_states(inputs), bare)


class TestFit:
    """A prompt that was made for another backbone is refused, with both shapes named."""

    def message(self, own, prompt) -> str:
        with pytest.raises(PromptError) as error:
            forward(own, make_example_inputs(own), prompts=[prompt])
        return str(error.value)

    def test_width(self, backbone):
        assert self.message(backbone("albert"), InputPrompt(torch.zeros(2, 32))) == (
            "the prompt's vectors are 32 wide, but albert embeds tokens in 16. Use the backbone "
            "that it was trained for."
        )

    def test_custom_attention(self, backbone):
        prefix = KVPrefix(torch.zeros(1, 4, 2, 8), torch.zeros(1, 4, 2, 8), (0,))
        message = self.message(backbone(REFUSED), prefix)
        assert (
            "uses a custom attention implementation, so it accepts no key/value prefixes" in message
        )
        assert "prompt-tuning or p-tuning" in message

    def test_heads(self, backbone):
        prefix = KVPrefix(torch.zeros(2, 4, 3, 8), torch.zeros(2, 4, 3, 8), (0, 1))
        assert self.message(backbone("llama"), prefix) == (
            "the prefix has 4 heads of 8 on layers 0 to 1, but llama has 2 of 10 on layers 0 to 1. "
            "Use the backbone that the prompt was trained for."
        )

    def test_layers(self, backbone):
        prefix = KVPrefix(torch.zeros(2, 2, 3, 10), torch.zeros(2, 2, 3, 10), (1, 5))
        assert "on layers 1 to 5, but llama has 2 of 10 on layers 0 to 1" in self.message(
            backbone("llama"), prefix
        )

    @pytest.mark.parametrize("family", ["t5", "bart"])
    def test_positions_of_a_decoder(self, backbone, maker, family):
        """A prefix with positions has them among the decoder's tokens only."""
        message = self.message(backbone(family), maker(family).prefix(3, shift_positions=True))
        assert message == (
            "the prefix was trained with positions shifted by 3 and acts on the layers 0, 1, 2, 3, "
            f"4, 5, but in {family} only the decoder's self-attention can shift them, on the "
            "layers 2, 4. Leave the others out, or train a prefix for it with softprompt instead."
        )

    def test_positions_that_cannot_be_shifted(self, backbone, maker):
        """The shift is not ignored without an error."""
        own = backbone("bart")
        fixed = replace(own, geometry=replace(own.geometry, supports_position_shift=False))
        prefix = maker("bart").prefix(3, shift_positions=True, layers=(2, 4))
        assert self.message(fixed, prefix) == (
            "the prefix was trained with positions shifted by 3, but bart takes no position ids, "
            "so a row's positions cannot be shifted. Train a prefix for it with softprompt instead."
        )
