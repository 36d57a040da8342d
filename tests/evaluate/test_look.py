"""Nearest words and norms, on prompts of which both are known."""

import pytest
import torch

from softprompt.evaluate import look
from softprompt.evaluate.look import nearest, sizes
from softprompt.prompt import InputPrompt, KVPrefix


@pytest.mark.parametrize("family", ["llama", "gemma3", "albert", "t5"])
def test_real_words_are_their_own_nearest(family: str, backbone, maker, monkeypatch) -> None:
    monkeypatch.setattr(look, "_CHUNK", 100)  # so that the table has several parts
    model, ids = backbone(family), maker(family).words(5)
    rows = model.embed(ids)
    found = nearest(InputPrompt(3 * rows), model, count=3)
    table = model.embed(torch.arange(len(model.tokenizer)))
    usual = model.embed(torch.arange(model.geometry.vocabulary)).pow(2).sum(dim=1).mean().sqrt()
    for token, row, index in zip(found, rows, ids.tolist(), strict=True):
        assert token.words[0] == model.tokenizer.decode([index])
        assert token.cosines[0] == pytest.approx(1, abs=1e-5)
        assert token.norm == pytest.approx(float(3 * row.norm() / usual), rel=1e-4)
        cosines = torch.cosine_similarity(row[None], table).sort(descending=True)
        assert token.cosines == pytest.approx(cosines.values[:3].tolist(), abs=1e-5)
        assert list(token.words) == [
            model.tokenizer.decode([i]) for i in cosines.indices[:3].tolist()
        ]


def test_the_norms_of_a_prefix_are_told_layer_by_layer() -> None:
    ones = torch.ones(2, 3, 4, 9)  # norm 3
    scale = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
    first, second = sizes(KVPrefix(ones * scale, -5 * ones, (4, 7)))
    assert (first.layer, first.keys, first.values) == (4, pytest.approx(3), pytest.approx(15))
    assert (second.layer, second.keys, second.values) == (7, pytest.approx(6), pytest.approx(15))
