"""A linear head starts as a logistic regression on the states that the prompt's start gives."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from softprompt.tasks.classifier_head import ClassifierHead
from softprompt.train import heads as module
from softprompt.train import linear_models
from softprompt.train.finetune import setup_finetune
from softprompt.train.folds import make_fold
from softprompt.train.heads import can_fit_head, fit_head
from softprompt.train.regression import RegressionSettings
from softprompt.train.setup import settle_head, settle_readout, with_seed

CASES = [
    ("bert", "p-tuning-v2"),
    ("bert", "prompt-tuning"),
    ("llama", "p-tuning-v2"),
]


def with_head_kind(prepared, kind: str):
    """The parts with a random head of another kind."""
    task = prepared.task
    width = task.head.output.weight.shape[1]
    head = ClassifierHead(width, len(task.labels), kind=kind, seed=0)
    return replace(prepared, task=task.with_head(head))


def read_states(prepared, prompt) -> np.ndarray:
    """The states of the training rows, each run alone."""
    with torch.no_grad():
        rows = prepared.rows["train"].examples
        return torch.cat([prepared.task.compute_states([r], [prompt])[:, 0] for r in rows]).numpy()


@pytest.mark.parametrize(("family", "method"), CASES)
@pytest.mark.parametrize("kind", ["linear", "linear-normalized"])
def test_it_is_scikit_learns_regression_times_one_factor(parts, monkeypatch, family, method, kind):
    """Its log-odds are the regression's, up to the factor that calibrates them."""
    settings = RegressionSettings(1.0)
    monkeypatch.setattr(linear_models, "STANDARDIZED_REGRESSIONS", (settings,))
    monkeypatch.setattr(linear_models, "REGRESSIONS", (settings,))
    prepared = with_head_kind(parts(family, method, task="head", sizes=(24,)), kind)
    prompt = prepared.method()
    head = fit_head(prepared.task, prepared.rows["train"], prompt=prompt)
    states, truth = read_states(prepared, prompt), prepared.rows["train"].truth
    used = states
    if kind == "linear-normalized":
        used = states / np.linalg.norm(states, axis=1, keepdims=True)
    peer = LogisticRegression(C=1.0, max_iter=1000).fit(used, truth)
    with torch.no_grad():
        scores = head(torch.from_numpy(states)).numpy()
    first, second = (prepared.task.labels.index(label) for label in peer.classes_)
    odds, wanted = scores[:, second] - scores[:, first], peer.decision_function(used)
    factors = odds / wanted
    assert factors[0] > 0
    assert np.allclose(factors, factors[0], rtol=1e-3)


@pytest.mark.parametrize(("family", "method"), CASES)
def test_a_run_starts_with_it(parts, trainer_of, family, method):
    prepared = settle_readout(parts(family, method, task="head", sizes=(40, 5)))
    before = {name: tensor.clone() for name, tensor in prepared.task.head.state_dict().items()}
    settled = settle_head(prepared)
    fitted = fit_head(prepared.task, prepared.rows["train"], prompt=prepared.method())
    for name, tensor in settled.task.head.state_dict().items():
        assert torch.equal(tensor, fitted.state_dict()[name])
        assert torch.equal(before[name], prepared.task.head.state_dict()[name]), "it is a copy"
    loss = trainer_of(settled).evaluate(settled.rows["train"]).metrics["loss"]
    assert loss < np.log(2) + 1e-3, "no worse than a guess"


def test_labels_that_the_states_do_not_tell_are_given_no_confidence(parts):
    """The loss is that of a guess."""
    prepared = parts("bert", "p-tuning-v2", task="head", sizes=(60,))
    rows = prepared.rows["train"]
    coins = np.random.default_rng(0).permutation(["negative", "positive"] * 30).tolist()
    blind = replace(rows, truth=coins)
    head = fit_head(prepared.task, blind, prompt=prepared.method())
    states = torch.from_numpy(read_states(prepared, prepared.method()))
    targets = torch.tensor([prepared.task.labels.index(label) for label in coins])
    with torch.no_grad():
        loss = F.cross_entropy(head(states), targets)
    assert abs(float(loss) - np.log(2)) < 0.1


