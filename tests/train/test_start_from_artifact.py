"""A run that starts from an artifact takes its prompt, and its head where it fits."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from softprompt import Classify, PTuningV2, TrainingConfig, fit
from softprompt.artifact import load_artifact, save_artifact
from softprompt.train import run_recipe


@pytest.fixture
def first(parts, tmp_path):
    """The artifact of a run with a trained head, and how to save changed copies of it."""
    prepared = parts("bert", "p-tuning-v2", task="head", learning_rate=0.1)
    run_recipe(prepared.recipe, tmp_path / "first", prepared=prepared)
    artifact = load_artifact(tmp_path / "first")

    def save(**changes):
        changed = replace(artifact, manifest=replace(artifact.manifest, **changes))
        return save_artifact(changed, tmp_path / f"changed-{len(changes)}")

    return artifact, save


def start(parts, folder, **changes):
    init = {"from": "artifact", "path": str(folder)}
    return parts("bert", "p-tuning-v2", settings={"init": init}, **{"task": "head"} | changes)


def test_prompt_and_head_are_those_of_the_artifact(parts, first):
    artifact, save = first
    prepared = start(parts, save())
    for name, tensor in prepared.task.head.state_dict().items():
        assert torch.equal(tensor, artifact.head[name])
    for name, tensor in prepared.method().to_tensors().items():
        assert torch.equal(tensor, artifact.prompt.to_tensors()[name])
    assert prepared.notes == ("the prompt and the head start as those of the artifact",)
    assert not any("another backbone" in warning for warning in prepared.warnings)


def test_the_first_validation_is_the_artifacts(parts, first, trainer_of):
    """The start of the second run has the scores of the first run's best prompt."""
    artifact, save = first
    prepared = start(parts, save())
    trainer = trainer_of(prepared)
    metrics = dict(trainer.evaluate(prepared.rows["validation"]).metrics)
    assert metrics == pytest.approx(artifact.manifest.metrics["validation"], rel=1e-5)


def test_a_head_of_other_labels_is_not_taken(parts, first):
    artifact, save = first
    folder = save(labels=["positive", "negative"])
    prepared = start(parts, folder)
    (note,) = prepared.notes
    assert note == (
        "the prompt starts as that of the artifact, the head at random: its labels are positive, "
        "negative, not negative, positive"
    )
    plain = parts("bert", "p-tuning-v2", task="head")
    for name, tensor in prepared.task.head.state_dict().items():
        assert torch.equal(tensor, plain.task.head.state_dict()[name])
        assert not torch.equal(tensor, artifact.head[name])


def test_another_backbone_warns(parts, first):
    artifact, save = first
    backbone = artifact.manifest.backbone | {"fingerprint": "0" * 64, "name": "other"}
    prepared = start(parts, save(backbone=backbone))
    (warning,) = [text for text in prepared.warnings if "another backbone" in text]
    assert f"(other, fingerprint {'0' * 64}, not {prepared.backbone.fingerprint})" in warning


def test_a_task_with_words_takes_the_prompt_alone(parts, first):
    _, save = first
    prepared = start(parts, save(), task="words")
    assert prepared.notes == ("the prompt starts as that of the artifact",)


def test_a_run_from_a_text_has_no_notes(parts):
    assert parts("bert", "p-tuning-v2", task="head").notes == ()


@pytest.mark.filterwarnings("ignore::softprompt.errors.SoftpromptWarning")
def test_fit_starts_from_an_artifact_in_memory(rows, backbone):
    """Without a step, prompt, head and answers are those of the first run."""
    task = Classify("{text}", labels=("negative", "positive"))
    data = {"train": rows(8), "validation": rows(4, 1)}
    train = partial(fit, backbone("bert"), task, data, method=PTuningV2(length=3))
    first = train(config=TrainingConfig(max_steps=3, learning_rate=0.1))
    # The learning rate is too small to move anything.
    again = train(
        init=first.artifact,
        config=TrainingConfig(max_steps=1, learning_rate=1e-30, head_learning_rate=1e-30),
    )
    before, after = first.artifact.to_tensors(), again.artifact.to_tensors()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    texts = [row["text"] for row in rows(4, 1)]
    assert torch.equal(
        torch.tensor(first.predict_proba(texts)), torch.tensor(again.predict_proba(texts))
    )
