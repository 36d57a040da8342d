"""The two prompt values: their shapes are checked, and copies share nothing."""

import pytest
import torch
from jaxtyping import TypeCheckError

from softprompt.errors import PromptError
from softprompt.prompt import InputPrompt, KVPrefix, detach_copy, to


def prefix(**more: object) -> KVPrefix:
    keys, values = torch.randn(2, 2, 4, 3, 8)
    return KVPrefix(keys.requires_grad_(), values, (0, 5), **more)


def test_length_is_the_number_of_soft_tokens():
    assert InputPrompt(torch.zeros(7, 4)).length == 7
    assert prefix().length == 3


def test_tensors_by_name():
    given = prefix()
    assert given.to_tensors() == {"keys": given.keys, "values": given.values}
    vectors = torch.zeros(7, 4)
    assert InputPrompt(vectors).to_tensors() == {"vectors": vectors}


@pytest.mark.parametrize("sites", [(0,), (0, 1, 2), ()])
def test_one_slice_per_site(sites):
    keys = torch.zeros(2, 4, 3, 8)
    with pytest.raises(PromptError) as error:
        KVPrefix(keys, keys, sites)
    assert str(error.value) == (
        f"keys (2, 4, 3, 8), values (2, 4, 3, 8) and {len(sites)} sites do not agree: keys and "
        "values must both be [L,N,P,D] with one slice per site."
    )


def test_shapes_are_checked_in_the_tests():
    """Keys against values, and the number of axes: by jaxtyping, which only tests switch on."""
    with pytest.raises((PromptError, TypeCheckError)):
        KVPrefix(torch.zeros(2, 4, 3, 8), torch.zeros(2, 4, 5, 8), (0, 1))
    with pytest.raises(TypeCheckError):
        InputPrompt(torch.zeros(2, 4, 3))


def test_a_cast_keeps_the_graph_and_the_rest():
    given = prefix(shift_positions=True)
    low = to(given, dtype=torch.bfloat16)
    assert (low.keys.dtype, low.values.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (low.sites, low.shift_positions) == ((0, 5), True)
    low.keys.float().sum().backward()
    assert torch.equal(given.keys.grad, torch.ones_like(given.keys))


def test_a_cast_to_the_same_dtype_copies_nothing():
    vectors = torch.zeros(2, 4)
    assert to(InputPrompt(vectors), dtype=torch.float32).vectors is vectors


def test_a_detached_copy_shares_nothing():
    given = prefix()
    copy = detach_copy(given)
    assert torch.equal(copy.keys, given.keys)
    assert not copy.keys.requires_grad
    with torch.no_grad():
        given.keys.zero_()
    assert copy.keys.any()
    assert copy.sites == given.sites


def test_prompts_are_immutable():
    with pytest.raises(AttributeError):
        prefix().sites = (1, 2)


def test_prompts_are_compared_by_identity():
    """Because comparing tensors does not give one answer."""
    first, second = prefix(), prefix()
    assert len({first, second, first}) == 2
    assert first == first  # noqa: PLR0124
    assert first != second
