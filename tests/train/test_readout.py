"""The readout of a head is chosen by a probe, before the first step, and never by test rows."""

import json
import tomllib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset

from softprompt import Classify, TrainingConfig, fit
from softprompt.artifact import load_artifact, save_artifact
from softprompt.data.rendering import RenderedRow
from softprompt.errors import ArtifactError, TemplateError
from softprompt.inference import attach
from softprompt.injection.forward import forward
from softprompt.sklearn import SoftPromptClassifier
from softprompt.tasks.objectives import SingleLabel
from softprompt.train import PhaseStarted, RunDir, Started, run_recipe
from softprompt.train import readout as module
from softprompt.train.datasets import select_rendered
from softprompt.train.folds import make_fold
from softprompt.train.readout import ReadoutChoice, choose_readout, choose_task_readout
from softprompt.train.regression import is_clearly_worse
from softprompt.train.setup import settle_fold_readouts, settle_readout, setup_run
from softprompt.train.validation import check_recipe

HEAD = ("bert", "p-tuning-v2")
LENGTH, WIDTH = 12, 3


def plant(best: str, labels: np.ndarray) -> torch.Tensor:
    """States ``[rows, T, H]`` in which one readout alone tells the labels apart.

    Each state is noise that sums to zero within a row and has the same extremes in every row.
    """
    generator = np.random.default_rng(3)
    side = np.where(labels == "b", 1.0, -1.0)
    states = np.empty((len(labels), LENGTH, WIDTH))
    for row in states:
        for column in range(WIDTH):
            row[:, column] = generator.permutation(np.linspace(-1, 1, LENGTH))
    match best:
        case "cls" | "last":  # the state there has the label's sign; a swap keeps the others' sum
            at = 0 if best == "cls" else LENGTH - 1
            for row, sign in zip(states, side, strict=True):
                for column in range(WIDTH):
                    other = generator.choice(np.flatnonzero(row[:, column] * sign > 0.3))
                    row[[at, other], column] = row[[other, at], column]
        case "mean":  # all states but the extremes are moved a little, the first and last are not
            for row, moved in zip(states, side, strict=True):
                inner = (abs(row) < 0.95) & (np.arange(LENGTH) % (LENGTH - 1) > 0)[:, None]
                row[inner] += 0.04 * moved
        case "max":  # a high state, with a low one that keeps the mean
            for row, high in zip(states, side > 0, strict=True):
                at = generator.permutation(np.arange(1, LENGTH - 1))[:2]
                row[at] = np.array([3.0, -3.0])[:, None] if high else np.zeros((2, 1))
    return torch.tensor(states, dtype=torch.float32)


