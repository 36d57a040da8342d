"""The probe of answers from contexts is at the minimum of its own loss, and answers with it."""

import pytest
import torch
from datasets import Dataset

from softprompt.compare.baselines import Baselines
from softprompt.compare.span_probe import fit_span_probe
from softprompt.recipe import make_recipe
from softprompt.tasks import Extract, build_task
from softprompt.tasks.classifier_head import normalize_states
from softprompt.tasks.extractor import sum_span_loss
from softprompt.tasks.squad_scores import compute_squad_metrics
from support.questions import make_questions
from support.recipes import make_recipe_data

TEMPLATES = {"bert": "{question}{sep}{context}", "llama": "{question} is {context} is"}


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("threshold", [0.0, "never"])
def test_the_probe_minimizes_its_loss(backbone, family, threshold) -> None:
    settings = Extract(TEMPLATES[family], null_threshold=threshold)
    task = build_task(settings, backbone(family), template=TEMPLATES[family])
    rows = make_questions(12, seed=1, unanswerable=threshold != "never")
    examples = task.make_examples(rows)
    truth = [Dataset.from_list([row])["answers"][0] for row in rows]
    texts = [str(cell).replace("'", '"') for cell in truth]
    probe = fit_span_probe(task, train=examples, validation=examples, truth=texts)
    head = probe.task.head
    assert head.kind == "linear-normalized"
    with torch.no_grad():
        states = task.compute_row_states(examples, [None])
    head.zero_grad()
    loss = sum_span_loss(probe.task.score_states(examples, states), examples).total / 12
    (loss + probe.strength / 2 * head.output.weight.square().sum()).backward()
    assert head.output.weight.grad.abs().max() < 0.02
    assert head.output.bias.grad.abs().max() < 0.02
    assert probe.cost.trainable == 2 * 32 + 2
    answers = probe(rows)
    references = [row["answers"]["text"] for row in rows]
    constant = task.objective.choose_constant(texts)
    found = compute_squad_metrics(answers, references)["f1"]
    assert found >= compute_squad_metrics([constant] * 12, references)["f1"]
    assert normalize_states(states[0].float()).square().mean().item() == pytest.approx(1, rel=0.01)


def test_a_comparison_has_the_baselines_of_the_task(backbone) -> None:
    data = make_recipe_data("bert", "p-tuning-v2", task="head")
    data["task"] = {"kind": "extract", "template": TEMPLATES["bert"]}
    tables = {
        name: Dataset.from_list(make_questions(count, seed=seed))
        for seed, (name, count) in enumerate({"train": 12, "validation": 6, "test": 5}.items())
    }
    baselines = Baselines(make_recipe(data), backbone("bert"), tables)
    names = ["majority", "hard-prompt", "linear-probe"]
    made = baselines.select(names)
    assert {*made} == {"majority", "linear-probe"}
    (skipped,) = baselines.find_skipped(names)
    assert "random before training" in skipped.reason
    rows = tables["test"].to_list()
    for make in made.values():
        answers = make()(rows)
        assert len(answers) == 5
        assert all(answer in row["context"] for answer, row in zip(answers, rows, strict=True)
                   if make is made["linear-probe"])  # fmt: skip
