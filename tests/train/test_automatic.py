"""``learning_rate = "auto"`` and ``epochs = "auto"``: the choice, its record, and resuming."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from softprompt import Classify, TrainingConfig, fit, load_backbone, make_recipe
from softprompt.artifact import load_artifact
from softprompt.errors import RecipeError, TrainingError
from softprompt.sklearn import SoftPromptClassifier
from softprompt.train import Evaluation, RunDir, SearchProgress, Step, run_recipe
from softprompt.train import rate_search as module
from softprompt.train.accelerator import make_accelerator
from softprompt.train.config import resolve_training
from softprompt.train.rate_search import MULTIPLIERS, RateSearch, try_learning_rates
from softprompt.train.validation import check_recipe
from support.recipes import make_recipe_data

KINDS = {
    "prompt-tuning": ("llama", "prompt-tuning", "words"),
    "cached text": ("llama", "p-tuning", "words"),
    "prefix with a head": ("bert", "p-tuning-v2", "head"),
    "upper layers": ("gpt2", "p-tuning-v2", "words"),
    "generation": ("t5", "prompt-tuning", "choice"),
}


class Descent:
    """A trainer that descends x²/2 from x = 1 by gradient steps: x becomes (1 - rate) x."""

    total = 2000

    def __init__(self, prepared, _accelerator) -> None:
        self.rate, self.x = prepared.training.learning_rate, 1.0

    def train_step(self) -> None:
        self.x *= 1 - self.rate
        if abs(self.x) > 1e6:
            msg = "the loss is not finite"
            raise TrainingError(msg)

    def evaluate(self, _rows) -> SimpleNamespace:
        return SimpleNamespace(metrics={"loss": self.x**2 / 2})

    def state_dict(self) -> dict[str, float]:
        return {"x": self.x}

    def load_state_dict(self, state) -> None:
        self.x = state["x"]


@pytest.mark.parametrize("best", MULTIPLIERS)
def test_the_planted_best_rate_is_chosen(parts, monkeypatch, best) -> None:
    """A rate of 1 solves the quadratic in one step; 9 times as much diverges."""
    prepared = parts("llama", "prompt-tuning")
    training = replace(prepared.training, learning_rate=1 / best)
    monkeypatch.setattr(module, "make_trainer", Descent)
    accelerator = make_accelerator(prepared.recipe.train, cpu=True, folder=None)
    events = []
    search = try_learning_rates(
        replace(prepared, training=training), accelerator, callbacks=[events.append]
    )
    assert search.multiplier == pytest.approx(best)
    assert search.losses[best] == 0
    # A fifth of the steps, in units of nine: five rates for one, and two for two more.
    assert search.steps <= 0.2 * Descent.total + 9
    progress = [event for event in events if isinstance(event, SearchProgress)]
    assert [event.done for event in progress] == [*range(1, search.steps + 1)]
    assert RateSearch.from_data(json.loads(json.dumps(search.as_data()))) == search


def test_where_every_rate_fails_it_is_said(parts, monkeypatch) -> None:
    prepared = parts("llama", "prompt-tuning")
    training = replace(prepared.training, learning_rate=1e9)
    monkeypatch.setattr(module, "make_trainer", Descent)
    accelerator = make_accelerator(prepared.recipe.train, cpu=True, folder=None)
    with pytest.raises(
        TrainingError, match=r"failed with every learning rate .*\(train\.learning_"
    ):
        try_learning_rates(replace(prepared, training=training), accelerator, callbacks=[])


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_leaves_the_start_and_gives_the_losses_of_runs_by_hand(
    parts, trainer_of, kind
) -> None:
    family, method, task = KINDS[kind]
    prepared = parts(family, method, task=task, sizes=(20, 6), learning_rate="auto", epochs=4)
    before = [tensor.clone() for tensor in prepared.method.state_dict().values()]
    accelerator = make_accelerator(prepared.recipe.train, cpu=True, folder=None)
    search = try_learning_rates(prepared, accelerator, callbacks=[])
    after = prepared.method.state_dict().values()
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    longest = {m: loss for m, loss in search.losses.items() if math.isfinite(loss)}
    assert search.multiplier in longest
    rounds = search.steps // 9
    for multiplier, loss in longest.items():
        training = replace(
            prepared.training,
            learning_rate=prepared.training.learning_rate * multiplier,
            head_learning_rate=prepared.training.head_learning_rate * multiplier,
            lr_scheduler="constant",
            warmup_ratio=0.0,
        )
        fresh = parts(family, method, task=task, sizes=(20, 6), learning_rate="auto", epochs=4)
        trainer = trainer_of(replace(fresh, training=training))
        found = []
        for step in range(3 * rounds):
            trainer.train_step()
            if step + 1 in (rounds, 3 * rounds):
                found.append(trainer.evaluate(fresh.rows["validation"]).metrics["loss"])
        assert any(loss == pytest.approx(each, rel=1e-4) for each in found)


def train(prepared, folder, **options):
    """Train the parts of a run into a folder; the recorded search, metrics and tensors."""
    run_recipe(prepared.recipe, folder, prepared=prepared, **options)
    metrics, artifact = RunDir(folder).read_metrics(), load_artifact(folder)
    return metrics, artifact.to_tensors()


@pytest.mark.parametrize("folds", [None, 3])
def test_the_rate_is_recorded_and_used_and_the_heads_with_it(
    backbone, rows, trainer_of, tmp_path, folds
) -> None:
    from softprompt.train import setup_run

    data = make_recipe_data("bert", "p-tuning-v2", task="head", learning_rate="auto", epochs=3)
    data["data"] |= {} if folds is None else {"folds": folds}
    tables = {"train": Dataset.from_list(rows(12))}
    tables |= {} if folds else {"validation": Dataset.from_list(rows(6, 1))}
    prepared = setup_run(make_recipe(data), backbone=backbone("bert"), tables=tables)
    usual = prepared.training
    metrics, _ = train(prepared, tmp_path / "run")
    factor = metrics["learning_rate_search"]["multiplier"]
    assert metrics["training"]["learning_rate"] == usual.learning_rate * factor
    assert metrics["training"]["head_learning_rate"] == usual.head_learning_rate * factor
    judge = "8 rows in 2 of 3 folds" if folds else "6 validation rows"
    assert metrics["learning_rate_search"]["judge"] == judge
    kept = json.loads((tmp_path / "run" / "learning-rate.json").read_text())
    assert kept["learning-rate"] == metrics["learning_rate_search"]


def test_the_rate_of_a_head_that_the_recipe_names_stays(parts, tmp_path) -> None:
    prepared = parts(
        "bert", "p-tuning-v2", task="head", learning_rate="auto", head_learning_rate=0.5, epochs=1
    )
    metrics, _ = train(prepared, tmp_path / "run")
    assert metrics["training"]["head_learning_rate"] == 0.5


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """What a run gives that is not stopped, which is made once."""
    return {}


@pytest.mark.parametrize(("kind", "stop"), [(SearchProgress, 5), (Step, 5), (Step, 25)])
def test_a_stopped_run_resumes_to_the_same_numbers(parts, tmp_path, whole, kind, stop) -> None:
    """Stopped in the search, soon after it, and while training."""
    settings = {"learning_rate": "auto", "epochs": "auto", "max_steps": 40, "lr_scheduler": None}

    def make():
        return parts("bert", "p-tuning-v2", task="head", sizes=(12, 6, 4), **settings)

    if not whole:
        whole["metrics"], whole["tensors"] = train(make(), tmp_path / "whole")
    seen = 0

    def watch(event) -> None:
        nonlocal seen
        seen += isinstance(event, kind)
        if seen == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make(), tmp_path / "run", callbacks=[watch])
    events = []
    again = train(make(), tmp_path / "run", resume=True, callbacks=[events.append])
    assert again[0] == whole["metrics"]
    assert all(torch.equal(again[1][name], tensor) for name, tensor in whole["tensors"].items())
    # A search that was finished is not made again.
    assert any(isinstance(event, SearchProgress) for event in events) == (kind is SearchProgress)


def test_on_a_plateau_the_rate_falls_to_a_third_and_then_the_run_ends(parts, trainer_of) -> None:
    """With a rate that moves nothing, no validation is better than the first."""
    prepared = parts(
        "bert",
        "p-tuning-v2",
        task="head",
        sizes=(12, 6),
        epochs=600,
        optimizer="sgd",
        lr_scheduler="plateau",
        early_stopping_patience=6,
    )
    training = replace(prepared.training, learning_rate=1e-30, head_learning_rate=1e-30)
    trainer = trainer_of(replace(prepared, training=training))
    rates, validations = [], 0
    for event in trainer.run():
        if isinstance(event, Evaluation):
            validations += 1
        rates.append(getattr(event, "learning_rate", None))
    used = [*dict.fromkeys(rate for rate in rates if rate is not None)]
    assert [rate / 1e-30 for rate in used] == pytest.approx([1, 1 / 3, 1 / 9])
    assert validations == 1 + 6
    assert trainer.stop_reason() == "no improvement in 6 validations"


@pytest.mark.parametrize(
    ("rows", "folds", "expected"),
    [
        (16, None, {"epochs": 120, "max_steps": 120, "eval_every_steps": 15}),
        (961, None, {"epochs": 8, "max_steps": 248, "lr_scheduler": "linear"}),
        (1920, None, {"epochs": 8, "max_steps": 480, "eval_every_steps": 60}),
        (6400, None, {"epochs": 5, "max_steps": 1000, "early_stopping_patience": None}),
        (12_000, None, {"epochs": 3, "max_steps": 1125, "eval_every_steps": 141}),
        (16, 4, {"epochs": 100, "max_steps": 100, "lr_scheduler": "linear"}),
        (320, 4, {"epochs": 10, "max_steps": 100, "early_stopping_patience": None}),
    ],
)
def test_the_length_of_a_run_depends_on_its_rows(parts, rows, folds, expected) -> None:
    data = make_recipe_data(
        "bert", "p-tuning-v2", task="head", epochs="auto", batch_size=32, lr_scheduler=None
    )
    data["data"] |= {} if folds is None else {"folds": folds}
    defaults = parts("bert", "p-tuning-v2", task="head").defaults
    found = resolve_training(make_recipe(data), defaults, rows=rows)
    assert {name: getattr(found, name) for name in expected} == expected


def test_what_the_recipe_names_takes_precedence(parts) -> None:
    prepared = parts(
        "bert", "p-tuning-v2", task="head", epochs="auto", lr_scheduler="cosine", eval_every_steps=7
    )
    training = prepared.training
    assert (training.lr_scheduler, training.eval_every_steps) == ("cosine", 7)
    prepared = parts("bert", "p-tuning-v2", task="head", epochs="auto", max_steps=20)
    assert (prepared.training.max_steps, prepared.training.eval_every_steps) == (20, 3)


def test_a_plateau_needs_validation_rows(parts, trainer_of) -> None:
    prepared = parts("bert", "p-tuning-v2", task="head", sizes=(12,), lr_scheduler="plateau")
    rows = {"train": prepared.rows["train"]}
    with pytest.raises(RecipeError, match=r"follows the validations, but there are no"):
        trainer_of(replace(prepared, rows=rows))


def test_the_plan_says_what_will_be_chosen(saved, rows, tmp_path) -> None:
    for name, count in (("train", 12), ("validation", 6)):
        lines = "\n".join(map(json.dumps, rows(count)))
        (tmp_path / f"{name}.jsonl").write_text(lines, "utf-8")
    data = make_recipe_data(
        "bert", "p-tuning-v2", task="head", learning_rate="auto", epochs="auto", lr_scheduler=None
    )
    data["backbone"]["name"] = str(saved("bert"))
    data["data"] = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation")}
    settings = check_recipe(data).plan.settings
    assert settings["learning_rate"].value == "0.00078 to 0.063"
    assert "before the first step" in settings["learning_rate"].source
    assert settings["epochs"].value * 3 == settings["max_steps"].value == 120
    assert settings["max_steps"].source == 'epochs = "auto"'


@pytest.mark.filterwarnings("ignore::softprompt.errors.SoftpromptWarning")
def test_python_and_the_estimator_take_auto_too(saved, rows) -> None:
    train_rows = rows(16)
    backbone = load_backbone(str(saved("bert")), device="cpu", dtype="float32")
    config = TrainingConfig(learning_rate="auto", epochs="auto", max_steps=20, batch_size=8)
    task = Classify("{text}", pooling="mean")
    model = fit(backbone, task, train_rows, method="p-tuning-v2", config=config, validation=0.25)
    assert model.artifact.manifest.recipe["train"]["learning_rate"] == "auto"
    texts, labels = [r["text"] for r in train_rows], [r["label"] for r in train_rows]
    classifier = SoftPromptClassifier(
        str(saved("bert")),
        template="{text}",
        method="p-tuning-v2",
        learning_rate="auto",
        epochs="auto",
        batch_size=8,
        validation_fraction=0.25,
    )
    assert {*classifier.fit(texts, labels).predict(texts)} <= {*labels}
