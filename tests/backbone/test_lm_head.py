"""The head alone gives the logits of the whole model."""

import pytest
import torch
from torch.testing import assert_close

from softprompt.injection import forward
from support.parametrize import for_each


@pytest.fixture
def head_and_logits(backbone, plain, maker, family):
    """The head, the last hidden states of two rows, and the model's own logits."""
    inputs = maker(family).batch(maker(family).words(9), maker(family, 1).words(9))
    given = (
        {} if inputs.decoder_input_ids is None else {"decoder_input_ids": inputs.decoder_input_ids}
    )
    with torch.no_grad():
        logits = plain(family)(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, **given
        ).logits
    return backbone(family).lm_head, forward(backbone(family), inputs, prompts=[None]), logits


@for_each("family")
def test_logits_equal_the_models_own(head_and_logits, family):
    head, states, logits = head_and_logits
    assert_close(head(states), logits, rtol=1e-5, atol=1e-5)
    assert_close(head(states[1, 2]), logits[1, 2], rtol=1e-5, atol=1e-5)


@for_each("family")
def test_logits_of_some_tokens(head_and_logits, family):
    head, states, logits = head_and_logits
    tokens = torch.tensor([300, 7, 41])
    assert_close(head.score_tokens(states, tokens), logits[..., tokens], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_a_head_of_one_linear_layer_is_recognized(backbone, family):
    """So that label words cost a few rows, not the vocabulary."""
    assert backbone(family).lm_head.linear is not None


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "electra"])
def test_a_head_with_a_transform_is_not_taken_for_one_layer(backbone, family):
    assert backbone(family).lm_head.linear is None


@pytest.mark.parametrize("family", ["gemma3", "bert"])
def test_label_words_in_bf16_are_near_fp32(backbone, maker, family):
    inputs = maker(family).batch(maker(family).words(9))
    tokens = torch.tensor([7, 41])
    low, high = (backbone(family, d) for d in (torch.bfloat16, torch.float32))
    states = forward(low, inputs, prompts=[None])
    logits = low.lm_head.score_tokens(states, tokens)
    assert_close(
        logits.float(), high.lm_head.score_tokens(states.float(), tokens), rtol=0.02, atol=0.05
    )


@for_each("family")
def test_the_head_shares_the_models_parameters(backbone, family):
    own = backbone(family)
    mine = {id(p) for p in own.model.parameters()}
    assert all(id(p) in mine for p in own.lm_head.parameters())
    assert not any(p.requires_grad for p in own.lm_head.parameters())


def test_the_last_positions_reach_the_head_dense_in_memory(backbone) -> None:
    """Otherwise torch multiplies them on CPUs without its fast kernels."""
    own, seen = backbone("llama"), list[tuple[tuple[int, ...], tuple[int, ...]]]()
    layer = own.model.get_output_embeddings()

    def record(_layer, arguments) -> None:
        seen.append((arguments[0].stride(), arguments[0].contiguous().stride()))

    handle = layer.register_forward_pre_hook(record)
    try:
        for rows in (1, 3):
            ids = torch.full((rows, 5), 7)
            whole = own.model(input_ids=ids).logits
            last = own.model(input_ids=ids, logits_to_keep=1).logits
            assert torch.allclose(last, whole[:, -1:], atol=1e-6)
    finally:
        handle.remove()
    width = own.geometry.hidden_size
    assert [stride for stride, _ in seen][1::2] == [(width, width, 1)] * 2
