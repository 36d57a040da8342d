"""Text generation: the loss is that of the target only, and choices are the only answers."""

import pytest
import torch
from torch.testing import assert_close

from softprompt.errors import DataError
from softprompt.inference import EvaluatedRows, make_report
from softprompt.injection import Decoding, generate
from softprompt.tasks import Generate, LengthBudget, Prediction
from support.parametrize import for_each

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
ROWS = [
    {"text": "the movie was great", "target": "yes it was good"},
    {"text": "a bad film", "target": "no"},
    {"text": "it was boring and not good", "target": "wonderful"},
]
CHOICES = ("good", "greatly", "wonderful", "great")


@pytest.fixture
def writing(bound):
    def make(
        family: str, template: str = "{text}{soft:3} it was", *, labels=(), **settings: object
    ):
        given = {"max_new_tokens": 6} | settings
        return bound(family, Generate(**given), template, labels=labels)

    return make


def target_ids(own, text: str) -> list[int]:
    """The target's ids, with the space after a causal row and the end token."""
    space = " " if own.geometry.architecture == "causal" else ""
    return [*own.tokenizer(space + text, add_special_tokens=False)["input_ids"], 2]


@for_each("writer")
def test_the_loss_is_the_cross_entropy_of_the_target(
    backbone, plain, writing, words, spelled, writer
):
    own = backbone(writer)
    task = writing(writer)
    total, count = 0.0, 0
    for row in ROWS:
        ids = spelled(writer, row["text"], "soft", " it was")
        target = torch.tensor(target_ids(own, row["target"]))
        if own.geometry.architecture == "causal":
            given = {"input_ids": torch.cat([ids, target])[None]}
            begin = len(ids) - 1
        else:
            decoder = torch.tensor([own.decoder_start_token_id, *target[:-1]])
            given, begin = {"input_ids": ids[None], "decoder_input_ids": decoder[None]}, 0
        with torch.no_grad():
            said = plain(writer)(**given).logits[0].log_softmax(-1)
        total -= said[range(begin, begin + len(target)), target].sum()
        count += len(target)
    loss = task.compute_loss([task.make_example(row) for row in ROWS], [words(writer)])
    assert loss.count == count
    assert_close(loss.total, total, **CLOSE)


@for_each("writer")
def test_the_loss_is_a_sum_whatever_the_split(writing, words, writer):
    """Per scored token, not per row: the rows' targets are of different lengths."""
    task = writing(writer)
    examples = [task.make_example(row) for row in ROWS]
    whole = task.compute_loss(examples, [words(writer)])
    parts = [task.compute_loss([example], [words(writer)]) for example in examples]
    assert whole.count == sum(part.count for part in parts)
    assert len({part.count for part in parts}) > 1
    assert_close(whole.total, sum(part.total for part in parts), **CLOSE)


@for_each("writer")
def test_rows_with_different_prompts_lose_as_if_alone(backbone, writing, maker, writer):
    own, make = backbone(writer), maker(writer)
    soft, hard = writing(writer), writing(writer, "{text} it was")
    prompts = [
        make.input_prompt(3),
        make.prefix(2) if own.geometry.num_attention_sites else None,
        None,
    ]
    examples = [soft.make_example(ROWS[0]), *(hard.make_example(row) for row in ROWS[1:])]
    together = soft.compute_loss(examples, prompts, rows=torch.tensor([0, 1, 2]))
    alone = [soft.compute_loss([e], [p]) for e, p in zip(examples, prompts, strict=True)]
    assert_close(together.total, sum(one.total for one in alone), **CLOSE)


@for_each("writer")
def test_the_loss_has_a_gradient(writing, maker, writer):
    task, prompt = writing(writer), maker(writer).input_prompt(3)
    prompt.vectors.requires_grad_()
    task.compute_loss([task.make_example(row) for row in ROWS], [prompt]).total.backward()
    assert prompt.vectors.grad.any(dim=1).all()


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_beams": 3}, {"do_sample": True, "temperature": 2.0, "top_k": 30, "top_p": 0.95}],
)
@for_each("writer")
def test_answers_are_what_generate_writes(backbone, writing, words, maker, writer, settings):
    own, task = backbone(writer), writing(writer, **settings)
    examples = [task.make_example(row, target=False) for row in ROWS]
    answers = task.predict(examples, [words(writer)])
    for example, answer in zip(examples, answers, strict=True):
        inputs = maker(writer).batch(torch.tensor(example.variants[0].input_ids))
        decoding = Decoding(max_new_tokens=6, **settings)
        (ids,) = generate(own, inputs, prompts=[words(writer)], decoding=decoding)
        text = own.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert (answer.label, answer.probabilities) == (text, {})


@pytest.mark.parametrize("beams", [1, 3])
@for_each("writer")
def test_choices_are_the_only_answers(backbone, writing, maker, writer, beams):
    """Many random prompts on a random backbone give no other text."""
    task = writing(writer, labels=CHOICES, num_beams=beams)
    prompts = [maker(writer, seed).input_prompt(3) for seed in range(6)]
    examples = [task.make_example(ROWS[0], target=False)] * 6
    answers = task.predict(examples, prompts, rows=torch.arange(6))
    said = [answer.label for answer in answers]
    assert {*said} <= {*CHOICES}
    assert task.labels == CHOICES


