"""Guarantee 11: one gradient a step, of the mean loss per scored token, whatever the split."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from softprompt.train.accelerator import make_accelerator
from softprompt.train.gradients import accumulate_gradients, list_trainable_parameters, use_step_rng

KINDS = [
    ("llama", "prompt-tuning", "words"),
    ("llama", "p-tuning-v2", "generate"),
    ("bert", "prefix-tuning", "head"),
    ("bert", "p-tuning", "words"),
    ("t5", "prompt-tuning", "generate"),
]


def split(prepared, count: int) -> tuple[float, int, list[Tensor]]:
    """Loss, scored tokens and gradients of all training rows in so many parts."""
    accelerator = make_accelerator(prepared.recipe.train, cpu=True, folder=None)
    task, method = prepared.task, prepared.method
    for parameter in list_trainable_parameters(task, method):
        parameter.grad = None
    loss, scored = accumulate_gradients(
        task,
        method,
        batch=prepared.rows["train"].examples,
        parts=count,
        accelerator=accelerator,
    )
    return loss, scored, [p.grad.clone() for p in list_trainable_parameters(task, method)]


@pytest.mark.parametrize(("family", "method", "task"), KINDS)
def test_the_split_into_parts_changes_nothing(parts, family, method, task):
    prepared = parts(family, method, task=task, sizes=(7, 2))
    loss, scored, whole = split(prepared, 1)
    for count in (2, 3, 5, 7, 100):
        again, same, pieces = split(prepared, count)
        assert same == scored
        assert again == pytest.approx(loss, rel=1e-6)
        assert_close(pieces, whole, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("parts_of", [1, 3])
def test_the_loss_is_per_scored_token(parts, plain, parts_of):
    """Targets of one and of many tokens weigh as their tokens, not as their rows or parts."""
    short = {"text": "a film", "label": "positive", "answer": "good"}
    long = {"text": "a plot", "label": "negative", "answer": "dull boring awful terrible sad old"}
    prepared = parts(
        "llama", "prompt-tuning", task="generate", tables={"train": [short, long, long, short]}
    )
    loss, scored, _ = split(prepared, parts_of)
    model, vectors = plain("llama"), prepared.method().vectors.detach()
    total, count = 0.0, 0
    for example in prepared.rows["train"].examples:
        source, target = list(example.variants[0].input_ids), list(example.target)
        logits = model(inputs_embeds=embedded(model, [*source, *target[:-1]], vectors)).logits[0]
        wanted = torch.tensor(target)
        each = F.cross_entropy(logits[len(source) - 1 :], wanted, reduction="sum")
        total += each.item()
        count += len(target)
    lengths = {len(example.target) for example in prepared.rows["train"].examples}
    assert len(lengths) == 2
    assert scored == count
    assert loss == pytest.approx(total / count, abs=1e-5)


def embedded(model, ids: list[int], vectors: Tensor) -> Tensor:
    """The embeddings of one row, its soft tokens among them, by hand."""
    table = model.get_input_embeddings().weight
    rows = [vectors[i - len(table)] if i >= len(table) else table[i] for i in ids]
    return torch.stack(rows)[None]


def word_score(model, ids: list[int], word: tuple[int, ...], vectors: Tensor) -> Tensor:
    """The log-probability of a word after a row."""
    logits = model(inputs_embeds=embedded(model, [*ids, *word[:-1]], vectors)).logits[0]
    log_probabilities = logits[len(ids) - 1 :].log_softmax(-1)
    return log_probabilities[range(len(word)), word].sum()


def by_hand(prepared, model, batches) -> tuple[list[float], list[float], Tensor]:
    """Prompt tuning in plain torch: a row at a time, AdamW, a linear fall, clipping."""
    training = prepared.training
    vectors = prepared.method().vectors.detach().clone().requires_grad_()
    optimizer = torch.optim.AdamW([vectors], lr=training.learning_rate, weight_decay=0.0)
    words = [of_label[0] for of_label in prepared.task.words.tokens]
    losses, norms = [], []
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = training.learning_rate * (1 - step / len(batches))
        each = []
        for index in batch:
            example = prepared.rows["train"].examples[index]
            scores = [
                word_score(model, [*example.variants[0].input_ids], word, vectors) for word in words
            ]
            each.append(F.cross_entropy(torch.stack(scores)[None], torch.tensor([example.target])))
        loss = torch.stack(each).mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_([vectors], training.max_grad_norm)))
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, vectors.detach()


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_the_loop_is_a_plain_torch_loop(parts, plain, trainer_of, accumulate):
    prepared = parts(
        "llama",
        "prompt-tuning",
        sizes=(11,),
        weight_decay=0.0,
        warmup_ratio=0.0,
        gradient_accumulation_steps=accumulate,
        max_grad_norm=0.5,
    )
    trainer = trainer_of(prepared)
    batches = [batch for epoch in range(2) for batch in trainer.sampler.draw_batches(epoch)]
    losses, norms, vectors = by_hand(prepared, plain("llama"), batches)
    steps = [event for event in trainer.run() if type(event).__name__ == "Step"]
    assert [step.loss for step in steps] == pytest.approx(losses, abs=1e-5)
    assert [step.norm for step in steps] == pytest.approx(norms, rel=1e-4)
    assert max(norms) > 0.5, "nothing was clipped"
    assert_close(trainer.prompt().vectors, vectors, atol=1e-5, rtol=1e-5)


def test_an_optimizer_step_happens_once_a_batch(parts, trainer_of, monkeypatch):
    """Whatever the number of parts: 3 steps an epoch for 11 rows in batches of 4."""
    calls = []
    original = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        calls.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    for accumulate in (1, 2, 3, 50):
        trainer = trainer_of(parts("llama", sizes=(11,), gradient_accumulation_steps=accumulate))
        calls.clear()  # of the step that tries the optimizer's settings
        seen = 0
        for event in trainer.run():
            if type(event).__name__ == "Step":
                seen += 1
                assert len(calls) == seen
        assert seen == 6 == trainer.total


@pytest.mark.parametrize("accumulate", [2, 3, 4])
def test_accumulation_changes_no_number_of_a_run(parts, trainer_of, accumulate):
    def losses(count: int) -> list[float]:
        prepared = parts("bert", "p-tuning-v2", task="head", gradient_accumulation_steps=count)
        events = list(trainer_of(prepared).run())
        return [e.loss for e in events if type(e).__name__ == "Step"]

    assert losses(accumulate) == pytest.approx(losses(1), abs=1e-5)


def test_earlier_random_numbers_do_not_change_a_step():
    cpu = torch.device("cpu")
    before = torch.random.get_rng_state()
    with use_step_rng(7, step=3, process=0, device=cpu):
        first = torch.rand(3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    drawn = {}
    for step in range(4):
        for process in range(2):
            with use_step_rng(7, step=step, process=process, device=cpu):
                drawn[step, process] = tuple(torch.rand(3).tolist())
    assert drawn[3, 0] == tuple(first.tolist())
    assert len(set(drawn.values())) == 8


def test_the_largest_seed_is_one_that_torch_takes():
    with use_step_rng(2**31 - 1, step=10_000_000, process=4095, device=torch.device("cpu")):
        assert math.isfinite(float(torch.rand(1)))
