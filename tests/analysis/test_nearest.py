"""Nearest words, norms and distances, of prompts for which they are known."""

import pytest
import torch

from softprompt.analysis import (
    compute_layer_norms,
    compute_similarity,
    find_nearest_words,
    measure_distance_from_init,
    nearest,
)
from softprompt.errors import ArtifactError, PromptError
from softprompt.prompt import InputPrompt, KVPrefix


@pytest.mark.parametrize("family", ["llama", "gemma3", "albert", "t5"])
def test_real_words_are_their_own_nearest(family: str, backbone, maker, monkeypatch) -> None:
    monkeypatch.setattr(nearest, "_CHUNK", 100)  # so that the table has several parts
    model, ids = backbone(family), maker(family).words(5)
    rows = model.embed(ids)
    found = find_nearest_words(InputPrompt(3 * rows), model, count=3)
    table = model.embed(torch.arange(len(model.tokenizer)))
    usual = model.embed(torch.arange(model.geometry.vocab_size)).pow(2).sum(dim=1).mean().sqrt()
    for token, row, index in zip(found, rows, ids.tolist(), strict=True):
        assert token.words[0] == model.tokenizer.decode([index])
        assert token.cosines[0] == pytest.approx(1, abs=1e-5)
        assert token.norm == pytest.approx(float(3 * row.norm() / usual), rel=1e-4)
        cosines = torch.cosine_similarity(row[None], table).sort(descending=True)
        assert token.cosines == pytest.approx(cosines.values[:3].tolist(), abs=1e-5)
        assert list(token.words) == [
            model.tokenizer.decode([i]) for i in cosines.indices[:3].tolist()
        ]


def test_the_norms_of_a_prefix_are_computed_layer_by_layer() -> None:
    ones = torch.ones(2, 3, 4, 9)  # norm 3
    scale = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
    first, second = compute_layer_norms(KVPrefix(ones * scale, -5 * ones, (4, 7)))
    assert (first.layer, first.keys, first.values) == (4, pytest.approx(3), pytest.approx(15))
    assert (second.layer, second.keys, second.values) == (7, pytest.approx(6), pytest.approx(15))


def test_the_distance_from_the_start_is_measured_for_each_soft_token() -> None:
    start = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    change = torch.tensor([[0.0, 0.0], [0.0, 1.0], [-3.0, 4.0]])
    found = measure_distance_from_init(InputPrompt(start, 1), InputPrompt(start + change, 1))
    assert found.each == pytest.approx((0, 1 / 2, 5))
    assert found.overall == pytest.approx((26 / 30) ** 0.5)  # 1 + 25 of 25 + 4 + 1


def test_the_distance_of_a_prefix_is_measured_layer_by_layer() -> None:
    """Keys of 2, values of 1, of which the second layer's values go to 4."""
    keys, values = torch.full((2, 3, 4, 5), 2.0), torch.ones(2, 3, 4, 5)
    now = values.clone()
    now[1] = 4
    found = measure_distance_from_init(KVPrefix(keys, values, (0, 2)), KVPrefix(keys, now, (0, 2)))
    assert found.each == pytest.approx((0, (9 / 5) ** 0.5))
    assert found.overall == pytest.approx((9 / 10) ** 0.5)


def test_prompts_of_another_shape_have_no_distance() -> None:
    """Torch would broadcast one soft token over many, and compare keys of different layers."""
    one, many = InputPrompt(torch.ones(1, 2)), InputPrompt(torch.ones(3, 2))
    keys = torch.ones(1, 1, 1, 2)
    prefixes = [KVPrefix(keys, keys, (site,)) for site in (0, 1)]
    later = InputPrompt(torch.ones(1, 2), 1)
    for start, now in ((one, many), (many, one), (one, later), (one, prefixes[0]), prefixes):
        with pytest.raises(PromptError, match=r"has no distance from .* kind, shape or layers"):
            measure_distance_from_init(start, now)


def test_a_start_of_nothing_gives_numbers_that_json_can_say() -> None:
    nothing = InputPrompt(torch.zeros(1, 2))
    assert measure_distance_from_init(nothing, nothing).each == (0,)
    assert measure_distance_from_init(nothing, InputPrompt(torch.ones(1, 2))).overall < float("inf")


def test_a_model_or_its_artifact_will_do(model) -> None:
    own, prefix = model("causal words"), model("causal words, prefix")
    assert (
        find_nearest_words(own)
        == find_nearest_words(own.artifact, own.backbone)
        == find_nearest_words(own.prompt, own.backbone)
    )
    assert (
        compute_layer_norms(prefix)
        == compute_layer_norms(prefix.artifact)
        == compute_layer_norms(prefix.prompt)
    )
    assert compute_similarity([own, own.artifact]) == compute_similarity([own.prompt, own.prompt])


def test_what_a_prompt_does_not_have_is_refused(model) -> None:
    own, prefix = model("causal words"), model("causal words, prefix")
    with pytest.raises(PromptError, match=r"^KVPrefix\(.* is not among the input embedd"):
        find_nearest_words(prefix)
    with pytest.raises(PromptError, match="the words are those of a backbone, which is missing"):
        find_nearest_words(own.artifact)
    with pytest.raises(ArtifactError, match="the prompt was trained on 'llama'"):
        find_nearest_words(own.artifact, prefix.backbone)
    with pytest.raises(PromptError, match=r"^InputPrompt\(.* has no keys and values by layer"):
        compute_layer_norms(own)
    with pytest.raises(PromptError, match="'llama' and number 2 is a prompt for 'bert': vectors"):
        compute_similarity([own, model("masked words").artifact])


@pytest.mark.parametrize(
    "analyse", [compute_layer_norms, find_nearest_words, lambda x: compute_similarity([x, x])]
)
@pytest.mark.parametrize("value", ["runs/first", torch.ones(3, 4), None])
def test_what_has_no_prompt_is_refused(analyse, value) -> None:
    message = rf"^a {type(value).__name__} has no prompt\. Give a prompt, an artifact or a model\.$"
    with pytest.raises(PromptError, match=message):
        analyse(value)