def test_the_choice_is_the_likeliest_continuation(backbone, plain, writing, spelled):
    """One token each, so greedy decoding takes the arg-max of two logits."""
    own = backbone("llama")
    task = writing("llama", "{text}", labels=("good", "bad"))
    columns = [target_ids(own, word)[0] for word in ("good", "bad")]
    for row in ROWS:
        ids = spelled("llama", row["text"])
        with torch.no_grad():
            best = plain("llama")(input_ids=ids[None]).logits[0, -1, columns].argmax()
        (answer,) = task.predict([task.make_example(row, target=False)], [None])
        assert answer.label == ("good", "bad")[best]


def test_a_choice_too_long_to_be_written(writing):
    with pytest.raises(DataError) as error:
        writing("llama", labels=("good", "wonderful terrible"), max_new_tokens=3)
    assert str(error.value) == (
        "the choice 'wonderful terrible' has 4 tokens, but max_new_tokens is 3, so it could never "
        "be the answer. Raise max_new_tokens to at least 4."
    )


def test_a_choice_of_exactly_that_length(writing, words):
    task = writing("llama", labels=("wonderful terrible", "greatly"), max_new_tokens=4)
    (answer,) = task.predict([task.make_example(ROWS[0], target=False)], [words("llama")])
    assert answer.label in task.labels


@pytest.mark.parametrize(("family", "room"), [("llama", 64 - 4), ("gpt2", 64 - 4), ("bart", 64)])
def test_a_target_too_long_for_the_positions(writing, family, room):
    task = writing(family, "{text}")
    row = {"text": "a bad film", "target": "no" + " no" * room}
    with pytest.raises(DataError) as error:
        task.make_example(row)
    text = str(error.value)
    assert f"a target text has {room + 2} tokens, but {room} positions are left" in text
    shorter = "" if family == "bart" else "lower max_length, so that the text is shorter, or "
    assert text.endswith(
        f"Set max_target_length to at most {room - 1}, or {shorter}leave the row out."
    )
    fits = {"text": "a bad film", "target": "no" + " no" * (room - 2)}
    assert len(task.make_example(fits).target) == room
    limited = writing(family, "{text}", max_target_length=room - 1)
    assert len(limited.make_example(row).target) == room


def test_a_lower_limit_for_the_row_leaves_positions_to_its_target(bound):
    row = {"text": "good " * 99, "target": "no" + " no" * 30}
    settings = Generate(max_new_tokens=6)
    with pytest.raises(DataError, match="has 32 tokens, but 6 positions are left"):
        bound("llama", settings, "{text}").make_example(row)
    lower = bound("llama", settings, "{text}", budget=LengthBudget(38))
    example = lower.make_example(row)
    assert example.length + len(example.target) == 64


def test_only_relative_positions_leave_room_for_any_target(writing):
    row = {"text": "a bad film", "target": "no" + " no" * 300}
    assert len(writing("t5", "{text}").make_example(row).target) == 302


def test_rows_are_cut_to_leave_room_for_the_answer(writing):
    """There are 64 positions, 6 of them for the answer."""
    row = {"text": "good " * 100, "target": "no"}
    example = writing("llama", "{text}{soft:3} it was").make_example(row)
    assert example.length == 64 - 6
    assert example.truncated
    assert not writing("llama", "{text}").make_example(ROWS[0]).truncated


def test_without_its_target_there_is_no_loss(writing):
    task = writing("llama", "{text}")
    with pytest.raises(DataError, match="an example without its target has no loss"):
        task.compute_loss([task.make_example(ROWS[0], target=False)], [None])


def test_a_row_without_its_target(writing):
    with pytest.raises(DataError) as error:
        writing("llama", "{text}").make_example({"text": "x", "targets": "y"})
    assert str(error.value) == (
        "unknown column 'target'. Options: targets, text. Did you mean 'targets'?"
    )


def test_columns(writing):
    task = writing("llama", "{a}{b}{a}", target_column="c")
    assert (task.columns, task.target_column, task.head) == (("a", "b"), "c", None)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_target_is_truncated_at_its_limit_and_reported(writing, family):
    whole, cut = (writing(family, max_target_length=most) for most in (None, 2))
    for row in ROWS:
        full, short = (task.make_example(row) for task in (whole, cut))
        *tokens, end = full.target
        assert short.target == (*tokens[:2], end)
        assert short.truncated == (len(tokens) > 2)
        assert not full.truncated


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_free_generation_has_labels_and_is_not_constrained_to_them(writing, words, family):
    """The random backbone writes anything; text that is not a label counts as other."""
    constrained = writing(family, labels=CHOICES)
    free = writing(family, labels=CHOICES, constrained_decoding=False)
    anything = writing(family)
    examples = [constrained.make_example(row, target=False) for row in ROWS]
    prompt = words(family)
    assert {a.label for a in constrained.predict(examples, [prompt])} <= {*CHOICES}
    given = [a.label for a in free.predict(examples, [prompt])]
    assert given == [a.label for a in anything.predict(examples, [prompt])]
    assert free.labels == CHOICES
    truth = ["good", "great", "good"]
    judged = EvaluatedRows(1.0, 3, tuple(truth), tuple(Prediction(text, {}) for text in given))
    table = make_report(free, [judged]).confusion
    assert table.predicted_labels == (*CHOICES, "other")
    others = sum(text not in CHOICES for text in given)
    assert sum(row[-1] for row in table.counts) == others > 0
