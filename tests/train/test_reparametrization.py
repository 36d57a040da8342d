"""Runs of reparametrized prompt tuning: folded when saved, with right numbers of parameters."""

import pytest
import torch

from softprompt.artifact import load_artifact
from softprompt.train import Evaluation, run_recipe
from softprompt.train.summary import summarize_run

WIDTH, SOFT = 32, 3
SETTINGS = {
    "residual": {"reparametrization": "residual", "bottleneck_size": 8},
    "superposition": {"reparametrization": "superposition", "num_words": 9},
}
TRAINED = {
    "residual": SOFT * WIDTH + 2 * WIDTH * 8 + 8 + WIDTH + 2 * WIDTH,
    "superposition": SOFT * (SOFT + 9),
}


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_an_artifact_is_the_prompt_that_was_evaluated(parts, kind, family, tmp_path):
    """Bit for bit, and nothing else: without validations the last step is kept."""
    prepared = parts(family, "prompt-tuning", settings=SETTINGS[kind], sizes=(11,), max_steps=3)
    start = prepared.method().vectors.detach().clone()
    run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    tensors = load_artifact(tmp_path / "run" / "artifact").prompt.to_tensors()
    assert [*tensors] == ["vectors"]
    assert torch.equal(tensors["vectors"], prepared.method().vectors)
    assert not torch.equal(tensors["vectors"], start)


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_best_prompt_has_the_loss_of_its_validation(parts, kind, tmp_path):
    prepared = parts("llama", "prompt-tuning", settings=SETTINGS[kind])
    seen = []
    model = run_recipe(
        prepared.recipe, tmp_path / "run", callbacks=[seen.append], prepared=prepared
    )
    best = [event for event in seen if isinstance(event, Evaluation) and event.best][-1]
    prompt = load_artifact(tmp_path / "run" / "artifact").prompt
    with torch.no_grad():
        loss = model.task.compute_loss(prepared.rows["validation"].examples, [prompt])
    assert float(loss.total) / loss.count == pytest.approx(best.metrics["loss"], rel=1e-5)


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_trained_parameters_are_counted(parts, kind, tmp_path):
    """As ``check`` and ``train`` tell them, and ``compare`` reads them: without fixed vectors."""
    prepared = parts("llama", "prompt-tuning", settings=SETTINGS[kind])
    assert summarize_run(prepared, steps=1).trainable == TRAINED[kind]
    run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    text = (tmp_path / "run" / "metrics.json").read_text("utf-8")
    assert f'"trainable_parameters": {TRAINED[kind]}' in text
