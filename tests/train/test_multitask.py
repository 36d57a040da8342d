"""Several tasks on one shared prompt: one loop, one optimizer, the same numbers after a stop."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from softprompt.artifact import load_artifact
from softprompt.errors import ArtifactError, TrainingError
from softprompt.inference import PromptModel
from softprompt.prompt import InputPrompt
from softprompt.recipe import load_recipe
from softprompt.recipe.multitask import MultitaskRecipe
from softprompt.train import (
    Evaluation,
    Finished,
    RunDir,
    RunSetup,
    Step,
    TrainingWarning,
)
from softprompt.train.accelerator import make_accelerator
from softprompt.train.multitask import (
    check_multitask,
    link_tasks,
    make_multitask_trainer,
    run_multitask,
)
from softprompt.train.multitask_trainer import MultitaskTrainer, divide_steps
from support.recipes import read_numbers, renew_run
from support.scaling import use_loss_scale

METHOD = "multitask-prompt-tuning"
SIZES = {"moods": (11, 5, 4), "answers": (6, 3), "last": (7,)}
TASKS = {"moods": "words", "answers": "text", "last": "words"}
Tasks = tuple[MultitaskRecipe, dict[str, RunSetup]]


@pytest.fixture
def tasks(parts):
    """A multitask recipe with the parts of its tasks, new each time."""

    def make(*names: str, family: str = "llama", temperature: float = 1.0, **changes: Any) -> Tasks:
        kinds = changes.pop("tasks", TASKS)
        changes.setdefault("cache", {"disk_gb": 0.0})
        settings = {"init": {"from": "vocabulary"}} | changes.pop("settings", {})
        prepared = {
            name: parts(
                family, METHOD, sizes=SIZES[name], task=kinds[name], settings=settings, **changes
            )
            for name in names or TASKS
        }
        recipe = MultitaskRecipe({n: p.recipe for n, p in prepared.items()}, temperature)
        return recipe, link_tasks(prepared)

    return make


def make_loop(made: Tasks, *, scale: float | None = None) -> MultitaskTrainer:
    recipe, prepared = made
    accelerator = make_accelerator(recipe.shared.train, cpu=True, folder=None)
    if scale is not None:
        use_loss_scale(accelerator, scale)
    return make_multitask_trainer(prepared, accelerator, recipe=recipe)


def go(
    made: Tasks, folder: Path, *, stop: int | None = None, resume: bool = False
) -> tuple[int, dict[str, PromptModel]]:
    """Train until the event with this number, of those that the folder records."""
    recipe, prepared = made
    seen, models = 0, dict[str, PromptModel]()

    def watch(event: Any) -> None:
        nonlocal seen
        seen += isinstance(event, Step | Evaluation | Finished)
        if seen == stop:
            raise KeyboardInterrupt

    def run() -> dict[str, PromptModel]:
        return run_multitask(recipe, folder, callbacks=[watch], resume=resume, prepared=prepared)

    if stop is None:
        models = run()
    else:
        with pytest.raises(KeyboardInterrupt):
            run()
    return seen, models


def assert_same(folder: Path, whole: Path) -> None:
    """Every number of two finished runs is equal, not only close."""
    assert read_numbers(folder) == read_numbers(whole)
    assert RunDir(folder).read_metrics() == RunDir(whole).read_metrics()
    for part in ("shared", *(f"tasks/{name}" for name in TASKS)):
        first, second = load_artifact(folder / part), load_artifact(whole / part)
        assert first.manifest == second.manifest
        for name, tensor in second.to_tensors().items():
            assert torch.equal(first.to_tensors()[name], tensor), (part, name)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank 2, adafactor, temperature": {
        "settings": {"num_ranks": 2},
        "optimizer": "adafactor",
        "temperature": 3.0,
        "gradient_accumulation_steps": 2,
        "eval_every_steps": 3,
    },
    "heads, stopped early": {
        "family": "bert",
        "tasks": dict.fromkeys(TASKS, "head"),
        "learning_rate": 3.0,
        "epochs": 5,
        "early_stopping_patience": 1,
    },
    "late": {"settings": {"layers": "1:"}},
}


@pytest.mark.parametrize("name", KINDS)
def test_stopped_after_any_event_and_resumed(tasks, tmp_path, name):
    count, _ = go(tasks(**KINDS[name]), tmp_path / "whole")
    for stop in range(1, count + 1, 1 if name == "plain" else 7):
        folder = tmp_path / f"stopped-{stop}"
        go(tasks(**KINDS[name]), folder, stop=stop)
        assert not (folder / "metrics.json").exists()
        go(tasks(**KINDS[name]), folder, resume=True)
        assert_same(folder, tmp_path / "whole")


def test_the_shared_prompt_is_one_and_each_task_is_its_product(tasks):
    """After any step: P_k = P ∘ (U_k V_k), with one P; a step of one task moves no other matrix."""
    loop = make_loop(tasks())
    methods = {name: trainer.method for name, trainer in loop.trainers.items()}
    first = next(iter(methods.values()))
    assert all(method.shared is first.shared for method in methods.values())
    before = {name: method.columns.detach().clone() for name, method in methods.items()}
    start = first.shared.detach().clone()
    turn = next(event for event in loop.iterate() if isinstance(event, Step))
    assert not torch.equal(first.shared, start)
    for name, method in methods.items():
        assert torch.equal(method.columns, before[name]) == (name != turn.task)
    for _ in loop.iterate():
        for method in methods.values():
            product = first.shared * (method.columns @ method.rows)
            assert torch.equal(method().vectors, product)


def test_it_is_one_optimizer_by_hand(tasks):
    """The numbers are those of a plain loop of AdamW over all parameters, task by task."""
    constant = {"lr_scheduler": "constant", "warmup_ratio": 0.0, "max_grad_norm": 0.0}
    recipe, prepared = tasks(optimizer="adamw", **constant)
    again = {name: renew_run(parts) for name, parts in prepared.items()}
    loop = make_loop((recipe, prepared))
    steps = [event for event in loop.iterate() if isinstance(event, Step)]
    methods = {name: parts.method for name, parts in again.items()}
    shared = methods["moods"].shared
    for method in methods.values():
        method.shared = shared
    decay = next(iter(prepared.values())).training.weight_decay
    parameters = list(dict.fromkeys(p for m in methods.values() for p in m.parameters()))
    optimizer = torch.optim.AdamW(parameters, lr=0.05, weight_decay=decay)
    orders = {name: trainer.sampler for name, trainer in loop.trainers.items()}
    turns = Counter[str]()
    batches = {
        n: [b for e in range(9) for b in order.draw_batches(e)] for n, order in orders.items()
    }
    for number, step in enumerate(steps):
        name = loop.draw_round(number // loop.round_steps)[number % loop.round_steps]
        assert step.task == name
        rows = again[name].rows["train"].examples
        batch = [rows[index] for index in batches[name][turns[name]]]
        turns[name] += 1
        count = sum(len(e.target) if isinstance(e.target, tuple) else 1 for e in batch)
        loss = again[name].task.compute_loss(batch, [methods[name]()]).total / count
        assert loss.item() == pytest.approx(step.loss, rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, trainer in loop.trainers.items():
        assert torch.allclose(trainer.method().vectors, methods[name]().vectors, atol=1e-4)


def test_each_row_is_seen_once_a_round(tasks):
    loop = make_loop(tasks(epochs=3))
    steps = [event for event in loop.iterate() if isinstance(event, Step)]
    assert [step.step for step in steps] == [*range(1, loop.total + 1)]
    seen = Counter()
    for step in steps:
        seen[step.task] += step.rows
    assert seen == {name: 3 * SIZES[name][0] for name in TASKS}
    assert loop.draw_round(0) != loop.draw_round(1)


@pytest.mark.parametrize(
    ("batches", "temperature", "wanted"),
    [
        ({"a": 90, "b": 10}, 1.0, {"a": 90, "b": 10}),
        ({"a": 81, "b": 9}, 2.0, {"a": 68, "b": 22}),
        ({"a": 7, "b": 5, "c": 3}, 1e9, {"a": 5, "b": 5, "c": 5}),
        ({"a": 1000, "b": 1}, 0.1, {"a": 1000, "b": 1}),
        ({"a": 3, "b": 3, "c": 1}, 1.0, {"a": 3, "b": 3, "c": 1}),
    ],
)
def test_steps_are_divided_by_size_and_temperature(batches, temperature, wanted):
    """Shares of n^(1/T): 81 and 9 at T = 2 are 9 to 3, so 67.5 and 22.5 of 90."""
    steps = divide_steps(batches, temperature)
    assert sum(steps.values()) - sum(batches.values()) in {0, 1}
    for name, count in wanted.items():
        assert abs(steps[name] - count) <= 1


def test_the_artifact_of_a_task_is_an_ordinary_prompt(tasks, backbone, tmp_path):
    """Bit for bit the prompt that was evaluated, without the method, with the loss of its best."""
    recipe, prepared = tasks(epochs=3)
    _, models = go((recipe, prepared), tmp_path / "run")
    found = [e for e in read_numbers(tmp_path / "run") if e["event"] == "evaluation"]
    for name in ("moods", "answers"):
        folder = tmp_path / "run" / "tasks" / name
        model = PromptModel.from_pretrained(folder, backbone=backbone("llama"))
        assert torch.equal(model.prompt.vectors, models[name].prompt.vectors)
        assert [*load_artifact(folder).to_tensors()] == ["prompt.vectors"]
        own = [event for event in found if event["task"] == name]
        best = min(own, key=lambda event: event["metrics"]["loss"])
        rows = prepared[name].rows["validation"]
        report = model.evaluate_rendered(rows.examples, rows.truth, batch_size=4)
        assert dict(report.metrics) == pytest.approx(best["metrics"], rel=1e-6)
        manifest = model.artifact.manifest
        assert manifest.metrics["step"] == best["step"]
        assert manifest.metrics["trained_with"] == [other for other in TASKS if other != name]
        assert RunDir(folder).is_finished()
        assert {event.get("task") for event in read_numbers(folder)} <= {name, None}
    assert RunDir(tmp_path / "run").read_metrics()["tasks"]["moods"]["test"]["rows"] == 4
    with pytest.raises(ArtifactError, match=r"is a run of several tasks \(answers, last, moods\)"):
        load_artifact(tmp_path / "run")


def test_the_shared_prompt_is_that_of_the_best_mean(tasks, tmp_path):
    """And another run starts from it, exactly, and trains P + E numbers."""
    made = tasks("moods", "answers", epochs=3)
    go(made, tmp_path / "run")
    found = [e for e in read_numbers(tmp_path / "run") if e["event"] == "evaluation"]
    means: dict[int, list[float]] = {}
    for event in found:
        means.setdefault(event["step"], []).append(event["metrics"]["loss"])
    best = min(means, key=lambda step: sum(means[step]))
    shared = load_artifact(tmp_path / "run" / "shared")
    assert isinstance(shared.prompt, InputPrompt)
    metrics = RunDir(tmp_path / "run").read_metrics()
    assert metrics["shared"]["step"] == shared.manifest.metrics["step"] == best


def test_a_new_task_starts_from_the_shared_prompt(tasks, parts, tmp_path):
    go(tasks("moods", "answers"), tmp_path / "run")
    shared = load_artifact(tmp_path / "run" / "shared").prompt.vectors
    init = {"from": "artifact", "path": str(tmp_path / "run" / "shared")}
    new = parts("llama", METHOD, settings={"init": init, "train_shared": False})
    assert torch.equal(new.method().vectors, shared)
    assert sum(p.numel() for p in new.method.parameters()) == sum(shared.shape)


def test_one_step_validates_all_and_ends(tasks):
    """Each task validates at the start, after each round and at the end, in the file's order."""
    loop = make_loop(tasks(max_steps=2))
    planned = loop.count_validations()
    found = [event for event in loop.iterate() if isinstance(event, Evaluation)]
    assert [(e.step, e.task) for e in found] == [
        (step, name) for step in (0, 2) for name in ("moods", "answers")
    ]
    assert planned == len(found)


