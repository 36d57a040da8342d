"""Free vectors: ids below zero, which are embedded as given vectors."""

import pytest
import torch
from torch.testing import assert_close

from softprompt.backbone.hooks import FreeVectors, use_free_vectors
from softprompt.injection import forward
from softprompt.prompt import InputPrompt
from support.parametrize import for_each


def mark(ids: torch.Tensor, at: list[int]) -> torch.Tensor:
    """The row, in which the tokens at some positions have numbers of their own."""
    marked = ids.clone()
    marked[at] = -1 - torch.arange(len(at))
    return marked


@for_each("shape", "family")
def test_the_vectors_of_tokens_are_these_tokens(backbone, maker, shape, family) -> None:
    """Behind any prompt, in rows of different lengths."""
    own, make = backbone(family), maker(family)
    rows = make.rows(shape, 9, 7)
    at = [[4, 6], [5]]
    tokens = torch.cat([row[places] for row, places in zip(rows, at, strict=True)])
    first, second = (mark(row, places) for row, places in zip(rows, at, strict=True))
    second[5] = -3
    with torch.no_grad():
        wanted = forward(own, make.batch(*rows), prompts=[make.prompt(shape)])
        with use_free_vectors(FreeVectors(own.embed(tokens), tokens)):
            found = forward(own, make.batch(first, second), prompts=[make.prompt(shape)])
        assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        # The vector of another token: the row of that token.
        vectors = own.embed(tokens)
        rows[1][5], vectors[2] = 77, own.embed(torch.tensor(77))
        wanted = forward(own, make.batch(*rows), prompts=[make.prompt(shape)])
        with use_free_vectors(FreeVectors(vectors, tokens)):
            found = forward(own, make.batch(first, second), prompts=[make.prompt(shape)])
    assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@for_each("family")
def test_they_are_the_soft_tokens_of_an_input_prompt(backbone, maker, family) -> None:
    """States and gradients, where soft tokens may stand for words."""
    own, make = backbone(family), maker(family)
    vectors = make.input_prompt(2).vectors.requires_grad_()
    row = make.words(8)
    soft = row.clone()
    soft[[3, 5]] = make.soft(2)
    wanted = forward(own, make.batch(soft), prompts=[InputPrompt(vectors)])
    (gradient,) = torch.autograd.grad(wanted.square().sum(), vectors)
    with use_free_vectors(FreeVectors(vectors, torch.tensor([7, 8]))):
        found = forward(own, make.batch(mark(row, [3, 5])), prompts=[None])
    (other,) = torch.autograd.grad(found.square().sum(), vectors)
    assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert_close(other, gradient, rtol=1e-4, atol=1e-4)


def test_without_them_an_id_below_zero_is_an_error(backbone, maker) -> None:
    own, make = backbone("llama"), maker("llama")
    with pytest.raises(IndexError):
        forward(own, make.batch(mark(make.words(5), [2])), prompts=[None])
