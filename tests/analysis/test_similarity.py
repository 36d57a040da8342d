"""Cosines of prompts by hand, and pictures that show the numbers."""

import pytest
import torch

from softprompt.analysis import (
    AttentionShare,
    Similarity,
    compute_similarity,
    draw_attention,
    draw_similarity,
)
from softprompt.errors import PromptError
from softprompt.prompt import InputPrompt, KVPrefix, Prompt


def vectors(*lines: tuple[float, ...], layer: int = 0) -> InputPrompt:
    return InputPrompt(torch.tensor(lines), layer)


def test_the_cosines_by_hand() -> None:
    """Means (1, 1) and (2, 0); nearest cosines 1, 0 from the first, 1, 1 from the second.

    Of the four pairs two have the cosine 1, and two 0.
    """
    one, other = vectors((2.0, 0.0), (0.0, 2.0)), vectors((1.0, 0.0), (3.0, 0.0))
    found = compute_similarity([one, other])
    assert found.pooled[0][1] == pytest.approx(0.5**0.5)
    assert found.matched[0][1] == pytest.approx((1 + 0 + 1 + 1) / 4)
    assert found.pairwise[0][1] == pytest.approx((1 + 1 + 0 + 0) / 4)
    assert found.pairwise[0][0] == pytest.approx((1 + 0 + 0 + 1) / 4)
    opposite = compute_similarity([one, vectors((-1.0, 0.0))])
    assert opposite.pooled[0][1] == pytest.approx(-(0.5**0.5))
    assert opposite.matched[0][1] == pytest.approx((-1 + 0 + 0) / 3)


@pytest.mark.parametrize("shape", ["input", "kv", "late"])
def test_what_must_hold_of_any(maker, shape: str) -> None:
    """Itself is 1, the order of two or of soft tokens and the scale are nothing, lengths differ."""
    own = maker("llama")
    one, other = own.prompt(shape, 4), own.prompt(shape, 7)
    # soft tokens stand in the last axis but one, in both kinds
    turned = one.map_tensors(lambda tensor: 3 * tensor.flip(-2))
    found = compute_similarity([one, other, turned])
    for matrix in (found.pooled, found.matched):
        table = torch.tensor(matrix)
        assert table.diagonal().tolist() == pytest.approx([1, 1, 1], abs=1e-5)
        assert torch.allclose(table, table.T, atol=1e-6)
        assert table[0, 2] == pytest.approx(1, abs=1e-5)
        assert table[0, 1] == pytest.approx(float(table[1, 2]), abs=1e-5)
        assert abs(float(table[0, 1])) < 0.9


def refusal(*prompts: Prompt) -> str:
    with pytest.raises(PromptError) as caught:
        compute_similarity(prompts)
    return str(caught.value)


def test_what_has_no_cosine_is_refused() -> None:
    one, wide, late = vectors((1.0, 2.0)), vectors((1.0, 2.0, 3.0)), vectors((1.0, 2.0), layer=3)
    keys = torch.ones(2, 1, 3, 5)
    assert refusal(one, one, wide) == (
        "prompts of different kinds have no cosine: the first is vectors of 2 among the input "
        "embeddings, number 3 is vectors of 3 among the input embeddings. Compare prompts of the "
        "same kind."
    )
    assert "vectors of 2 among the hidden states at layer 3" in refusal(one, late)
    prefix = KVPrefix(keys, keys, (0, 4))
    assert "keys and values of 1 heads of 5 on layers 0, 4" in refusal(one, prefix)
    assert "on layers 0, 3" in refusal(prefix, KVPrefix(keys, keys, (0, 3)))
    assert refusal(one) == "similarity is between prompts, but 1 was given. Give at least two."


def test_the_heat_map_shows_both_matrices() -> None:
    found = Similarity(
        ((1.0, 0.25), (0.25, 1.0)), ((1.0, -0.75), (-0.75, 1.0)), ((0.5, 0.1), (0.1, 0.5))
    )
    figure = draw_similarity(found, ["reviews $1", "tweets $2"])
    for axes, matrix in zip(figure.axes, (found.pooled, found.matched), strict=False):
        assert axes.images[0].get_array().tolist() == [[*line] for line in matrix]
        assert [text.get_text() for text in axes.texts] == [f"{v:.2f}" for m in matrix for v in m]
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert labels == ["reviews $1", "tweets $2"]
    figure.canvas.draw()


def site(number: int, **changes: object) -> AttentionShare:
    usual = {"part": "row", "share": 0.5, "at_readout": 0.6, "uniform": 0.1, "tokens": (0.3, 0.2)}
    return AttentionShare(site=number, **{**usual, **changes})


def test_attention_is_drawn_by_layer() -> None:
    found = [site(0), site(2, share=0.25, tokens=(0.0, 0.25)), site(4, at_readout=None)]
    figure = draw_attention({"reviews $1": found})
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert lines["all positions"] == [[0, 0.5], [2, 0.25], [4, 0.5]]
    assert lines["readout"] == [[0, 0.6], [2, 0.6]]
    assert lines["uniform attention"] == [[0, 0.1], [2, 0.1], [4, 0.1]]
    image = figure.axes[1].images[0].get_array()
    assert image.tolist() == [[0.3, 0.2], [0.0, 0.25], [0.3, 0.2]]
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["0", "2", "4"]
    figure.canvas.draw()


def test_a_decoders_sites_are_lines_of_their_own() -> None:
    parts = ("row", "row", "decoder", "cross", "decoder", "cross")
    sites = [site(at, part=part, at_readout=None) for at, part in enumerate(parts)]
    figure = draw_attention({"a": sites})
    lines = {line.get_label(): line.get_xdata().tolist() for line in figure.axes[0].lines}
    assert lines.pop("uniform attention") == [0, 1, 2, 3, 4, 5]
    assert lines == {
        "all positions": [0, 1],
        "all positions, decoder": [2, 4],
        "all positions, cross": [3, 5],
    }


def test_attention_of_several_is_drawn_together() -> None:
    figure = draw_attention({"a": [site(0), site(1)], "b $x$ $": [site(0, at_readout=None)]})
    names = [line.get_label() for line in figure.axes[0].lines]
    assert names == ["a", "a, readout", "b $x$ $"]
    figure.canvas.draw()