def test_what_nothing_was_learned_on_is_named(tasks):
    loop = make_loop(tasks(optimizer="sgd", learning_rate=1e-30))
    warnings = [event for event in loop.iterate() if isinstance(event, TrainingWarning)]
    untrained = [event.task for event in warnings if "nothing was learned" in event.message]
    assert untrained == ["moods", "answers"]  # the last one has no validation rows


def test_different_starts_are_refused(tasks):
    recipe, prepared = tasks()
    with torch.no_grad():
        prepared["last"].method.shared.mul_(2)
    with pytest.raises(TrainingError) as caught:
        make_loop((recipe, prepared))
    assert str(caught.value) == (
        "the shared prompts of 'moods' and 'last' differ at the start (shapes [3, 32] and [3, "
        "32]), but the tasks train one. Give all templates the same number of soft tokens, and all "
        "tasks the same initialization."
    )


def test_another_temperature_or_other_tasks_cannot_resume(tasks, tmp_path):
    go(tasks(), tmp_path / "run", stop=5)
    with pytest.raises(ArtifactError, match=r"sampling_temperature: 1.0, now 2.0\. Restore it"):
        go(tasks(temperature=2.0), tmp_path / "run", resume=True)
    with pytest.raises(ArtifactError, match=r"tasks: \['moods', 'answers', 'last'\], now"):
        go(tasks("moods", "last"), tmp_path / "run", resume=True)
    with pytest.raises(ArtifactError, match=r"train\.batch_size: 4, now 5"):
        go(tasks(batch_size=5), tmp_path / "run", resume=True)


