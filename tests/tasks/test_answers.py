"""Answers and tokens: a choice is named by its tokens, whatever its text becomes in decoding."""

from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from softprompt.backbone import Backbone, wrap_model
from softprompt.data.tokenizer import TextEncoder, make_text_encoder
from softprompt.errors import DataError, TemplateError
from softprompt.inference import EvaluatedRows, make_report, predict_without_prompt
from softprompt.inference.ensemble import combine
from softprompt.injection import generate
from softprompt.tasks import Generate, Prediction, build_task
from softprompt.tasks.answers import Answers, spell_tokens
from support.tiny_models import make_model
from support.tokenizers import (
    set_special_tokens,
    train_byte_level,
    train_prepending,
    train_unigram,
)

END = "</s>"
SPECIALS = ["<unk>", END, "<|im_end|>"]
TOKENIZERS = {
    "byte-level": lambda: train_byte_level(SPECIALS),
    "T5's": lambda: train_unigram("always", SPECIALS),
    "Llama's": lambda: train_unigram("first", SPECIALS),
    "Llama 2's": lambda: train_prepending(SPECIALS),
}
# What decoding, stripping or clean-up changes, and what is a special token when it is spelt out.
TRICKY = [
    " yes",
    "yes ",
    "yes\n",
    "\nyes",
    "a  good film",
    "{}",
    "cafe\u0301",
    "it is n't good .",
    "x<|im_end|>y",
    "a</s> b",
    "<unk>",
    "É",
    "日本",
]


@cache
def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZERS[name](),
        unk_token="<unk>",  # noqa: S106  # the name of a special token
        eos_token=END,
        additional_special_tokens=["<|im_end|>"],
        clean_up_tokenization_spaces=True,
    )


@cache
def make_encoder(name: str) -> TextEncoder:
    tokenizer = load_tokenizer(name)
    return make_text_encoder(tokenizer, vocab_size=len(tokenizer))


@cache
def make_lossy_backbone() -> Backbone:
    """A T5 whose tokenizer does not give every text back."""
    core = train_unigram("always", ["<pad>", "<unk>", END])  # the end has the id 2, as elsewhere
    set_special_tokens(core, single=f"$A {END}", pair=f"$A {END} $B {END}", specials=[END])
    names = {"eos_token": END, "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    return wrap_model("t5", make_model("t5"), tokenizer=tokenizer, kind="encoder-decoder")


@pytest.mark.parametrize("continue_rows", [True, False])
@pytest.mark.parametrize("choice", TRICKY)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_tokens_of_a_choice_are_this_choice(name, choice, continue_rows):
    answers = Answers(
        make_encoder(name), continue_rows=continue_rows, choices=(choice, "a word", "thin plot")
    )
    assert [answers.decode(ids) for ids in answers.choice_ids] == [choice, "a word", "thin plot"]
    assert answers.decode([*answers.choice_ids[0]]) == choice


@pytest.mark.parametrize("choice", TRICKY)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_answer_has_a_special_token(name, choice):
    tokenizer = load_tokenizer(name)
    ids = Answers(make_encoder(name), continue_rows=True).encode(choice)
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    assert not special & {*ids}


@pytest.mark.parametrize("text", ["x<|im_end|>y", "a </s> b", "it is n't good .", "{}", "日本"])
def test_byte_level_tokens_spell_the_text(text):
    """Nothing is lost, and nothing is tidied up."""
    ids = Answers(make_encoder("byte-level"), continue_rows=True).encode(text)
    assert spell_tokens(load_tokenizer("byte-level"), ids).strip() == text


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_answer_has_one_space_before_it(name):
    """As in the row that it continues; no tokenizer adds a second one."""
    tokenizer, answers = load_tokenizer(name), Answers(make_encoder(name), continue_rows=True)
    row = tokenizer("the film", add_special_tokens=False)["input_ids"]
    whole = tokenizer("the film good film", add_special_tokens=False)["input_ids"]
    assert [*row, *answers.encode("good film")] == whole
    assert answers.encode(" good film") == answers.encode("good film")


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("byte-level", ("yes", " yes")),
        ("Llama 2's", ("yes", " yes")),
        ("T5's", ("日", "本")),
        ("Llama's", ("good film 日", "good film 本")),
    ],
)
def test_choices_with_the_same_tokens_are_refused(name, choices):
    with pytest.raises(DataError) as error:
        Answers(make_encoder(name), continue_rows=True, choices=("no", *choices))
    ids = [*Answers(make_encoder(name), continue_rows=True).encode(choices[0])]
    assert str(error.value) == (
        f"the choices {choices[0]!r} and {choices[1]!r} have the same tokens {ids} with this "
        "tokenizer, so an answer could be either. Write both the same in the data (data.value_map) "
        "and in choices."
    )


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (("no", "yes", "no"), "the choice 'no' is in choices twice. Write it once."),
        (("no",), "there is one choice, 'no', so there is nothing to choose from. List the"),
    ],
)
def test_choices_that_leave_no_choice_are_refused(choices, message):
    with pytest.raises(DataError) as error:
        Answers(make_encoder("byte-level"), continue_rows=True, choices=choices)
    assert str(error.value).startswith(message)


def spell(name: str, text: str) -> list[int]:
    """The text letter by letter, as no tokenizer writes it."""
    tokenizer = load_tokenizer(name)
    return [i for c in text for i in tokenizer(c, add_special_tokens=False)["input_ids"]]


