"""Task, template and backbone must fit each other; if not, the message names the cause."""

from dataclasses import replace

import pytest

from softprompt.errors import DataError, TemplateError
from softprompt.tasks import (
    TASKS,
    Choose,
    Classify,
    Extract,
    Generate,
    LengthBudget,
    Regress,
    Tag,
    build_task,
)
from softprompt.tasks.classification import CausalVerbalizer, MaskedVerbalizer, Seq2SeqVerbalizer
from softprompt.tasks.generation import TextGenerator
from softprompt.tasks.heads import HeadClassifier

VERBALIZER = {"up": " good", "down": (" bad", " boring")}


def message(own, settings, template: str, *, error=TemplateError, **more: object) -> str:
    with pytest.raises(error) as found:
        build_task(settings, own, template=template, **more)
    return str(found.value)


@pytest.mark.parametrize(
    ("family", "settings", "template", "kind"),
    [
        ("bert", Classify(), "{text}", HeadClassifier),
        ("llama", Classify(), "{text}", HeadClassifier),
        ("bert", Classify(verbalizer=VERBALIZER), "{text}{mask}", MaskedVerbalizer),
        ("llama", Classify(verbalizer=VERBALIZER), "{text}", CausalVerbalizer),
        ("t5", Classify(verbalizer=VERBALIZER), "{text}", Seq2SeqVerbalizer),
        ("llama", Generate(), "{text}", TextGenerator),
        ("bart", Generate(), "{text}", TextGenerator),
    ],
)
def test_the_way_to_read_the_answer(backbone, family, settings, template, kind):
    task = build_task(settings, backbone(family), template=template, labels=("up", "down"))
    assert type(task) is kind
    assert task.backbone is backbone(family)


def test_an_encoder_cannot_write(backbone):
    assert message(backbone("bert"), Generate(), "{text}") == (
        "bert is an encoder and cannot write text. Use task kind 'classify', or a causal or "
        "encoder-decoder backbone."
    )


def test_a_word_needs_a_mask_in_an_encoder(backbone):
    assert message(backbone("bert"), Classify(verbalizer=VERBALIZER), "{text}") == (
        "the template has no {mask}, but bert predicts a label word at a mask. Write {mask} where the "  # noqa: E501  # the message
        "word would stand, or leave the verbalizer out."
    )


@pytest.mark.parametrize(
    ("settings", "family"),
    [
        (Classify(verbalizer=VERBALIZER), "llama"),
        (Classify(verbalizer=VERBALIZER), "t5"),
        (Classify(), "llama"),
        (Generate(), "llama"),
    ],
)
def test_a_mask_is_for_masked_models(backbone, settings, family):
    assert message(backbone(family), settings, "{text}{mask}") == (
        f"the template has a {{mask}}, but {family} is not a masked language model. Take {{mask}} out."  # noqa: E501  # the message
    )


def test_a_trained_head_reads_no_mask(backbone):
    assert message(backbone("bert"), Classify(), "{text}{mask}") == (
        "the template has a {mask}, but a trained head does not read the mask. Take {mask} out."
    )


def test_a_text_to_text_model_needs_words(backbone):
    assert message(backbone("t5"), Classify(), "{text}") == (
        "t5 answers in words, so it needs a verbalizer, which is missing. Add one to the task: "
        'verbalizer = { yes = "yes", no = "no" }.'
    )


def test_words_need_a_language_model_head(backbone):
    headless = replace(backbone("bert"), lm_head=None)
    assert message(headless, Classify(verbalizer=VERBALIZER), "{text}{mask}") == (
        "backbone 'bert' has no language-model head in its checkpoint, so it cannot score label "
        "words. Leave the verbalizer out, which trains a head, or choose another backbone."
    )


def test_a_head_is_not_suggested_for_a_text_to_text_model(backbone):
    """Without a verbalizer it is refused too."""
    headless = replace(backbone("t5"), lm_head=None)
    assert message(headless, Classify(verbalizer=VERBALIZER), "{text}") == (
        "backbone 't5' has no language-model head in its checkpoint, so it cannot score label "
        "words. Choose another backbone."
    )
    assert "needs a verbalizer" in message(headless, Classify(), "{text}", labels=("up", "down"))


def test_writing_needs_a_language_model_head(backbone):
    headless = replace(backbone("llama"), lm_head=None)
    assert message(headless, Generate(), "{text}") == (
        "backbone 'llama' has no language-model head in its checkpoint, so it cannot write text. "
        "Choose another backbone."
    )


def test_colliding_words(backbone):
    settings = Classify(verbalizer={"up": " good", "down": " good"})
    text = message(backbone("llama"), settings, "{text}", error=DataError)
    assert text.startswith("labels 'up' and 'down' have the same word for this tokenizer")


def test_words_that_begin_others_in_an_encoder(backbone):
    settings = Classify(verbalizer={"up": " great", "down": " greatly"})
    text = message(backbone("bert"), settings, "{text}{mask}", error=DataError)
    assert "the label word ' great' is a prefix of the label word ' greatly'" in text


def test_a_template_that_is_malformed(backbone):
    assert "without its partner" in message(backbone("bert"), Classify(), "{text")


def test_a_head_needs_classes(backbone):
    assert message(backbone("bert"), Classify(), "{text}", labels=("up",), error=DataError) == (
        "a trained head needs at least 2 labels to choose from, but there are 1. Read them from "
        "the training data."
    )


def test_a_prompt_that_leaves_no_room(backbone):
    text = message(backbone("llama"), Classify(), "{soft:70}{text}", labels=("up", "down"))
    assert text == (
        "prompt (70 soft tokens) + fixed text (1 tokens) = 71 positions, but the backbone has 64 "
        "for them. Shorten the prompt to 63."
    )


def test_label_words_have_their_positions_kept(backbone):
    """64 positions, of which a word of three tokens takes two: the last is only predicted."""
    settings = Classify(verbalizer={"up": " wonderfully", "down": " bad"})
    task = build_task(settings, backbone("llama"), template="{text}")
    longest = max(len(word) for word in task.words.all)
    assert longest > 2
    example = task.make_example({"text": "good " * 99}, target=False)
    assert example.truncated
    assert example.length == 64


def test_a_shorter_row_may_be_asked_for(backbone):
    task = build_task(
        Classify(), backbone("llama"), template="{text}", labels="ab", budget=LengthBudget(10)
    )
    assert task.make_example({"text": "good " * 99}, target=False).length == 10


def test_relative_positions_have_no_limit(backbone):
    task = build_task(Classify(verbalizer=VERBALIZER), backbone("t5"), template="{text}")
    example = task.make_example({"text": "good " * 999}, target=False)
    assert not example.truncated
    assert example.length > 999


def test_words_may_be_one_or_several():
    assert Classify(verbalizer=VERBALIZER).list_words() == {
        "up": (" good",),
        "down": (" bad", " boring"),
    }
    assert Classify().list_words() == {}


def test_the_list_of_tasks_is_by_kind():
    kinds = {"classify": Classify, "generate": Generate, "regress": Regress, "tag": Tag}
    assert kinds | {"extract": Extract, "choose": Choose} == TASKS
