"""The order of rows: every row once per epoch, in batches within size and token budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt.train.config import ResolvedTraining
from softprompt.train.sampler import BatchSampler

lengths = st.lists(st.integers(1, 30), min_size=1, max_size=60)


@given(lengths, st.integers(1, 9), st.none() | st.integers(1, 60), st.integers(0, 3))
def test_every_row_once_within_the_limits(rows, size, budget, epoch):
    order = BatchSampler(
        rows, ResolvedTraining(batch_size=size, max_tokens_per_batch=budget, seed=3)
    )
    batches = order.draw_batches(epoch)
    assert sorted(i for batch in batches for i in batch) == [*range(len(rows))]
    for batch in batches:
        assert len(batch) <= size
        if budget is not None and len(batch) > 1:
            assert len(batch) * max(rows[i] for i in batch) <= budget


@given(lengths, st.integers(1, 9), st.none() | st.integers(1, 60), st.none() | st.integers(1, 40))
def test_the_number_of_steps_is_that_of_the_batches(rows, size, budget, most):
    training = ResolvedTraining(
        batch_size=size, max_tokens_per_batch=budget, epochs=3, max_steps=most
    )
    order = BatchSampler(rows, training)
    every = sum(len(order.draw_batches(epoch)) for epoch in range(3))
    assert order.count_steps() == (every if most is None else min(every, most))


def test_epochs_that_are_not_run_are_not_counted():
    """A billion of them with a token budget were counted for hours."""
    training = ResolvedTraining(epochs=10**9, max_steps=7, max_tokens_per_batch=20)
    assert BatchSampler([5] * 40, training).count_steps() == 7


def test_each_epoch_and_each_seed_has_another_order():
    rows = [5] * 40
    found = [
        str(BatchSampler(rows, ResolvedTraining(batch_size=4, seed=seed)).draw_batches(epoch))
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(found)) == 9
    again = BatchSampler(rows, ResolvedTraining(batch_size=4, seed=0)).draw_batches(0)
    assert str(again) == found[0]


def test_a_run_stays_within_its_token_budget(parts, trainer_of):
    trainer = trainer_of(parts(sizes=(11,), max_tokens_per_batch=24))
    steps = [e for e in trainer.run() if type(e).__name__ == "Step"]
    assert len(steps) == trainer.total
    assert sum(e.rows for e in steps) == 2 * 11
    assert max(e.rows for e in steps) <= 4
    widest = max(trainer.sampler.lengths)
    assert 4 * widest > 24, "the token budget limits the batches"


@pytest.mark.parametrize("key", ["epochs", "batch_size"])
def test_epochs_and_batch_size_decide_the_number_of_steps(parts, trainer_of, key):
    trainer = trainer_of(parts(sizes=(10,), **{key: 3}))
    assert trainer.total == (9 if key == "epochs" else 8)
