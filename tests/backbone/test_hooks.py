"""Hooks act in their own context only: not in other threads, and not after it has ended."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest
import torch

from softprompt.backbone import make_example_inputs
from softprompt.injection import forward, inject_prompts


def test_threads_do_not_affect_each_other(backbone, maker):
    """Two prompts and none, each in its own thread, all in their context at the same time."""
    own, make = backbone("llama"), maker("llama")
    prompts = [make.prefix(3), maker("llama", 1).prefix(2), None]
    inputs = make.batch(make.words(6))
    alone = [forward(own, inputs, prompts=[prompt]) for prompt in prompts]
    together = Barrier(len(prompts))

    def work(prompt) -> list[torch.Tensor]:
        with torch.no_grad(), inject_prompts(own, inputs, prompts=[prompt]):
            together.wait(timeout=30)
            found = [own.compute_hidden_states(inputs) for _ in range(5)]
            together.wait(timeout=30)
        return found

    with ThreadPoolExecutor(len(prompts)) as pool:
        for found, wanted in zip(pool.map(work, prompts), alone, strict=True):
            assert all(torch.allclose(states, wanted, atol=1e-5) for states in found)


def test_the_inner_context_replaces_the_outer(backbone, maker):
    own, make = backbone("gpt2"), maker("gpt2")
    outer, inner = make.prefix(2), maker("gpt2", 1).prefix(3)
    inputs = make.batch(make.words(6))
    with torch.no_grad(), inject_prompts(own, inputs, prompts=[outer]):
        before = own.compute_hidden_states(inputs)
        with inject_prompts(own, inputs, prompts=[inner]):
            within = own.compute_hidden_states(inputs)
        after = own.compute_hidden_states(inputs)
    assert torch.equal(before, after)
    assert torch.equal(within, forward(own, inputs, prompts=[inner]))


def test_an_error_closes_the_context(backbone, maker):
    own, inputs = backbone("gpt2"), make_example_inputs(backbone("gpt2"))
    bare = own.compute_hidden_states(inputs)
    too_long = replace(
        inputs,
        input_ids=inputs.input_ids.repeat(1, 99),
        attention_mask=inputs.attention_mask.repeat(1, 99),
    )
    with pytest.raises(IndexError), inject_prompts(own, inputs, prompts=[maker("gpt2").prefix(2)]):
        own.compute_hidden_states(too_long)
    assert torch.equal(own.compute_hidden_states(inputs), bare)
