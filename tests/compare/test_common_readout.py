"""A comparison has one readout: chosen once, recorded, and the same for prompts and baselines."""

import json

import pytest
import torch
from datasets import Dataset

from softprompt.artifact import load_artifact
from softprompt.compare import FeatureReader, common_readout, fit_probe
from softprompt.compare.api import compare_methods
from softprompt.compare.baselines import Baselines
from softprompt.compare.common_readout import (
    choose_common_readout,
    settle_variants,
    with_readout,
)
from softprompt.compare.config import read_plan
from softprompt.recipe import make_recipe
from softprompt.tasks.objectives import SingleLabel
from softprompt.train.finetune import setup_finetune
from softprompt.train.readout import ReadoutChoice
from support.recipes import make_recipe_data
from support.reviews import make_reviews, write_rows


@pytest.fixture
def tables():
    sizes = {"train": 24, "validation": 12, "test": 8}
    return {
        name: Dataset.from_list(make_reviews(count, seed=seed))
        for seed, (name, count) in enumerate(sizes.items())
    }


def make_plan(**changes):
    data = make_recipe_data("bert", "p-tuning-v2", task="head")
    data["task"] |= changes
    methods = ["p-tuning-v2", "prompt-tuning"]
    return read_plan(make_recipe(data), methods=methods, baselines=["linear-probe", "fine-tuning"])


def test_all_variants_get_the_choice_which_is_recorded(backbone, tables, tmp_path, monkeypatch):
    plan, own = make_plan(), backbone("bert")
    give = {"backbone": own, "tables": tables, "folder": tmp_path}
    choice = choose_common_readout(plan.base, plan.variants, **give)
    assert json.loads((tmp_path / "readout.json").read_text("utf-8")) == choice.as_data()
    poolings = {v.recipe.task_settings.pooling for v in settle_variants(plan.variants, "max")}
    assert poolings == {"max"}
    assert len(plan.variants) == 3
    monkeypatch.setattr(common_readout, "choose_readout", lambda *_a, **_k: pytest.fail("again"))
    assert choose_common_readout(plan.base, plan.variants, **give) == choice


def test_a_readout_that_the_recipe_names_is_kept(backbone, tables, tmp_path):
    plan = make_plan(pooling="mean")
    give = {"backbone": backbone("bert"), "tables": tables, "folder": tmp_path}
    assert choose_common_readout(plan.base, plan.variants, **give) is None
    assert with_readout(plan.base, "max") == plan.base


def test_test_rows_are_not_read(backbone, tables, tmp_path):
    """Without them there is the same choice."""
    plan, own = make_plan(), backbone("bert")
    folders = [tmp_path / name for name in ("with", "without")]
    rest = {name: table for name, table in tables.items() if name != "test"}
    for folder in folders:
        folder.mkdir()
    first, second = (
        choose_common_readout(plan.base, plan.variants, backbone=own, tables=t, folder=folder)
        for t, folder in zip((tables, rest), folders, strict=True)
    )
    assert first == second


def test_every_variant_can_learn_with_it(backbone, tables, tmp_path):
    """In a causal backbone a mean over text before the soft tokens would not see them."""
    data = make_recipe_data("llama", "prompt-tuning", task="head")
    data["task"]["template"] = "{text} is{soft:3}"
    plan = read_plan(make_recipe(data), methods=["prompt-tuning", "p-tuning-v2"], baselines=[])
    give = {"backbone": backbone("llama"), "tables": tables, "folder": tmp_path}
    assert choose_common_readout(plan.base, plan.variants, **give).pooling == "last"


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "last"])
def test_probe_and_fine_tuning_have_the_readout(backbone, new_backbone, tables, pooling):
    base = with_readout(make_plan().base, pooling)
    probe = Baselines(base, backbone("bert"), tables).select(["linear-probe"])["linear-probe"]()
    assert probe.reading == pooling
    assert [*probe.reader.read(make_reviews(2, seed=5))] == [pooling]
    parts = setup_finetune(base, "fine-tuning", backbone=new_backbone("bert"), tables=tables)
    assert parts.task.pooling == pooling


def test_fine_tuning_alone_chooses_too(new_backbone, tables, monkeypatch):
    planted = ReadoutChoice("max", {}, "planted")
    monkeypatch.setattr(
        "softprompt.train.option_models.choose_task_readout", lambda *_a, **_k: planted
    )
    own = new_backbone("bert")
    parts = setup_finetune(make_plan().base, "fine-tuning", backbone=own, tables=tables)
    assert parts.task.pooling == "max"


def test_a_probe_of_one_readout_has_its_features(backbone):
    rows = make_reviews(8, seed=0)
    every = FeatureReader(backbone("bert"), "{text}").read(rows)
    reader = FeatureReader(backbone("bert"), "{text}", pooling="max")
    assert (reader.read(rows)["max"] == every["max"]).all()
    truth = [[row["label"] for row in rows]] * 2
    objective = SingleLabel(("negative", "positive"))
    probe = fit_probe(reader, train=rows, validation=rows, truth=truth, objective=objective)
    assert probe.reading == "max"


@pytest.mark.parametrize("planted", ["max", "last"])
def test_a_comparison_from_end_to_end(saved, tmp_path, monkeypatch, planted):
    choice = ReadoutChoice(planted, {"cls": 0.5, planted: 0.75}, "these rows")
    monkeypatch.setattr(common_readout, "choose_readout", lambda *_a, **_k: choice)
    data = make_recipe_data("bert", "p-tuning-v2", task="head", max_steps=2)
    data["backbone"]["name"] = str(saved("bert"))
    data["data"] = {}
    for seed, name in enumerate(("train", "validation", "test")):
        data["data"][name] = str(tmp_path / f"{name}.jsonl")
        write_rows(tmp_path / f"{name}.jsonl", make_reviews(8, seed=seed))
    events = []
    comparison = compare_methods(
        data,
        tmp_path / "out",
        methods=["p-tuning-v2", "prompt-tuning"],
        baselines=["linear-probe", "fine-tuning"],
        num_seeds=1,
        lr_multipliers=[1.0],
        callbacks=[events.append],
    )
    assert not comparison.failed
    names = {row["name"] for row in comparison.to_rows()}
    assert names == {"p-tuning-v2", "prompt-tuning", "linear-probe", "fine-tuning"}
    for folder in (tmp_path / "out").glob("p*-*/artifact"):
        assert load_artifact(folder).manifest.task["pooling"] == planted
    assert any(str(choice) in str(event) for event in events)
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert f"{planted}, of all trained heads and of the linear probe" in page
    assert torch.is_grad_enabled()