def test_other_tokens_with_the_text_of_a_choice_are_this_choice():
    choices = (" good film", "bad\n", "a")
    answers = Answers(make_encoder("byte-level"), continue_rows=True, choices=choices)
    letters = spell("byte-level", "good film")
    assert tuple(letters) not in answers.choice_ids
    assert answers.decode(letters) == " good film"
    assert answers.decode(spell("byte-level", "bad")) == "bad\n"
    assert answers.decode(spell("byte-level", "bad film")) == "bad film"


def test_a_text_that_several_choices_have_is_none_of_them():
    """Only their tokens tell them apart."""
    answers = Answers(make_encoder("byte-level"), continue_rows=True, choices=("bad ", "bad\n"))
    assert [answers.decode(ids) for ids in answers.choice_ids] == ["bad ", "bad\n"]
    assert answers.decode(spell("byte-level", "bad")) == "bad"


def test_nothing_is_not_a_choice_that_has_no_text():
    answers = Answers(make_encoder("T5's"), continue_rows=False, choices=("{}", "a word"))
    assert spell_tokens(load_tokenizer("T5's"), answers.choice_ids[0]).strip() == ""
    assert answers.decode([]) == ""


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_beyond_the_table_are_refused(name):
    small = TextEncoder(make_encoder(name).tokenizer, vocab_size=5)
    with pytest.raises(TemplateError, match=r"but the backbone's embedding table has 5 rows"):
        Answers(small, continue_rows=True).encode("a good film")


def test_half_a_character_is_refused():
    with pytest.raises(DataError, match="has half a character at index 3"):
        Answers(make_encoder("byte-level"), continue_rows=True).encode("ab\ud83d")


# Tasks: what is generated, and how it is scored.

LOSSY = ["a  good film", "{good}", "good\n", " bad"]


def answer_of(task, ids: Tensor | list[int], *, text: str) -> Prediction:
    """The prediction for generated tokens with some text."""
    return Prediction(text, {}, tuple(int(i) for i in ids))


@pytest.mark.parametrize("target", LOSSY)
def test_generated_tokens_of_the_target_are_an_exact_match(target):
    """T5's text of them is another one, and a text without its tokens is not the target."""
    own = make_lossy_backbone()
    task = build_task(Generate(), own, template="{text}")
    *ids, _end = task.make_example({"text": "a film", "target": target}).target
    text = spell_tokens(own.tokenizer, ids).strip()
    right, wrong = answer_of(task, ids, text=text), answer_of(task, [3, 4, 5], text=text)
    assert (
        make_report(task, [EvaluatedRows(1.0, 1, (target,), (right,))]).metrics["exact_match"] == 1
    )
    if text != target.strip():
        report = make_report(task, [EvaluatedRows(1.0, 1, (target,), (wrong,))])
        assert report.metrics["exact_match"] == 0


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("choices", [("a  good film", " bad"), ("{good}", "bad\n")])
def test_a_choice_that_decoding_changes_is_scored_as_itself(choices, constrained):
    """The accuracy is that of the tokens, and nothing is other than the choices."""
    own = make_lossy_backbone()
    settings = Generate(choices=choices, constrained_decoding=constrained)
    task = build_task(settings, own, template="{text}", labels=choices)
    rows = [{"text": t, "target": c} for t in ("a film", "the plot", "it") for c in choices]
    examples = [task.make_example(row) for row in rows]
    by_ids = {e.target[:-1]: row["target"] for e, row in zip(examples, rows, strict=True)}
    predictions = task.predict(examples, [None])
    expected = [by_ids.get(p.token_ids, "other") for p in predictions]
    truth = tuple(row["target"] for row in rows)
    report = make_report(task, [EvaluatedRows(1.0, len(rows), truth, tuple(predictions))])
    right = sum(e == t for e, t in zip(expected, truth, strict=True))
    assert report.metrics["accuracy"] == report.metrics["exact_match"] == right / len(rows)
    if constrained:
        assert {p.label for p in predictions} <= {*choices}
        assert report.confusion.predicted_labels == choices
        # Each choice stands once beside each text, so half of the constant answers are right.
        assert right == len(rows) / 2
        assert predict_without_prompt(task, rows) == expected


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_a_space_before_choices_changes_no_prediction(backbone, family):
    """As a csv file has it behind its commas: the same answers, under their own names."""
    rows = [{"text": text} for text in ("a film", "the movie was great", "no", "it was boring")]
    labels = []
    for choices in (("good", "bad"), (" good", " bad")):
        task = build_task(Generate(), backbone(family), template="{text} is", labels=choices)
        examples = [task.make_example(row, target=False) for row in rows]
        labels.append([p.label for p in task.predict(examples, [None])])
    assert labels[1] == [f" {label}" for label in labels[0]]


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_predictions_have_the_tokens_that_were_generated(backbone, maker, family):
    own = backbone(family)
    task = build_task(Generate(max_new_tokens=5), own, template="{text}")
    example = task.make_example({"text": "a good film"}, target=False)
    (prediction,) = task.predict([example], [None])
    inputs = maker(family).batch(torch.tensor(example.variants[0].input_ids))
    (ids,) = generate(own, inputs, prompts=[None], decoding=task.decoding)
    assert prediction.token_ids == tuple(ids)


def test_a_vote_keeps_the_tokens_of_the_text_that_won():
    """So that the ensemble's exact match compares them too."""
    votes = [Prediction("b", {}, (7,)), Prediction("a", {}, (1, 2)), Prediction("a", {}, (1, 3))]
    won = combine(votes, "majority")
    assert (won.label, won.token_ids) == ("a", (1, 2))
