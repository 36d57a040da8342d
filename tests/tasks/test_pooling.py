"""What a head pools is numpy's mean or maximum of the states of the row's own tokens."""

from itertools import product

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from softprompt.data import parse_template
from softprompt.injection.forward import forward
from softprompt.methods import METHODS, build_method
from softprompt.methods.initializers import FromRandom
from softprompt.tasks import Classify, build_task
from softprompt.tasks.base import pad_rows
from softprompt.tasks.pooling import (
    find_pooling_fault,
    list_poolings,
    mark_words,
    pool_states,
    resolve_pooling,
)
from support.tiny_models import CAUSAL, ENCODERS

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
POOLINGS = ("cls", "first", "mean", "max", "last")
TEMPLATES = {"front": "{soft:3}{text}", "middle": "it{soft:3} {text}", "hard": "{text}"}
LABELS = ("down", "up")
ROWS = [
    {"text": "the movie was great", "label": "up"},
    {"text": "it was a bad film and boring", "label": "down"},
    {"text": "good", "label": "up"},
]


@pytest.fixture
def reader(bound):
    def make(family: str, template: str, pooling: str):
        return bound(family, Classify(pooling=pooling), template, labels=LABELS)

    return make


def pool_by_hand(states: torch.Tensor, words: list[int], pooling: str, *, encoder: bool):
    """The readout of one row without padding, by numpy."""
    array = states.float().numpy()
    match pooling:
        case "mean":
            return array[words].mean(axis=0)
        case "max":
            return array[words].max(axis=0)
        case "last":
            return array[-1]
        case _:
            return array[0] if encoder else array[-1]


@pytest.fixture
def compute_wanted(plain):
    """The readout of transformers' states of a row."""

    def compute(family: str, ids: torch.Tensor, words: list[int], pooling: str):
        with torch.no_grad():
            states = plain(family).base_model(input_ids=ids[None])[0][0]
        return pool_by_hand(states, words, pooling, encoder=family in ENCODERS)

    return compute