@pytest.mark.parametrize("kind", ["linear", "linear-normalized"])
def test_the_labels_are_those_of_the_regression_with_less_confidence(parts, monkeypatch, kind):
    """A smaller share of its weights changes no label, and leaves more to learn from each row."""
    prepared = with_head_kind(parts("bert", "p-tuning-v2", task="head", sizes=(40,)), kind)
    rows, prompt = prepared.rows["train"], prepared.method()
    found = []
    for share in (1.0, module._SHARE_OF_WEIGHTS):
        monkeypatch.setattr(module, "_SHARE_OF_WEIGHTS", share)
        head = fit_head(prepared.task, rows, prompt=prompt)
        states = torch.from_numpy(read_states(prepared, prompt))
        found.append(head(states).softmax(-1).detach())
    whole, start = found
    assert torch.equal(whole.argmax(-1), start.argmax(-1))
    assert (start.amax(-1) <= whole.amax(-1) + 1e-6).all()


def test_it_stays_random_if_that_is_wanted(parts):
    prepared = parts("llama", "p-tuning-v2", task="head", head_init="random")
    assert can_fit_head(prepared.task)
    assert settle_head(prepared) is prepared


@pytest.mark.parametrize("kind", ["mlp-tanh", "mlp-norm", "linear-no-bias"])
def test_it_stays_random_where_no_regression_fits(parts, kind):
    prepared = with_head_kind(parts("llama", "p-tuning-v2", task="head"), kind)
    assert settle_head(prepared) is prepared


def test_rows_of_one_label_fit_none(parts):
    prepared = parts("bert", "p-tuning-v2", task="head")
    rows = replace(prepared.rows["train"], truth=["positive"] * len(prepared.rows["train"].truth))
    assert fit_head(prepared.task, rows, prompt=prepared.method()) is None


def test_states_that_are_not_finite_are_left_to_the_first_step(parts, monkeypatch):
    prepared = parts("bert", "p-tuning-v2", task="head")
    monkeypatch.setattr(module, "_compute_states", lambda *_: np.full((11, 32), np.nan))
    assert settle_head(prepared) is prepared


def test_a_fold_is_fitted_without_the_rows_that_validate(parts, monkeypatch):
    prepared = settle_readout(parts("bert", "p-tuning-v2", task="head", sizes=(12,)))
    prepared = replace(prepared, folds=((0, 3, 6, 9), (1, 4, 7, 10), (2, 5, 8, 11)))
    seen, fit = [], module.fit_head
    monkeypatch.setattr(
        "softprompt.train.setup.fit_any_head",
        lambda task, rows, **k: seen.append(rows) or fit(task, rows, **k),
    )
    for number, held_out in enumerate(prepared.folds, start=1):
        make_fold(prepared, number)
        texts = {example.variants[0].input_ids for example in seen[-1].examples}
        out = {prepared.rows["train"].examples[index].variants[0].input_ids for index in held_out}
        assert not texts & out
        assert len(seen[-1].truth) == 12 - len(held_out)


def test_each_seed_is_fitted_to_its_own_start(parts):
    prepared = settle_head(settle_readout(parts("bert", "p-tuning-v2", task="head", sizes=(30, 5))))
    other = with_seed(prepared, prepared.recipe.seed + 1)
    wanted = fit_head(other.task, other.rows["train"], prompt=other.method())
    weight = other.task.head.state_dict()["output.weight"]
    assert torch.equal(weight, wanted.state_dict()["output.weight"])
    assert not torch.equal(weight, prepared.task.head.state_dict()["output.weight"])


@pytest.mark.parametrize("kind", ["fine-tuning", "lora"])
@pytest.mark.parametrize("start", ["regression", "random"])
def test_baselines_have_the_same_start(parts, new_backbone, kind, start):
    prepared = parts("bert", "p-tuning-v2", task="head", head_init=start)
    own = new_backbone(prepared.recipe.backbone.name)
    tables = {name: prepared.tables[name] for name in ("train", "validation")}
    found = setup_finetune(prepared.recipe, kind, backbone=own, tables=tables)
    weight = found.task.head.state_dict()["output.weight"]
    plain = fit_head(found.task, found.rows, prompt=None).state_dict()["output.weight"]
    assert torch.allclose(weight, plain) == (start == "regression")
