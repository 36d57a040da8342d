"""Several seeds: each as a run of its own, the best or all of them kept, and exact resuming."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from softprompt import (
    Classify,
    Ensemble,
    PromptModel,
    TrainingConfig,
    export_prompt,
    fit,
    load_backbone,
    load_model,
    make_recipe,
    prune,
    push,
)
from softprompt.artifact import load_artifact
from softprompt.artifact.ensembles import is_ensemble, list_members, load_ensemble
from softprompt.compare.config import check_budget
from softprompt.errors import ArtifactError, PromptError, RecipeError
from softprompt.injection.forward import forward
from softprompt.sklearn import SoftPromptClassifier
from softprompt.tasks import base as passes_of
from softprompt.train import (
    FoldProgress,
    PhaseStarted,
    PrecomputeProgress,
    RunDir,
    SearchProgress,
    Step,
    TrainingWarning,
    load_best_prompt,
    run_recipe,
    setup_run,
)
from softprompt.train.display import ProgressDisplay
from softprompt.train.seeds import SeedResult, choose_best_seed, describe_seeds
from support.recipes import make_recipe_data

KINDS = {
    "prefix with a head": ("bert", "p-tuning-v2", "head"),
    "label words": ("llama", "prompt-tuning", "words"),
    "reparametrized": ("llama", "p-tuning", "words"),
    "text": ("t5", "prompt-tuning", "text"),
}
SEEDS = (7, 8, 9)


@pytest.fixture
def make(backbone, rows):
    """The parts of a run with three seeds, new each time."""

    def make(kind: str = "prefix with a head", *, folds=None, test=True, **train):
        family, method, task = KINDS[kind]
        settings = {"seeds": 3, "init": {"from": "random"}} | train
        init = settings.pop("init")
        data = make_recipe_data(family, method, task=task, settings={"init": init}, **settings)
        data["data"] |= {} if folds is None else {"folds": folds}
        tables = {"train": rows(12)}
        tables |= {} if folds else {"validation": rows(6, 1)}
        tables |= {"test": rows(5, 2)} if test else {}
        return setup_run(
            make_recipe(data),
            backbone=backbone(family),
            tables={name: Dataset.from_list(part) for name, part in tables.items()},
        )

    return make


def train(prepared, folder: Path, **options):
    """Train the parts of a run into a folder; what it keeps, and its metrics."""
    model = run_recipe(prepared.recipe, folder, prepared=prepared, **options)
    return model, RunDir(folder).read_metrics()


def are_equal(one, other) -> bool:
    """Whether two artifacts have the same tensors, bit for bit."""
    first, second = one.to_tensors(), other.to_tensors()
    same = (torch.equal(first[name], tensor) for name, tensor in second.items())
    return first.keys() == second.keys() and all(same)


@pytest.mark.parametrize("kind", KINDS)
def test_each_seed_is_a_run_of_its_own(make, tmp_path, kind) -> None:
    """Tensor for tensor that of a recipe with this seed and the same rows."""
    prepared = make(kind)
    _, metrics = train(prepared, tmp_path / "run")
    for number, seed in enumerate(SEEDS):
        alone = make(kind, seeds=1)
        recipe = alone.recipe.model_copy(update={"seed": seed})
        tables = {name: alone.tables[name] for name in alone.tables}
        alone = setup_run(recipe, backbone=alone.backbone, tables=tables)
        if prepared.readout is None and alone.has_open_readout:
            kept = load_artifact(tmp_path / "run" / f"seed-{seed}").manifest.task["pooling"]
            alone = replace(alone, task=alone.task.with_pooling(kept), readout=None)
            settings = alone.recipe.task.model_copy(update={"pooling": kept})
            alone = replace(alone, recipe=recipe.model_copy(update={"task": settings}))
        _, theirs = train(alone, tmp_path / f"alone-{seed}")
        ours = metrics["seeds"]["each"][number]
        assert are_equal(
            load_artifact(tmp_path / "run" / f"seed-{seed}"),
            load_artifact(tmp_path / f"alone-{seed}"),
        )
        assert ours["validation"] == theirs["validation"]
        assert ours["test"]["loss"] == pytest.approx(theirs["test"]["loss"], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_by_validation_is_kept(make, tmp_path, kind) -> None:
    model, metrics = train(make(kind), tmp_path / "run")
    each = metrics["seeds"]["each"]
    losses = {seed["seed"]: seed["validation"]["loss"] for seed in each}
    assert len({*losses.values()}) == 3  # seeds differ
    chosen = min(losses, key=losses.__getitem__)
    assert metrics["seeds"]["chosen"] == chosen
    assert are_equal(model.artifact, load_artifact(tmp_path / "run" / f"seed-{chosen}"))
    assert are_equal(model.artifact, load_artifact(tmp_path / "run"))
    assert model.artifact.manifest.metrics["seed"] == chosen
    assert metrics["validation"]["loss"] == losses[chosen]
    (of_chosen,) = [seed["test"] for seed in each if seed["seed"] == chosen]
    assert metrics["test"]["loss"] == of_chosen["loss"]
    spread = metrics["seeds"]["spread"]["validation"]["loss"]
    assert spread["mean"] == pytest.approx(np.mean([*losses.values()]))
    assert spread["standard_deviation"] == pytest.approx(np.std([*losses.values()], ddof=1))
    told = describe_seeds(metrics["seeds"])
    assert told.startswith("Of 3 seeds (validation ")
    assert f"seed {chosen} is the best by validation." in told


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "text"])
def test_an_ensemble_has_the_mean_of_its_seeds_probabilities(make, rows, tmp_path, kind) -> None:
    """In memory, and loaded by the one door that also loads a single prompt."""
    prepared = make(kind, combine_seeds="ensemble")
    kept, metrics = train(prepared, tmp_path / "run")
    backbone, table = prepared.backbone, rows(9, 3)
    members = [
        PromptModel.from_pretrained(tmp_path / "run" / f"seed-{seed}", backbone=backbone)
        for seed in SEEDS
    ]
    expected = np.mean([member.predict_proba(table) for member in members], axis=0)
    loaded = load_model(tmp_path / "run", backbone=backbone)
    assert isinstance(kept, Ensemble)
    for model in (kept, loaded, Ensemble.from_pretrained(tmp_path / "run", backbone=backbone)):
        assert model.vote == "mean"
        np.testing.assert_allclose(model.predict_proba(table), expected, atol=1e-6)
    # A single prompt comes through the same door.
    assert isinstance(load_model(tmp_path / "run" / "seed-7", backbone=backbone), PromptModel)
    # The recorded scores are those of the ensemble: the loss is that of the mean probability.
    labels = [row["label"] for row in rows(6, 1)]
    validation = loaded.predict_proba(rows(6, 1))
    right = [row[loaded.labels.index(label)] for row, label in zip(validation, labels, strict=True)]
    assert metrics["validation"]["loss"] == pytest.approx(-np.log(right).mean(), rel=1e-4)
    assert metrics["test"]["loss"] == pytest.approx(loaded.evaluate(rows(5, 2)).metrics["loss"])
    assert metrics["seeds"]["chosen"] is None
    assert "3 seeds (" in describe_seeds(metrics["seeds"])


def test_generated_texts_are_put_to_the_vote(make, rows, tmp_path) -> None:
    kept, metrics = train(make("text", combine_seeds="ensemble"), tmp_path / "run")
    assert kept.vote == "majority"
    texts = [[answer.label for answer in member.predict(rows(5, 2))] for member in kept.members]
    for answer, voted in zip(kept.predict(rows(5, 2)), zip(*texts, strict=True), strict=True):
        assert Counter(voted)[answer.label] == max(Counter(voted).values())
    assert {*metrics["test"]} >= {"loss", "exact_match"}


def test_all_seeds_answer_in_one_pass(make, rows, tmp_path, monkeypatch) -> None:
    kept, _ = train(make(combine_seeds="ensemble"), tmp_path / "run")
    sizes = []

    def count(backbone, inputs, **more):
        sizes.append(len(inputs.input_ids))
        return forward(backbone, inputs, **more)

    monkeypatch.setattr(passes_of, "forward", count)
    kept.predict(rows(4, 3))
    assert sizes == [3 * 4]


def test_the_seed_that_is_planted_best_is_chosen() -> None:
    def plant(seed: int, **metrics) -> SeedResult:
        return SeedResult(seed, None, {"best_step": 3, "steps": 9, **metrics})

    losses = [0.5, 0.2, 0.9]
    planted = [
        plant(seed, validation={"loss": loss, "accuracy": loss})
        for seed, loss in zip(SEEDS, losses, strict=True)
    ]
    assert choose_best_seed(planted, metric="loss").seed == 8
    assert choose_best_seed(planted, metric="accuracy").seed == 9
    assert choose_best_seed([planted[0], planted[0]], metric="loss") is planted[0]
    # With folds their means decide.
    folded = [
        plant(seed, validation={}, cross_validation={"mean": {"loss": -loss}})
        for seed, loss in zip(SEEDS, losses, strict=True)
    ]
    assert choose_best_seed(folded, metric="loss").seed == 9


@pytest.mark.parametrize("combined", ["best", "ensemble"])
@pytest.mark.parametrize("folds", [None, 3])
@pytest.mark.parametrize("place", [("step", 2), ("step", 8), ("step", 16), ("test", 1)])
def test_a_stopped_run_resumes_to_the_same_numbers(make, tmp_path, combined, folds, place) -> None:
    """Stopped in the first, second and third seed, and after the last one."""
    options = {"combine_seeds": combined, "folds": folds, "keep_plain_head": True}
    kept, whole = train(make(**options), tmp_path / "whole")
    kind, count = place
    seen = 0

    def stop(event) -> None:
        nonlocal seen
        seen += isinstance(event, Step) if kind == "step" else is_phase(event, "testing")
        if seen == count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make(**options), tmp_path / "run", callbacks=[stop])
    if folds is None or kind == "test":
        finished = [*(tmp_path / "run").glob("seed-*/result.json")]
        assert len(finished) == {2: 0, 8: 1, 16: 2, 1: 3}[count]
    events = []
    again, metrics = train(
        make(**options), tmp_path / "run", resume=True, callbacks=[events.append]
    )
    assert metrics == whole
    folder = tmp_path / "run"
    for seed in SEEDS:
        theirs = load_artifact(tmp_path / "whole" / f"seed-{seed}")
        assert load_artifact(folder / f"seed-{seed}").manifest == theirs.manifest
        assert are_equal(load_artifact(folder / f"seed-{seed}"), theirs)
    if kind == "test":  # nothing is trained again
        assert not any(isinstance(event, Step | FoldProgress) for event in events)
    assert type(again) is type(kept)
    assert is_ensemble(folder) == isinstance(kept, Ensemble)
    assert RunDir(folder).is_finished()


def is_phase(event, name: str) -> bool:
    return isinstance(event, PhaseStarted) and event.phase == name


@pytest.mark.parametrize("combined", ["best", "ensemble"])
def test_folds_choose_the_length_once_and_each_seed_only_if_one_is_chosen(
    make, tmp_path, combined
) -> None:
    events = []
    _, metrics = train(
        make(folds=3, combine_seeds=combined), tmp_path / "run", callbacks=[events.append]
    )
    begun = sum(isinstance(event, FoldProgress) and not event.done for event in events)
    assert begun == 3 * (3 if combined == "best" else 1)
    each = metrics["seeds"]["each"]
    assert len({seed["steps"] for seed in each}) == 1
    if combined == "ensemble":
        assert metrics["cross_validation"]["mean"] == each[0]["folds"]
        assert "folds" not in metrics["seeds"]["spread"]
        return
    losses = {seed["seed"]: seed["folds"]["loss"] for seed in each}
    assert metrics["seeds"]["chosen"] == min(losses, key=losses.__getitem__)
    assert metrics["cross_validation"]["mean"]["loss"] == min(losses.values())
    # The folds of a seed are those of a run with this seed, measured at the same step.
    kept = json.loads((tmp_path / "run" / "seed-8" / "folds.json").read_text())["folds"]
    first = json.loads((tmp_path / "run" / "folds.json").read_text())["folds"]
    assert [fold["progress"] for fold in kept] == [fold["progress"] for fold in first]
    assert kept != first


def test_rate_and_cached_states_are_those_of_all_seeds(make, tmp_path) -> None:
    """The rate is searched once, and states below the prompt are computed once."""
    events = []
    prepared = make(
        "reparametrized", learning_rate="auto", epochs=3, cache={"disk_gb": 0.0}, init=None
    )
    template = prepared.recipe.task.model_copy(update={"template": "{text} so{soft:3} movie"})
    recipe = prepared.recipe.model_copy(update={"task": template})
    prepared = setup_run(recipe, backbone=prepared.backbone, tables=dict(prepared.tables))
    _, metrics = train(prepared, tmp_path / "run", callbacks=[events.append])
    cached = [event for event in events if isinstance(event, PrecomputeProgress)]
    assert sum(event.done == event.total for event in cached) == 1
    searched = [event for event in events if isinstance(event, SearchProgress)]
    assert len(searched) == metrics["learning_rate_search"]["steps"]
    rates = {
        max(e["learning_rate"] for e in folder.read_events() if e["event"] == "step")
        for folder in RunDir(tmp_path / "run").list_seeds()
    }
    assert rates == {metrics["training"]["learning_rate"]}


def test_a_plain_head_is_compared_with_what_the_seeds_give(make, tmp_path, monkeypatch) -> None:
    from softprompt.train import verdict

    fitted = verdict.fit_plain_head
    for accuracy, kept in ((0.0, "ensemble"), (1.0, "plain head")):
        planted = {"score": accuracy, "loss": 99.0 if not accuracy else 0.0}
        monkeypatch.setattr(
            verdict, "fit_plain_head", lambda parts, p=planted: replace(fitted(parts), **p)
        )
        folder = tmp_path / kept
        model, metrics = train(make(combine_seeds="ensemble", keep_plain_head=True), folder)
        assert metrics["kept"] == kept
        assert isinstance(model, Ensemble) == is_ensemble(folder) == (kept == "ensemble")
        assert metrics["verdict"].startswith("3 seeds (validation accuracy ")
        assert f"the {kept} is right in {metrics['test']['accuracy']:.1%}" in metrics["verdict"]


def test_of_folds_the_verdict_says_that_the_first_seed_was_measured(make, tmp_path) -> None:
    prepared = make(folds=3, combine_seeds="ensemble", keep_plain_head=True)
    _, metrics = train(prepared, tmp_path / "run")
    assert "its first seed alone is right in" in metrics["verdict"]
    assert metrics["plain_head"]["prompt"]["loss"] == metrics["cross_validation"]["mean"]["loss"]


@pytest.mark.parametrize("combined", ["best", "ensemble"])
def test_nothing_is_chosen_by_test_rows(make, rows, tmp_path, combined) -> None:
    found = []
    for seed in (2, 9):
        prepared = make(combine_seeds=combined, keep_plain_head=True, test=False)
        tables = {**prepared.tables, "test": Dataset.from_list(rows(5, seed))}
        prepared = setup_run(prepared.recipe, backbone=prepared.backbone, tables=tables)
        train(prepared, tmp_path / f"run-{seed}")
        found.append(RunDir(tmp_path / f"run-{seed}").read_metrics())
    first, second = found
    assert first["test"] != second["test"]
    for name in ("validation", "kept", "plain_head"):
        assert first[name] == second[name]
    assert first["seeds"]["chosen"] == second["seeds"]["chosen"]


@pytest.mark.filterwarnings("ignore::softprompt.errors.SoftpromptWarning")
@pytest.mark.parametrize("combined", ["best", "ensemble"])
def test_in_memory_it_is_the_same(make, rows, tmp_path, saved, combined) -> None:
    backbone = load_backbone(str(saved("bert")), device="cpu", dtype="float32")
    config = TrainingConfig(seeds=2, combine_seeds=combined, epochs=1, batch_size=4)
    task, splits = Classify("{text}"), {"train": rows(12), "validation": rows(6, 1)}
    model = fit(backbone, task, splits, method="p-tuning-v2", config=config)
    members = model.members if isinstance(model, Ensemble) else [model]
    assert [m.artifact.manifest.metrics["seed"] for m in members] == (
        [42, 43] if combined == "ensemble" else [members[0].artifact.manifest.metrics["seed"]]
    )
    folder = model.save(tmp_path / "kept")
    again = load_model(folder, backbone=backbone)
    np.testing.assert_array_equal(again.predict_proba(rows(3)), model.predict_proba(rows(3)))
    texts, labels = [r["text"] for r in rows(12)], [r["label"] for r in rows(12)]
    classifier = SoftPromptClassifier(
        str(saved("bert")), epochs=1, batch_size=8, seeds=2, combine_seeds=combined
    )
    shares = classifier.fit(texts, labels).predict_proba(texts)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)


def test_a_stopped_run_answers_with_its_seeds_so_far(make, rows, tmp_path, saved) -> None:
    def stop(event) -> None:
        if isinstance(event, Step) and event.step == 4 and seen["seed"] == 2:
            raise KeyboardInterrupt
        seen["seed"] += is_phase(event, "training")

    for combined in ("best", "ensemble"):
        seen = {"seed": 0}
        prepared = make(combine_seeds=combined)
        lines = {name: rows(*of) for name, of in {"train": (12,), "validation": (6, 1)}.items()}
        data = prepared.recipe.as_data()
        data["backbone"]["name"] = str(saved("bert"))
        for name, part in lines.items():
            path = tmp_path / f"{name}.jsonl"
            path.write_text("\n".join(map(json.dumps, part)), "utf-8")
            data["data"][name] = str(path)
        folder = tmp_path / combined
        with pytest.raises(KeyboardInterrupt):
            run_recipe(make_recipe(data), folder, callbacks=[stop])
        best = load_best_prompt(folder)
        if combined == "ensemble":
            assert len(best.members) == 2
            assert are_equal(best.members[0].artifact, load_artifact(folder / "seed-7"))
        else:
            assert best.artifact.manifest.metrics["seed"] in (7, 8)


def test_where_folds_choose_a_seed_that_is_not_finished_has_no_score(
    make, rows, tmp_path, saved
) -> None:
    seen = []

    def stop(event) -> None:
        seen.append(event)
        if sum(is_phase(each, "training") for each in seen) == 2 and isinstance(event, Step):
            raise KeyboardInterrupt

    data = make(folds=3, test=False, epochs=4).recipe.as_data()
    data["backbone"]["name"] = str(saved("bert"))
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows(12))), "utf-8")
    data["data"]["train"] = str(tmp_path / "train.jsonl")
    with pytest.raises(KeyboardInterrupt):
        run_recipe(make_recipe(data), tmp_path / "run", callbacks=[stop])
    best = load_best_prompt(tmp_path / "run")
    assert best.artifact.manifest.metrics["seed"] == 7


def test_finished_seeds_of_another_recipe_are_refused(make, tmp_path) -> None:
    def stop(event) -> None:
        if isinstance(event, Step):
            steps.append(event)
            if len(steps) == 8:
                raise KeyboardInterrupt

    steps = []
    with pytest.raises(KeyboardInterrupt):
        train(make(), tmp_path / "run", callbacks=[stop])
    longer = make(epochs=5)
    with pytest.raises(ArtifactError, match=r"the finished seed in .*seed-7 had .*train\.epochs"):
        train(longer, tmp_path / "run", resume=True)
    # The message of a damaged checkpoint names the run, which is what can be resumed.
    shutil.rmtree(tmp_path / "run" / "seed-7")
    (tmp_path / "run" / "seed-8" / "checkpoint" / "digests.json").write_text("{}")
    with pytest.raises(ArtifactError) as error:
        train(make(), tmp_path / "run", resume=True)
    assert str(error.value).endswith(f"softprompt resume {tmp_path / 'run'}")


def test_settings_that_do_not_go_together_are_refused(make) -> None:
    data = make_recipe_data(combine_seeds="ensemble")
    with pytest.raises(RecipeError, match=r"train\.combine_seeds: .*train\.seeds is 1\. Set"):
        make_recipe(data)
    data = make_recipe_data(seeds=3) | {"seed": 2**31 - 2}
    with pytest.raises(RecipeError, match=r"train\.seeds: 3 seeds .* beyond 2147483647"):
        make_recipe(data)
    assert make_recipe(data | {"seed": 2**31 - 3}).train.seeds == 3
    tables = {"train": make().tables["train"]}
    recipe, backbone = make().recipe, make().backbone
    with pytest.raises(RecipeError, match=r"there are none\. Give some .*data\.folds.*ensemble"):
        setup_run(recipe, backbone=backbone, tables=tables)
    with pytest.raises(RecipeError, match=r"train\.seeds: a comparison .*num_seeds"):
        check_budget(recipe)


def test_what_needs_one_prompt_says_which_there_are(make, tmp_path) -> None:
    prepared = make(combine_seeds="ensemble")
    train(prepared, tmp_path / "run")
    kept = load_model(tmp_path / "run", backbone=prepared.backbone)
    for refused in (
        lambda: push(kept, "ada/kept"),
        lambda: export_prompt("npy", kept, output=tmp_path / "exported"),
        lambda: prune(kept),
    ):
        with pytest.raises(PromptError, match=r"an ensemble of 3 prompts .*members\[0\]"):
            refused()
    for refused in (
        lambda: load_artifact(tmp_path / "run"),
        lambda: PromptModel.from_pretrained(tmp_path / "run", backbone=prepared.backbone),
    ):
        with pytest.raises(ArtifactError, match=r"an ensemble of 3 prompts, .*seed-7.*load_model"):
            refused()
    member = list_members(tmp_path / "run")[1]
    assert member == tmp_path / "run" / "artifact" / "seed-8"
    single = PromptModel.from_pretrained(member, backbone=prepared.backbone)
    assert single.artifact.manifest.metrics["seed"] == 8


def damage_nothing(_folder: Path) -> None:
    """The ensemble is whole."""


def name_a_folder_outside(folder: Path) -> None:
    described = json.loads((folder / "ensemble.json").read_text())
    described["members"] = {"../other": "0" * 64}
    (folder / "ensemble.json").write_text(json.dumps(described))


def swap_members(folder: Path) -> None:
    (folder / "seed-7").rename(folder / "x")
    (folder / "seed-8").rename(folder / "seed-7")
    (folder / "x").rename(folder / "seed-8")


def link_outside(folder: Path) -> None:
    outside = folder.parent / "outside"
    (folder / "seed-8").rename(outside)
    (folder / "seed-8").symlink_to(outside)


DAMAGES = {
    "whole": (damage_nothing, None),
    "no JSON": (lambda f: (f / "ensemble.json").write_text("{"), "is not JSON"),
    "no members": (
        lambda f: (f / "ensemble.json").write_text('{"schema": 1, "vote": "mean", "members": {}}'),
        "at least one member",
    ),
    "outside": (name_a_folder_outside, "not the name of a folder in it"),
    "a link": (link_outside, "is a link to a folder outside"),
    "missing": (lambda f: shutil.rmtree(f / "seed-8"), "the member seed-8 is missing"),
    "swapped": (swap_members, "the manifest of seed-7 has the SHA-256"),
    "another vote": (
        lambda f: (f / "ensemble.json").write_text(
            (f / "ensemble.json").read_text().replace("mean", "median")
        ),
        "unknown vote 'median'",
    ),
}


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory) -> Path:
    """The folder of the first ensemble that a test of damages trains."""
    return tmp_path_factory.mktemp("ensemble") / "run"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ensemble_is_refused(make, ensemble, tmp_path, damage) -> None:
    prepared = make(combine_seeds="ensemble")
    if not ensemble.exists():
        train(prepared, ensemble)
    folder = tmp_path / "run" / "artifact"
    shutil.copytree(ensemble, tmp_path / "run")
    change, message = DAMAGES[damage]
    change(folder)
    if message is None:
        assert [*load_ensemble(tmp_path / "run").members] == ["seed-7", "seed-8", "seed-9"]
        return
    with pytest.raises(Exception, match=message):
        load_model(tmp_path / "run", backbone=prepared.backbone)
    if damage != "another vote":  # the vote is known to inference alone
        # What is damaged is made again by resuming the run, from the seeds' own folders.
        assert not RunDir(tmp_path / "run").is_finished()
    if damage == "missing":
        train(make(combine_seeds="ensemble"), tmp_path / "run", resume=True)
        theirs = load_ensemble(ensemble).members["seed-8"]
        assert are_equal(load_ensemble(tmp_path / "run").members["seed-8"], theirs)


def test_progress_names_the_seed_and_says_notes_once(make, tmp_path, capsys) -> None:
    events = []
    with ProgressDisplay(quiet=False) as display:
        train(make(), tmp_path / "run", callbacks=[display.show, events.append])
        assert display.stopped == "stopped at step 6 of 6 of seed 3 of 3"
    shown = capsys.readouterr().err
    for number in (1, 2, 3):
        assert shown.count(f"training seed {number} of 3 …") == 1
    assert shown.count("readout: ") == 1
    warned = [event.message for event in events if isinstance(event, TrainingWarning)]
    assert sum(message.startswith("few rows") for message in warned) == 1


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"init": {"from": "text", "text": "good bad movie"}, "batch_size": 12}, True),
        ({"init": {"from": "text", "text": "good bad movie"}, "batch_size": 11}, False),
        ({"init": {"from": "random"}, "batch_size": 12}, False),
    ],
)
def test_seeds_that_make_no_difference_are_reported(make, tmp_path, changes, warned) -> None:
    events = []
    prepared = make("label words", epochs=1, **changes)
    _, metrics = train(prepared, tmp_path / "run", callbacks=[events.append])
    messages = [event.message for event in events if isinstance(event, TrainingWarning)]
    assert any("the seeds make no difference" in message for message in messages) is warned
    spread = metrics["seeds"]["spread"]["validation"]["loss"]["standard_deviation"]
    assert (spread < 1e-5) is warned


def test_trackers_follow_each_seed_alone(make, tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(make(trackers=["tensorboard"]), tmp_path / "run")
    for seed in SEEDS:
        (file,) = (tmp_path / "run" / f"softprompt-seed-{seed}").rglob("*tfevents*")
        found = EventAccumulator(str(file)).Reload().Scalars("train/loss")
        events = RunDir(tmp_path / "run").open_seed(seed).read_events()
        wanted = [event["loss"] for event in events if event["event"] == "step"]
        assert [scalar.value for scalar in found] == pytest.approx(wanted, rel=1e-6)