@pytest.mark.parametrize("case", [*product(POOLINGS, TEMPLATES)], ids="-".join)
@pytest.mark.parametrize("family", [*ENCODERS, *CAUSAL])
def test_it_is_numpys_over_transformers_states(
    reader, compute_wanted, spelled, words, family, case
):
    """Soft tokens that are words: transformers runs the same row, and they are not pooled."""
    pooling, place = case
    task = reader(family, TEMPLATES[place], pooling)
    examples = [task.make_example(row) for row in ROWS]
    prompt = None if place == "hard" else words(family)
    with torch.no_grad():
        found = task.compute_states(examples, [prompt])[:, 0].float()
    for row, example, state in zip(ROWS, examples, found, strict=True):
        text = row["text"]
        parts = {"front": ["soft", text], "middle": ["it", "soft", f" {text}"], "hard": [text]}
        ids = spelled(family, *parts[place])
        own = [at for at, i in enumerate(example.variants[0].input_ids) if i < 366]
        assert len(own) == len(ids) - 3 * (place != "hard")
        wanted = compute_wanted(family, ids, own, pooling)
        assert_close(state.numpy(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["bert", "modernbert", "deberta_v2", "gpt2", "llama", "gemma3"])
def test_rows_of_a_batch_are_rows_alone(backbone, reader, settings, family, name, pooling):
    """With the prompt of every method."""
    own, is_soft = backbone(family), METHODS[name].prompt_kind == "input"
    task = reader(family, TEMPLATES["front" if is_soft else "hard"], pooling)
    length = 3 if is_soft else 0
    method = build_method(own, settings[name], soft_length=length, init=FromRandom(), seed=1).eval()
    with torch.no_grad():
        prompt = method()
        examples = [task.make_example(row) for row in ROWS]
        together = task.compute_states(examples, [prompt])[:, 0]
        for example, state in zip(examples, together, strict=True):
            (row,) = example.variants
            alone = forward(own, pad_rows(own, [row]), prompts=[prompt])[0]
            marked = [at for at, i in enumerate(row.input_ids) if i < own.geometry.vocab_size]
            wanted = pool_by_hand(alone, marked, pooling, encoder=False)
            assert_close(state.numpy(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "max", "last"])
@pytest.mark.parametrize("family", ["bert", "albert", "llama", "gpt_neox"])
def test_batch_mates_with_other_prompts_do_not_matter(reader, maker, rows, family, pooling):
    make = maker(family)
    hard, soft = reader(family, "{text}", pooling), reader(family, "{soft:3}{text}", pooling)
    prompts = [make.input_prompt(3), make.prefix(2), None, make.late_prompt(3)]
    examples = [soft.make_example(rows[0]), *(hard.make_example(row) for row in rows[1:])]
    examples.append(soft.make_example(rows[1]))
    together = hard.compute_scores(examples, prompts, rows=torch.arange(4))
    for example, prompt, scores in zip(examples, prompts, together, strict=True):
        assert_close(hard.compute_scores([example], [prompt])[0], scores, **CLOSE)


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_padding_on_either_side_is_not_pooled(backbone, maker, family, side, pooling):
    own, make = backbone(family), maker(family)
    rows = make.rows("input", 9, 6, 5)
    prompt = make.input_prompt(3)
    inputs = make.batch(*rows, side=side, extra=4)
    size = own.geometry.vocab_size
    with torch.no_grad():
        states = forward(own, inputs, prompts=[prompt])
        marked = mark_words(inputs.input_ids, inputs.attention_mask, vocab_size=size)
        states[inputs.attention_mask == 0] = float("nan")  # whatever a backbone leaves there
        found = pool_states(states, marked, pooling=pooling)
        for row, state in zip(rows, found, strict=True):
            alone = forward(own, make.batch(row), prompts=[prompt])[0]
            words = [at for at, i in enumerate(row.tolist()) if i < size]
            assert len(words) == len(row) - 3
            wanted = pool_by_hand(alone, words, pooling, encoder=False)
            assert_close(state.numpy(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_states_in_bf16_are_pooled_in_fp32(pooling):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 200, 4, generator=generator).bfloat16()
    words = torch.ones(2, 200, dtype=torch.bool)
    found = pool_states(states, words, pooling=pooling)
    assert found.dtype == torch.float32
    array = states.float().numpy()
    wanted = array.mean(axis=1) if pooling == "mean" else array.max(axis=1)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("family", ["bert", "modernbert", "llama", "gpt2"])
def test_prompt_and_head_have_a_gradient(reader, maker, rows, family, pooling):
    task = reader(family, "{soft:3}{text}", pooling)
    prompt = maker(family).input_prompt(3)
    prompt.vectors.requires_grad_()
    task.compute_loss([task.make_example(row) for row in rows], [prompt]).total.backward()
    assert all(parameter.grad.any() for parameter in task.head.parameters())
    assert prompt.vectors.grad.any(dim=1).all()


def test_a_row_without_words_is_pooled_whole(backbone, maker):
    """Its mean is that of its soft tokens, and a number."""
    ids = maker("llama").soft(3)[None]
    mask = torch.ones_like(ids)
    marked = mark_words(ids, mask, vocab_size=backbone("llama").geometry.vocab_size)
    assert marked.tolist() == [[True, True, True]]
    states = torch.tensor([[[1.0], [2.0], [6.0]]])
    assert pool_states(states, marked, pooling="mean").item() == 3.0


FAULTS = {
    ("cls", "causal", "{soft:3}{text}"): 'Set task.pooling to "last" or "mean", or leave it out.',
    ("first", "causal", "{text}"): "sees nothing of the row",
    ("mean", "causal", "{text} is{soft:3}"): "Put the soft tokens first in task.template",
    ("max", "causal", "{text}{soft:3}"): 'or set task.pooling = "last"',
    ("mean", "causal", "{soft:3}{text}"): None,
    ("mean", "causal", "{text}{soft:3} it was"): None,
    ("last", "causal", "{text}{soft:3}"): None,
    ("cls", "encoder", "{text}{soft:3}"): None,
    ("mean", "encoder", "{text}{soft:3}"): None,
}


@pytest.mark.parametrize("case", FAULTS, ids=str)
def test_what_a_head_could_not_learn_from_is_a_fault(case):
    pooling, architecture, template = case
    fault, wanted = (
        find_pooling_fault(pooling, architecture=architecture, template=parse_template(template)),
        FAULTS[case],
    )
    if wanted is None:
        assert fault is None
    else:
        assert f'task.pooling = "{pooling}"' in fault
        assert wanted in fault


def test_soft_tokens_behind_the_words_do_not_change_their_mean(backbone, maker, rows):
    """The reason for the fault: in a causal backbone nothing could be learned."""
    task = build_task(
        Classify(pooling="mean"), backbone("llama"), template="{text}{soft:3}", labels=LABELS
    )
    examples = [task.make_example(row) for row in rows]
    states = [task.compute_states(examples, [maker("llama", n).input_prompt(3)]) for n in (1, 2)]
    assert_close(*states)


def test_the_choices_begin_with_the_likeliest_one():
    front, behind = parse_template("{soft:3}{text}"), parse_template("{text}{soft:3} it was")
    assert list_poolings("encoder", front) == ("mean", "cls", "max", "last")
    assert list_poolings("causal", front) == ("last", "mean", "max")
    assert list_poolings("causal", parse_template("{text}")) == ("last", "mean", "max")
    assert list_poolings("causal", behind) == ("last",)


@pytest.mark.parametrize("named", ["cls", "first", "auto"])
def test_earlier_artifacts_of_causal_backbones_read_the_last_token(named):
    assert resolve_pooling(named, "causal") == "last"
    assert resolve_pooling(named, "encoder") == ("cls" if named == "auto" else named)
