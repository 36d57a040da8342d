"""The baselines of tags: a lookup of words, a probe of their states, fine-tuning and LoRA."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from softprompt import Tag
from softprompt.compare.baselines import fit_commonest_tags
from softprompt.compare.linear_probe import fit_tag_probe
from softprompt.recipe import make_recipe
from softprompt.tasks.tag_sequences import parse_tags
from softprompt.train.accelerator import make_accelerator
from softprompt.train.finetune import make_finetune_trainer, setup_finetune
from softprompt.train.task_settings import build_objective
from support.recipes import make_recipe_data
from support.tags import make_sentences


def make_tag_recipe(family: str = "bert"):
    data = make_recipe_data(family, "prompt-tuning", task="head", epochs=1)
    data["task"] = {"kind": "tag", "template": "{soft:3}{words}"}
    return make_recipe(data)


def make_tables(train: int = 60):
    sizes = {"train": train, "validation": 10, "test": 12}
    return {
        name: Dataset.from_list(make_sentences(count, seed=seed))
        for seed, (name, count) in enumerate(sizes.items())
    }


def test_the_majority_of_tags_is_that_of_each_word() -> None:
    """A lookup of the training words, and the most frequent tag for others, counted by hand."""
    rows = [
        {"words": ["a", "run"], "tags": ["DET", "NOUN"]},
        {"words": ["run", "a"], "tags": ["VERB", "DET"]},
        {"words": ["run"], "tags": ["VERB"]},
        {"words": ["a"], "tags": ["DET"]},
    ]
    settings, table = Tag(scheme="none"), Dataset.from_list(rows)
    objective = build_objective(settings, table)
    baseline = fit_commonest_tags(table, settings, objective=objective)
    found = baseline([{"words": ["a", "run", "new"]}, {"words": '["a"]'}])
    assert found == ['["DET", "VERB", "DET"]', '["DET"]']


@pytest.mark.parametrize("is_plain", [False, True], ids=["spans", "plain tags"])
def test_a_probe_reads_the_frozen_states_and_gives_each_word_its_likeliest_tag(
    backbone, is_plain
) -> None:
    own, tables = backbone("bert"), make_tables()
    if is_plain:
        tables = {
            name: Dataset.from_list(
                [row | {"tags": [tag.replace("-", "_") for tag in row["tags"]]} for row in table]
            )
            for name, table in tables.items()
        }
    probe = fit_tag_probe(make_tag_recipe(), backbone=own, tables=tables)
    rows = tables["test"].to_list()
    answers = probe(rows)
    for row, answer in zip(rows, answers, strict=True):
        text = " ".join(row["words"])
        given = own.tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
        offsets = given.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            states = own.body(**given).last_hidden_state[0]
            scores = probe.task.head(states.float()).numpy()
        starts = {0, *(at + 1 for at, letter in enumerate(text) if letter == " ")}
        first = [
            at
            for at, (begin, end) in enumerate(offsets)
            if text[begin:end].strip() and begin + (text[begin] == " ") in starts
        ]
        assert [*parse_tags(answer)] == [probe.task.labels[at] for at in scores[first].argmax(1)]
    head = probe.task.head.output
    assert probe.cost.trainable == head.weight.numel() + head.bias.numel()
    assert probe.task.objective.scheme == ("none" if is_plain else "BIO")
    if not is_plain:
        truth = [json.dumps(row["tags"]) for row in rows]
        right = np.mean(probe.task.objective.score_rows(truth, answers))
        constant = probe.task.objective.score_rows(truth, ["O"] * len(rows))
        assert right > np.mean(constant)


def test_fine_tuning_and_lora_train_the_same_head(new_backbone) -> None:
    for kind in ("fine-tuning", "lora"):
        recipe, tables = make_tag_recipe(), make_tables(20)
        parts = setup_finetune(recipe, kind, backbone=new_backbone("bert"), tables=tables)
        before = [parameter.detach().clone() for parameter in parts.trained]
        accelerator = make_accelerator(recipe.train, cpu=True, folder=None)
        events = [*make_finetune_trainer(parts, accelerator).run()]
        metrics = [event.metrics for event in events if type(event).__name__ == "Evaluation"]
        assert {"span_f1", "tag_accuracy", "loss"} <= {*metrics[-1]}, kind
        changed = [not torch.equal(a, b) for a, b in zip(before, parts.trained, strict=True)]
        assert all(changed[-2:]), "the head"
        assert any(changed[:-2]), "the backbone"
