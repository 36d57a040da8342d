"""Prefix tuning: the MLP by hand, and the order of keys and values in its output."""

from torch.testing import assert_close

from softprompt.methods import PrefixTuning, build_method
from softprompt.methods.initializers import FromRandom
from support.parametrize import for_each


def made(backbone, **settings):
    return build_method(
        backbone, PrefixTuning(**settings), soft_length=0, init=FromRandom(), seed=0
    )


@for_each("kv")
def test_the_mlp_by_hand_and_its_layout(backbone, kv):
    """Of a token's row: the first layer's keys, head by head, its values; then the next layer's."""
    own = backbone(kv)
    g = own.geometry
    method = made(own, length=5, encoder_hidden_size=7)
    state = method.state_dict()
    hidden = (state["embedding"] @ state["mlp.0.weight"].T + state["mlp.0.bias"]).tanh()
    flat = hidden @ state["mlp.2.weight"].T + state["mlp.2.bias"]
    step = g.num_kv_heads * g.head_dim
    prefix = method()
    assert prefix.keys.shape == (g.num_attention_sites, g.num_kv_heads, 5, g.head_dim)
    for layer in range(g.num_attention_sites):
        for which, found in enumerate((prefix.keys, prefix.values)):
            begin = (2 * layer + which) * step
            for head in range(g.num_kv_heads):
                at = begin + head * g.head_dim
                assert_close(found[layer, head], flat[:, at : at + g.head_dim])


def test_the_number_of_parameters(backbone):
    """``P·H + (H·m + m) + (m·2LND + 2LND)``."""
    method = made(backbone("llama"), length=10, encoder_hidden_size=7)
    outputs = 2 * 2 * 2 * 10
    expected = 10 * 32 + (32 * 7 + 7) + (7 * outputs + outputs)
    assert sum(p.numel() for p in method.parameters()) == expected


def test_some_layers_only(backbone):
    method = made(backbone("llama"), length=3, encoder_hidden_size=7, layers="1:")
    prefix = method()
    assert prefix.sites == (1,)
    assert prefix.keys.shape == (1, 2, 3, 10)
    assert not prefix.shift_positions


def test_the_papers_defaults():
    assert (PrefixTuning().length, PrefixTuning().encoder_hidden_size) == (10, 512)