@pytest.fixture
def planted(backbone, monkeypatch):
    """Choose by planted states; the first token of a row is its number."""

    def choose(best: str, family: str, *, train: int, validation: int) -> ReadoutChoice:
        labels = np.array(["a", "b"] * ((train + validation) // 2))
        states = plant(best, labels)
        monkeypatch.setattr(
            module, "forward", lambda _b, inputs, **_k: states[inputs.input_ids[:, 0]]
        )
        rows = [
            RenderedRow((number, *[9] * (LENGTH - 1)), (0,) * LENGTH, (), truncated=False)
            for number in range(len(labels))
        ]
        names = {"bert": ("mean", "cls", "max", "last"), "llama": ("last", "mean", "max")}
        texts = [*zip(rows, labels.tolist(), strict=True)]
        split = {"train": texts[:train], "validation": texts[train:]}
        parts = {
            name: tuple(map(list, zip(*part, strict=True))) for name, part in split.items() if part
        }
        objective = SingleLabel(("a", "b"))
        return choose_readout(backbone(family), names[family], objective=objective, **parts)

    return choose


@pytest.mark.parametrize("sizes", [(200, 100), (200, 0), (60, 200)])
@pytest.mark.parametrize(
    ("family", "best"),
    [*(("bert", p) for p in ("cls", "mean", "max", "last")),
     *(("llama", p) for p in ("last", "mean", "max"))],
)  # fmt: skip
def test_it_chooses_the_planted_readout(planted, family, best, sizes):
    choice = planted(best, family, train=sizes[0], validation=sizes[1])
    assert choice.pooling == best
    assert choice.scores[best] > 0.85
    others = [score for name, score in choice.scores.items() if name != best]
    assert max(others) < 0.75
    assert ("validation rows" in choice.reason) == bool(sizes[1])


@pytest.mark.parametrize(("family", "first"), [("bert", "mean"), ("llama", "last")])
def test_ties_go_to_the_first_readout(planted, monkeypatch, family, first):
    monkeypatch.setattr(module, "_score_probe", lambda *_a, **_k: np.array([1.0, 0.0]))
    assert planted("max", family, train=20, validation=10).pooling == first


@pytest.mark.parametrize(
    ("errors", "more", "is_clear"),
    [(2, 1, False), (2, 3, False), (2, 4, True), (2, 5, True), (1, 0, False), (1, 1, True)],
)
def test_another_readout_has_to_be_clearly_better(errors, more, is_clear):
    """By hand: the lead k/n of k rows of n has the standard error sqrt(k/n (1 - k/n) / n)."""
    count = 20
    right = np.ones(count, dtype=bool)
    wrong = np.arange(count) >= more
    share = more / count
    assert (share > errors * (share * (1 - share) / count) ** 0.5) is is_clear
    assert is_clearly_worse(wrong, right, errors=errors) is is_clear
    assert not is_clearly_worse(right, wrong, errors=errors)
    assert not is_clearly_worse(right, right, errors=errors)


def test_a_run_says_why_it_keeps_a_readout_with_a_lower_score():
    choice = ReadoutChoice("mean", {"mean": 0.7, "cls": 0.75}, "20 training rows in folds")
    assert str(choice) == (
        "readout: mean, chosen by 20 training rows in folds (logistic probe: mean 70.0%, cls "
        "75.0%; no other is clearly better)"
    )
    assert str(replace(choice, pooling="cls")).endswith("(logistic probe: mean 70.0%, cls 75.0%)")


@pytest.mark.parametrize("count", [2, 3])
def test_too_few_rows_to_choose_by(backbone, count):
    rows = [RenderedRow((n + 5,), (0,), (), truncated=False) for n in range(count)]
    choice = choose_readout(
        backbone("bert"),
        ("cls", "mean"),
        objective=SingleLabel(("a", "b")),
        train=(rows, ["a"] * (count - 1) + ["b"]),
    )
    assert choice.pooling == "cls"


def test_every_training_row_judges_once_and_is_not_fitted_on():
    parts = module._list_parts([*"aaabbbbbccab"], SingleLabel(("a", "b", "c")), 10, 2)
    *folds, last = parts
    assert Counter(int(row) for _, judge in folds for row in judge) == Counter(range(10))
    assert all({*fit} | {*judge} == {*range(10)} and not {*fit} & {*judge} for fit, judge in folds)
    assert (last[0].tolist(), last[1].tolist()) == ([*range(10)], [10, 11])


@pytest.mark.parametrize(
    ("family", "method"), [HEAD, ("llama", "p-tuning-v2"), ("bert", "p-tuning")]
)
def test_a_run_records_a_concrete_readout(parts, tmp_path, family, method):
    prepared = parts(family, method, task="head")
    assert prepared.recipe.task_settings.pooling == "auto"
    events = []
    model = run_recipe(
        prepared.recipe, tmp_path / "run", prepared=prepared, callbacks=[events.append]
    )
    wanted = choose_task_readout(prepared.task, prepared.rows, template=prepared.template)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text("utf-8"))
    artifact = load_artifact(tmp_path / "run")
    assert metrics["readout"] == wanted.as_data()
    assert artifact.manifest.task["pooling"] == wanted.pooling == model.task.pooling
    assert artifact.manifest.recipe["task"]["pooling"] == wanted.pooling
    phases = [e.what for e in events if isinstance(e, PhaseStarted) and e.phase == "probing"]
    assert phases == ["the readout"]
    (started,) = [event for event in events if isinstance(event, Started)]
    assert str(wanted) in started.notes


def test_test_rows_are_never_seen(parts, monkeypatch):
    """A leak would show: the test rows have words that no other row has."""
    seen = []
    compute = module.compute_features
    monkeypatch.setattr(
        module, "compute_features", lambda b, rows, **p: seen.extend(rows) or compute(b, rows, **p)
    )
    prepared = parts(*HEAD, task="head")
    test = {e.variants[0].input_ids for e in prepared.rows["test"].examples}
    known = {
        e.variants[0].input_ids
        for name in ("train", "validation")
        for e in prepared.rows[name].examples
    }
    first = settle_readout(prepared)
    assert {row.input_ids for row in seen} <= known
    assert test - known
    swapped = replace(prepared, rows={**prepared.rows, "test": prepared.rows["train"]})
    assert settle_readout(swapped).readout == first.readout


def test_soft_tokens_are_not_in_the_probed_rows(parts, monkeypatch):
    seen = []
    compute = module.compute_features
    monkeypatch.setattr(
        module, "compute_features", lambda b, rows, **p: seen.extend(rows) or compute(b, rows, **p)
    )
    settle_readout(parts("bert", "prompt-tuning", task="head"))
    assert seen
    assert all(token < 366 for row in seen for token in row.input_ids)
    assert all(
        row.input_ids[0] == 0 and len(row.token_type_ids) == len(row.input_ids) for row in seen
    )


def test_a_resumed_run_keeps_its_readout(parts, tmp_path, monkeypatch):
    """Without choosing again; the numbers are those of a run that was not stopped."""

    def stop(event):
        if getattr(event, "step", 0) == 2:
            raise KeyboardInterrupt

    planted = ReadoutChoice("max", {"cls": 0.5, "max": 0.75}, "these rows")
    monkeypatch.setattr(
        "softprompt.train.option_models.choose_task_readout", lambda *_a, **_k: planted
    )
    whole = parts(*HEAD, task="head")
    run_recipe(whole.recipe, tmp_path / "whole", prepared=whole)
    stopped = parts(*HEAD, task="head")
    with pytest.raises(KeyboardInterrupt):
        run_recipe(stopped.recipe, tmp_path / "run", prepared=stopped, callbacks=[stop])

    def choose(*_args, **_options):
        pytest.fail("the readout was chosen again")

    monkeypatch.setattr("softprompt.train.option_models.choose_task_readout", choose)
    again = parts(*HEAD, task="head")
    run_recipe(again.recipe, tmp_path / "run", prepared=again, resume=True)
    first, second = (load_artifact(tmp_path / name) for name in ("whole", "run"))
    assert second.manifest.task["pooling"] == "max"
    for name, tensor in first.to_tensors().items():
        assert torch.equal(tensor, second.to_tensors()[name])


def test_a_run_from_before_readouts_were_chosen_resumes_with_the_conventional_one(parts):
    prepared = parts(*HEAD, task="head")
    assert settle_readout(prepared, checkpoint={"trainer": {}}).task.pooling == "cls"


def test_each_fold_chooses_without_its_own_rows(parts, monkeypatch):
    """As if the rows of the fold did not exist; and all rows are run once for all folds."""
    prepared = settle_readout(parts(*HEAD, task="head", sizes=(24,)))
    prepared = replace(prepared, folds=tuple(tuple(range(n, 24, 3)) for n in range(3)))
    rows, runs = prepared.rows["train"], []
    monkeypatch.setattr(module, "forward", lambda *a, **k: runs.append(a[1]) or forward(*a, **k))
    settled = settle_fold_readouts(prepared)
    counted = sum(len(inputs.input_ids) for inputs in runs)
    assert counted == 24
    for number, fold in enumerate(prepared.folds):
        others = select_rendered(rows, [at for at in range(24) if at not in fold])
        alone = choose_task_readout(prepared.task, {"train": others}, template=prepared.template)
        assert settled.fold_readouts[number] == alone
        assert make_fold(settled, number + 1).task.pooling == alone.pooling
    assert settle_fold_readouts(settled) is settled


def test_planted_rows_change_only_the_folds_that_train_on_them(parts):
    """Other labels in a fold change the scores of the other folds' probes, never its own."""
    prepared = settle_readout(parts(*HEAD, task="head", sizes=(24,)))
    folds = tuple(tuple(range(n, 24, 3)) for n in range(3))
    rows = prepared.rows["train"]
    others = {"negative": "positive", "positive": "negative"}
    truth = [others[label] if at in folds[0] else label for at, label in enumerate(rows.truth)]
    found = [
        settle_fold_readouts(
            replace(prepared, folds=folds, rows={"train": replace(rows, truth=labels)})
        ).fold_readouts
        for labels in (rows.truth, truth)
    ]
    same = [one == other for one, other in zip(*found, strict=True)]
    assert same == [True, False, False]


@pytest.fixture
def first(parts, tmp_path):
    """The artifact of a run whose head reads the maximum."""
    prepared = parts(*HEAD, task="head")
    prepared = prepared.with_readout(ReadoutChoice("max", {}, "planted"))
    run_recipe(prepared.recipe, tmp_path / "first", prepared=prepared)
    return tmp_path / "first" / "artifact"


def test_a_run_takes_the_readout_with_the_head(parts, first):
    init = {"from": "artifact", "path": str(first)}
    prepared = settle_readout(parts(*HEAD, task="head", settings={"init": init}))
    assert prepared.task.pooling == "max"
    assert prepared.readout == ReadoutChoice("max", {}, "that of the artifact", is_chosen=False)


def test_a_head_with_another_readout_than_the_recipes_is_not_taken(parts, first, backbone, rows):
    init = {"from": "artifact", "path": str(first)}
    base = parts(*HEAD, task="head", settings={"init": init})
    task = base.recipe.task.model_copy(update={"pooling": "mean"})
    named = base.recipe.model_copy(update={"task": task})
    tables = {"train": Dataset.from_list(rows(9))}
    prepared = setup_run(named, backbone=backbone("bert"), tables=tables)
    assert "the head at random: its head reads 'max', not 'mean'" in prepared.notes[0]
    assert prepared.task.pooling == "mean"


def test_an_artifact_never_says_auto(first, tmp_path):
    artifact = load_artifact(first)
    manifest = replace(artifact.manifest, task=artifact.manifest.task | {"pooling": "auto"})
    with pytest.raises(ArtifactError, match=r"task.pooling is 'auto', but an artifact names"):
        save_artifact(replace(artifact, manifest=manifest), tmp_path / "other")


def test_an_artifact_without_a_readout_is_an_earlier_one(first, backbone):
    artifact = load_artifact(first)
    task = {key: value for key, value in artifact.manifest.task.items() if key != "pooling"}
    model = attach(
        replace(artifact, manifest=replace(artifact.manifest, task=task)), backbone("bert")
    )
    assert model.task.pooling == "cls"


@pytest.mark.parametrize(("family", "pooling"), [("llama", "cls"), ("gpt2", "first")])
def test_a_readout_that_sees_nothing_is_refused(backbone, rows, family, pooling):
    with pytest.raises(TemplateError, match=r'task\.pooling = "(cls|first)" reads the first token'):
        fit(backbone(family), Classify("{text}", pooling=pooling), rows(8), method="p-tuning-v2")


def test_check_says_what_will_be_chosen_and_by_what(written):
    path = written("bert", "p-tuning-v2", task="head")
    table = tomllib.loads(path.read_text("utf-8"))
    table["data"] = {name: str(path.parent / file) for name, file in table["data"].items()}
    plan = check_recipe(table).plan
    assert plan.settings["pooling"].value == "auto"
    assert plan.settings["pooling"].source == (
        "default: mean, cls, max, last, chosen before the first step by a probe on 5 validation "
        "rows and 11 training rows in folds"
    )
    named = check_recipe(table | {"task": table["task"] | {"pooling": "mean"}}).plan
    assert (named.settings["pooling"].value, named.settings["pooling"].source) == ("mean", "recipe")


@pytest.mark.filterwarnings("ignore::softprompt.errors.SoftpromptWarning")
@pytest.mark.parametrize("pooling", ["mean", "auto"])
def test_the_estimator_has_it(backbone, rows, pooling):
    table = rows(12)
    texts, labels = [row["text"] for row in table], [row["label"] for row in table]
    classifier = SoftPromptClassifier(
        backbone("bert"), method="p-tuning-v2", length=3, epochs=1, pooling=pooling
    )
    classifier.fit(texts, labels)
    assert classifier.get_params()["pooling"] == pooling
    found = classifier.model_.task.pooling
    assert found == "mean" if pooling == "mean" else found in {"cls", "mean", "max", "last"}


@pytest.mark.filterwarnings("ignore::softprompt.errors.SoftpromptWarning")
def test_fit_takes_it(backbone, rows):
    model = fit(
        backbone("bert"),
        Classify("{text}", pooling="max"),
        {"train": rows(8), "validation": rows(4, 1)},
        method="p-tuning-v2",
        config=TrainingConfig(epochs=1),
    )
    assert model.artifact.manifest.task["pooling"] == "max"


def test_a_checkpoint_has_the_choice(parts, tmp_path):
    prepared = parts(*HEAD, task="head")
    run_recipe(prepared.recipe, tmp_path / "run", prepared=prepared)
    state = RunDir(tmp_path / "run").load_checkpoint()
    choice = settle_readout(prepared).readout
    assert ReadoutChoice.from_data(state["readout"]) == choice
