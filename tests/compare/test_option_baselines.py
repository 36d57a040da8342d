"""The baselines of options: the commonest place, a probe of states, fine-tuning and LoRA."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F

from softprompt import Choose
from softprompt.compare.baselines import Baselines, fit_commonest_place
from softprompt.compare.option_probe import fit_option_probe
from softprompt.errors import DataError
from softprompt.recipe import make_recipe
from softprompt.tasks.choices import choose_by_place
from softprompt.train.accelerator import make_accelerator
from softprompt.train.finetune import make_finetune_trainer, setup_finetune
from softprompt.train.option_models import fit_option_model, list_option_parts
from support.options import make_options
from support.recipes import make_recipe_data

TASKS = {
    "llama": {"template": "{question} is{soft:3}"},
    "t5": {"template": "{soft:3}{question}"},
    "bert": {"template": "{soft:3}{question}{sep}{option}", "head": "linear", "pooling": "mean"},
}


def make_choice_recipe(family: str):
    data = make_recipe_data(family, "prompt-tuning", task="head", epochs=1)
    data["task"] = {"kind": "choose", **TASKS[family]}
    return make_recipe(data)


def make_tables(train: int = 40):
    sizes = {"train": train, "validation": 10, "test": 12}
    return {
        name: Dataset.from_list(make_options(count, seed=seed, words=1))
        for seed, (name, count) in enumerate(sizes.items())
    }


@pytest.mark.parametrize(
    ("places", "counts", "chosen"),
    [
        ([3, 3, 1], [4, 2], [3, 1]),  # a row that is too short has the next place
        ([], [2], [0]),
        ([0, 1, 1], [2, 3], [1, 1]),
        ([1, 0], [2], [0]),  # of equally common ones the first
        ([5], [3], [0]),
    ],
)
def test_the_commonest_place_is_that_of_the_training_rows(places, counts, chosen) -> None:
    assert choose_by_place(places, counts) == chosen


@pytest.mark.parametrize("form", ["text", "index", "label"])
def test_the_majority_is_a_place_and_no_text(form) -> None:
    rows = [
        {"options": ["a", "b", "c"], "target": {"text": "b", "index": 1, "label": "B"}[form]},
        {"options": ["d", "e"], "target": {"text": "e", "index": 1, "label": "B"}[form]},
        {"options": ["b", "a"], "target": {"text": "b", "index": 0, "label": "A"}[form]},
    ]
    baseline = fit_commonest_place(Dataset.from_list(rows), Choose())
    assert baseline([{"options": ["x", "y", "z"]}, {"options": "n | m"}]) == ["y", "m"]


def test_a_model_of_options_is_at_the_minimum_of_its_loss() -> None:
    """The gradient of McFadden's likelihood, by hand, vanishes at the weights."""
    random = np.random.default_rng(3)
    true = random.normal(size=6)
    rows = [random.normal(size=(random.integers(2, 5), 6)) for _ in range(60)]
    choices = [int((states @ true + random.gumbel(size=len(states))).argmax()) for states in rows]
    model = fit_option_model(rows, choices, parts=list_option_parts(len(rows)))
    centered = [states - states.mean(axis=0) for states in rows]
    scale = np.sqrt(np.mean(np.concatenate(centered) ** 2))
    weight = model.weight * scale
    gradient = model.strength * weight
    for states, choice in zip(centered, choices, strict=True):
        scores = states @ weight / scale
        shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        gradient -= (states[choice] - shares @ states) / scale / len(rows)
    assert np.abs(gradient).max() < 1e-3
    assert np.corrcoef(model.weight, true)[0, 1] > 0.8
    found = model.choose(rows)
    assert found == [int((states @ model.weight).argmax()) for states in rows]


@pytest.mark.parametrize("family", TASKS)
def test_a_probe_reads_each_option_behind_its_row(backbone, family) -> None:
    own, tables = backbone(family), make_tables()
    probe = fit_option_probe(make_choice_recipe(family), backbone=own, tables=tables)
    rows = tables["test"].to_list()
    answers = probe(rows)
    assert probe.cost.trainable == probe.model.weight.size == own.geometry.hidden_size
    for row, answer in zip(rows, answers, strict=True):
        states = []
        for option in row["options"]:
            pair = (row["question"], option)
            text = pair if family == "bert" else (f"{row['question']} is {option}",)
            if family == "t5":
                text = (f"{row['question']} {option}",)
            given = own.tokenizer(*text, return_tensors="pt")
            with torch.no_grad():
                body = own.body.get_encoder() if family == "t5" else own.body
                of_row = body(**given).last_hidden_state[0].float()
            read = {"mean": of_row.mean(0), "cls": of_row[0], "max": of_row.amax(0)}
            states.append(read.get(probe.reading, of_row[-1]))
        scores = F.normalize(torch.stack(states), dim=-1).double() @ torch.from_numpy(
            probe.model.weight
        )
        assert answer == row["options"][int(scores.argmax())]


def test_rows_that_are_too_few_have_no_probe(backbone) -> None:
    with pytest.raises(DataError, match="too few for a linear probe"):
        fit_option_probe(
            make_choice_recipe("bert"), backbone=backbone("bert"), tables=make_tables(6)
        )


@pytest.mark.parametrize("family", TASKS)
def test_a_recipe_has_the_baselines_of_the_task(backbone, family) -> None:
    recipe, tables = make_choice_recipe(family), make_tables()
    baselines = Baselines(recipe, backbone(family), tables)
    names = ["majority", "hard-prompt", "linear-probe"]
    made = baselines.select(names)
    skipped = {one.name: one.reason for one in baselines.find_skipped(names)}
    if family == "bert":
        assert "random before training" in skipped["hard-prompt"]
    assert {*made} | {*skipped} == {*names}
    rows = tables["test"].to_list()
    for make in made.values():
        answers = make()(rows)
        assert all(answer in row["options"] for answer, row in zip(answers, rows, strict=True))


@pytest.mark.parametrize("kind", ["fine-tuning", "lora"])
@pytest.mark.parametrize("family", TASKS)
def test_fine_tuning_and_lora_train_the_same_task(new_backbone, family, kind) -> None:
    recipe, tables = make_choice_recipe(family), make_tables(20)
    parts = setup_finetune(recipe, kind, backbone=new_backbone(family), tables=tables)
    before = [parameter.detach().clone() for parameter in parts.trained]
    accelerator = make_accelerator(recipe.train, cpu=True, folder=None)
    events = [*make_finetune_trainer(parts, accelerator).run()]
    metrics = [event.metrics for event in events if type(event).__name__ == "Evaluation"]
    assert {"loss", *parts.task.objective.metric_names} <= {*metrics[-1]}
    assert any(not torch.equal(a, b) for a, b in zip(before, parts.trained, strict=True))