def test_a_run_may_be_extended(tasks, tmp_path):
    constant = {"lr_scheduler": "constant", "warmup_ratio": 0.0}
    go(tasks(**constant), tmp_path / "run", stop=9)
    go(tasks(**constant, epochs=4), tmp_path / "run", resume=True)
    go(tasks(**constant, epochs=4), tmp_path / "whole")
    assert_same(tmp_path / "run", tmp_path / "whole")
    go(tasks(), tmp_path / "long", stop=12)
    with pytest.raises(ArtifactError, match=r"end it at step 1\. Give a later end"):
        go(tasks(max_steps=1), tmp_path / "long", resume=True)


def test_check_names_the_task_of_each_fault(tasks, backbone):
    recipe, _ = tasks()
    missing = {name: load_recipe(r, ["data.train=no.csv"]) for name, r in recipe.recipes.items()}
    result = check_multitask(MultitaskRecipe(missing), backbone=backbone("llama"))
    assert result.plan is None
    assert {fault.partition(":")[0] for fault in result.faults} == {
        f"task {name!r}" for name in TASKS
    }
    assert all("there is no file no.csv" in fault for fault in result.faults)


def test_a_checkpoint_that_is_not_one_of_several_tasks(tasks, tmp_path):
    go(tasks(), tmp_path / "run", stop=5)
    run = RunDir(tmp_path / "run")
    state = run.load_checkpoint()
    run.save_checkpoint({key: state[key] for key in state if key != "loop"})
    with pytest.raises(ArtifactError, match=r"does not fit its recipe \(KeyError: 'loop'\)"):
        go(tasks(), tmp_path / "run", resume=True)


def test_the_parts_are_replaced_in_order(tasks):
    """The names of the others are recorded with each task."""
    _, prepared = tasks("moods", "last")
    assert [p.trained_with for p in prepared.values()] == [("last",), ("moods",)]
    assert all(replace(p, trained_with=()).data_record == p.data_record for p in prepared.values())


def test_fp16_s_scale_changes_no_number(tasks):
    """Each task's trainer made an optimizer before the shared one, which alone is unscaled."""

    def list_norms(scale: float | None) -> list[float]:
        loop = make_loop(tasks(), scale=scale)
        return [event.norm for event in loop.iterate() if isinstance(event, Step)]

    assert list_norms(1024.0) == pytest.approx(list_norms(None), rel=1e-4)
