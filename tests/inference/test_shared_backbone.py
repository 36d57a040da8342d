"""Answers depend on the prompt and the row alone: not on other models, earlier rows or the order.

Many models share one backbone in one process.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from softprompt.errors import SoftpromptError
from softprompt.inference import PromptModel, attach
from softprompt.tasks import Classify
from support.models import ROWS, WAYS, make_settings

ModelFactory = Callable[..., PromptModel]
TEXTS = [row["text"] for row in ROWS]
OTHERS = ["so bad", "the plot was old and the music was no good", "yes", "fresh"]
CLASSIFIERS = tuple(way for way, (_, kind, _) in WAYS.items() if kind in {"words", "head"})


@pytest.mark.parametrize("way", WAYS)
def test_what_was_asked_before_changes_no_answer(
    model: ModelFactory, new_backbone, way: str
) -> None:
    """As many other rows, another model, and a call that fails lie between."""
    first = model(way)
    expected = first.predict(TEXTS)
    assert first.predict(OTHERS) == model(way, own=new_backbone(WAYS[way][0])).predict(OTHERS)
    model(way, seed=4).predict(TEXTS)
    with pytest.raises(SoftpromptError):
        first.predict([{"txet": "a"}])
    assert first.predict(TEXTS) == expected


@pytest.mark.parametrize("way", WAYS)
def test_models_of_one_backbone_are_saved_each_with_its_own_weights(
    model: ModelFactory, maker, tmp_path, way: str
) -> None:
    family, _, shape = WAYS[way]
    made = [model(way, seed=s, prompt=maker(family, s).prompt(shape)) for s in (1, 2, 3)]
    for number, one in enumerate(made):
        made[-1].predict(TEXTS[:1])  # the last is in use while each is saved
        one.save(tmp_path / str(number))
    for number in (2, 0, 1):
        one = made[number]
        again = PromptModel.from_pretrained(tmp_path / str(number), backbone=one.backbone)
        tensors = one.prompt.to_tensors()
        assert {*tensors} == {*again.prompt.to_tensors()}
        assert all(torch.equal(t, tensors[n]) for n, t in again.prompt.to_tensors().items())
        assert again.predict(TEXTS) == one.predict(TEXTS)
    pairs = [(made[0], made[1]), (made[1], made[2]), (made[2], made[0])]
    for one, other in pairs:
        name, tensor = next(iter(one.prompt.to_tensors().items()))
        assert not torch.equal(tensor, other.prompt.to_tensors()[name])


@pytest.mark.parametrize("way", CLASSIFIERS)
def test_the_order_of_the_labels_changes_no_answer(model: ModelFactory, way: str) -> None:
    """Probabilities belong to names: those of the list in another order are the same."""
    family, kind, shape = WAYS[way]
    trained, settings = model(way), make_settings(kind, family=family, shape=shape)
    assert isinstance(settings, Classify)
    labels = trained.labels[::-1]
    if settings.verbalizer:
        words = {label: settings.verbalizer[label] for label in labels}
        settings = replace(settings, verbalizer=words)
    turned = model(way, settings=settings, choices=labels, prompt=trained.prompt)
    head = {  # the rows of the last layer are the labels
        name: tensor.flip(0) if name.startswith("output.") else tensor
        for name, tensor in trained.artifact.head.items()
    }
    other = attach(replace(turned.artifact, head=head), trained.backbone)
    assert other.labels == labels != trained.labels
    for one, two in zip(trained.predict(TEXTS), other.predict(TEXTS), strict=True):
        assert one.label == two.label
        assert two.probabilities == pytest.approx(one.probabilities, abs=1e-6)
    columns = [other.labels.index(label) for label in trained.labels]
    found = other.predict_proba(TEXTS)[:, columns]
    assert found == pytest.approx(trained.predict_proba(TEXTS), abs=1e-6)
    for metric in ("loss", "accuracy", "macro_f1", "matthews"):
        score = trained.evaluate(ROWS).metrics[metric]
        assert other.evaluate(ROWS).metrics[metric] == pytest.approx(score, abs=1e-6)
