import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softprompt.data.collate import collate, group_by_length
from softprompt.data.rendering import RenderedRow
from softprompt.errors import DataError

LENGTHS = st.lists(st.integers(0, 60), max_size=200)


def tokenised(*ids):
    return RenderedRow(ids, tuple(i % 2 for i in ids), (), truncated=False)


def padded(batches, lengths):
    return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)


def skewed(count=2000):
    draw = random.Random(7)  # noqa: S311, no secret
    return [1 + int(draw.expovariate(1 / 20)) for _ in range(count)]


@pytest.mark.parametrize("side", ["left", "right"])
@given(rows=st.lists(st.lists(st.integers(0, 99)), min_size=1, max_size=8), pad=st.integers(0, 9))
def test_the_mask_gives_the_rows_back(side, rows, pad):
    batch = collate([tokenised(*ids) for ids in rows], range(5, 5 + len(rows)), pad=pad, side=side)
    assert batch.input_ids.shape == (len(rows), max(map(len, rows)))
    assert (
        batch.input_ids.dtype
        == batch.attention_mask.dtype
        == batch.token_type_ids.dtype
        == torch.long
    )
    for index, ids in enumerate(rows):
        real = batch.attention_mask[index].bool()
        assert batch.input_ids[index][real].tolist() == ids
        assert batch.token_type_ids[index][real].tolist() == [i % 2 for i in ids]
        assert set(batch.input_ids[index][~real].tolist()) <= {pad}
        assert not batch.token_type_ids[index][~real].any()
    assert batch.rows.tolist() == list(range(5, 5 + len(rows)))


def test_the_side_of_the_padding():
    rows = [tokenised(1, 2, 3), tokenised(4)]
    assert collate(rows, [0, 1], pad=9, side="left").input_ids.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert collate(rows, [0, 1], pad=9, side="right").input_ids.tolist() == [[1, 2, 3], [4, 9, 9]]


def test_padding_agrees_with_the_library(bert):
    texts = ["a good film", "bad", "the plot is thin and nobody is worth a word"]
    encoded = bert(texts, padding=True, return_tensors="pt")
    rows = [
        RenderedRow(tuple(i), (0,) * len(i), (), truncated=False) for i in bert(texts)["input_ids"]
    ]
    batch = collate(rows, [0, 1, 2], pad=bert.pad_token_id, side=bert.padding_side)
    assert torch.equal(batch.input_ids, encoded["input_ids"])
    assert torch.equal(batch.attention_mask, encoded["attention_mask"])
    assert torch.equal(batch.token_type_ids, encoded["token_type_ids"])


def test_a_batch_moves_whole():
    batch = collate([tokenised(1, 2)], [3], pad=0, side="left").to("meta")
    devices = {
        t.device.type
        for t in (batch.input_ids, batch.attention_mask, batch.token_type_ids, batch.rows)
    }
    assert devices == {"meta"}


@pytest.mark.parametrize(("rows", "indices"), [([], []), ([tokenised(1)], [0, 1])])
def test_rows_and_indices_must_agree(rows, indices):
    message = f"{len(rows)} rows and {len(indices)} indices do not match"
    with pytest.raises(DataError, match=message):
        collate(rows, indices, pad=0, side="left")


@given(
    lengths=LENGTHS,
    size=st.integers(1, 20),
    seed=st.none() | st.integers(0, 5),
    max_tokens=st.none() | st.integers(1, 200),
    megabatch_factor=st.integers(1, 5),
)
def test_every_row_is_in_one_batch_within_the_limits(
    lengths, size, seed, max_tokens, megabatch_factor
):
    batches = group_by_length(
        lengths, size=size, seed=seed, max_tokens=max_tokens, megabatch_factor=megabatch_factor
    )
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= size
        if max_tokens is not None and len(batch) > 1:
            assert len(batch) * max(lengths[i] for i in batch) <= max_tokens
    assert batches == group_by_length(
        lengths, size=size, seed=seed, max_tokens=max_tokens, megabatch_factor=megabatch_factor
    )


def test_a_row_beyond_the_budget_is_alone():
    assert group_by_length([5, 50, 5], size=8, seed=None, max_tokens=20) == [[1], [0, 2]]


def test_evaluation_begins_with_the_longest():
    batches = group_by_length([3, 9, 1, 9, 4], size=2, seed=None)
    assert batches == [[1, 3], [4, 0], [2]]


def test_padding_is_less_than_with_random_batches():
    lengths = skewed()
    order = list(range(len(lengths)))
    random.Random(0).shuffle(order)  # noqa: S311, no secret
    at_random = [order[i : i + 16] for i in range(0, len(order), 16)]
    waste = padded(group_by_length(lengths, size=16, seed=0), lengths) / sum(lengths) - 1
    assert waste < 0.1
    assert waste < 0.1 * (padded(at_random, lengths) / sum(lengths) - 1)


def test_a_seed_changes_the_batches_and_no_global_generator():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    lengths = skewed(300)
    first, second = (group_by_length(lengths, size=8, seed=seed) for seed in (0, 1))
    assert first != second
    assert torch.equal(before, torch.get_rng_state())


def test_batches_do_not_come_in_order_of_length():
    """Sorted batches would train on long rows first: neighbours must differ both ways."""
    lengths = skewed()
    widths = [
        max(lengths[i] for i in b)
        for b in group_by_length(lengths, size=16, seed=0, megabatch_factor=125)
    ]
    rising = sum(a < b for a, b in itertools.pairwise(widths))
    assert 0.35 < rising / len(widths) < 0.65


@pytest.mark.parametrize("name", ["size", "max_tokens", "megabatch_factor"])
def test_a_limit_of_nothing_is_refused(name):
    limits = {"size": 4, "seed": 0, name: 0}
    with pytest.raises(DataError, match=f"batches with {name} = 0 are not possible"):
        group_by_length([1, 2], **limits)
