"""Starting from a prompt of another task: what is taken, and the choice among several."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from softprompt import Classify, PTuningV2, RunDir, SoftpromptError, TrainingConfig, fit
from softprompt.artifact import Artifact, load_artifact, save_artifact
from softprompt.errors import PromptError, RecipeError, TrainingError
from softprompt.prompt import InputPrompt, to
from softprompt.recipe import load_recipe
from softprompt.train import Trainer, make_run_artifact, run_recipe, setup_run
from softprompt.train.accelerator import make_accelerator
from softprompt.train.transfer import StartChoice, settle_start, try_starts

pytestmark = [
    pytest.mark.filterwarnings("ignore::softprompt.errors.SoftpromptWarning"),
]


def read(folder: str | Path) -> Artifact:
    return load_artifact(Path(folder))


@pytest.fixture
def sources(parts, trainer_of, tmp_path):
    """Artifacts of one form: the planted one is what a long run on the same task reaches."""

    def make(family: str, method: str, *, task: str = "words") -> dict[str, str]:
        prepared = parts(family, method, task=task, learning_rate=0.1, epochs=12)
        trainer = trainer_of(prepared)
        start = trainer.start
        for _ in trainer.run():
            pass
        good = make_run_artifact(prepared, trainer.get_best(), start=start)
        torch.manual_seed(3)
        paths = {}
        for name, scale in (("noise", 3.0), ("good", 0.0), ("more", 6.0)):
            moved = good.prompt.map_tensors(lambda t, s=scale: t + s * torch.randn_like(t))
            artifact = replace(good, prompt=moved)
            paths[name] = str(save_artifact(artifact, tmp_path / name))
        return paths

    return make


def choose(parts, paths: dict[str, str], *args: str, **changes):
    init = {"from": "artifacts", "paths": [*paths.values()]}
    return parts(*args, settings={"init": init}, **changes)


def accelerate(prepared):
    return make_accelerator(prepared.recipe.train, cpu=True, folder=None)


@pytest.mark.parametrize(
    ("family", "method", "task"),
    [("llama", "prompt-tuning", "words"), ("llama", "p-tuning-v2", "words"),
     ("bert", "p-tuning-v2", "head")],
)  # fmt: skip
def test_the_planted_prompt_is_chosen(parts, sources, trainer_of, family, method, task):
    paths = sources(family, method, task=task)
    prepared = choose(parts, paths, family, method, task=task)
    before = {} if prepared.task.head is None else {
        name: t.clone() for name, t in prepared.task.head.state_dict().items()
    }  # fmt: skip
    settled = settle_start(prepared, accelerate(prepared), callbacks=())
    good = read(paths["good"]).prompt
    for name, tensor in settled.method().to_tensors().items():
        assert torch.equal(tensor, good.to_tensors()[name])
    choice = StartChoice.from_data(settled.start_choice)
    assert choice.chosen == paths["good"]
    assert (
        f"the prompt starts as that of {paths['good']}, which has the lowest" in settled.notes[-1]
    )
    # A trained head is judged after some steps, and starts as it would have.
    assert (choice.steps > 0) == (task == "head")
    for name, tensor in before.items():
        assert torch.equal(settled.task.head.state_dict()[name], tensor)
    if task == "words":
        loss = trainer_of(settled).evaluate(settled.rows["validation"]).metrics["loss"]
        assert choice.losses[paths["good"]] == pytest.approx(loss, rel=1e-5)


def test_a_run_records_its_choice_and_resumes_with_it(parts, sources, tmp_path):
    paths = sources("llama", "prompt-tuning")
    args = ("llama", "prompt-tuning")
    whole = choose(parts, paths, *args)
    run_recipe(whole.recipe, tmp_path / "whole", prepared=whole)
    stopped = choose(parts, paths, *args)

    def stop(event) -> None:
        if event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(stopped.recipe, tmp_path / "run", callbacks=[stop], prepared=stopped)
    again = choose(parts, paths, *args)
    run_recipe(again.recipe, tmp_path / "run", resume=True, prepared=again)
    first, second = (RunDir(tmp_path / name).read_metrics() for name in ("whole", "run"))
    assert first == second
    assert first["start_choice"]["chosen"] == paths["good"]
    one, other = (read(tmp_path / name) for name in ("whole", "run"))
    assert one.manifest == other.manifest
    assert torch.equal(one.prompt.vectors, other.prompt.vectors)


def test_prompts_of_different_forms_are_refused(parts, sources, tmp_path):
    paths = sources("llama", "prompt-tuning")
    artifact = read(paths["good"])
    long = InputPrompt(torch.randn(5, 32))
    manifest = replace(
        artifact.manifest, length=5, shapes={"prompt.vectors": [5, 32]},
        template="{soft:5}{text} movie", task=artifact.manifest.task | {"template": None},
    )  # fmt: skip
    save_artifact(replace(artifact, prompt=long, manifest=manifest), tmp_path / "long")
    with pytest.raises(PromptError) as caught:
        choose(parts, paths | {"long": str(tmp_path / "long")}, "llama", "prompt-tuning")
    assert str(caught.value) == (
        f"the prompts to choose from differ in form: {paths['noise']} has vectors [3, 32], "
        f"{tmp_path / 'long'} has vectors [5, 32]. Name prompts of one kind, length and backbone."
    )


@pytest.mark.parametrize("paths", [[], ["a"], ["a", "a"], ["a", "b", "a"]])
def test_fewer_than_two_are_not_a_choice(data, paths):
    table = data("llama", settings={"init": {"from": "artifacts", "paths": paths}})
    with pytest.raises(RecipeError) as caught:
        load_recipe(table)
    assert caught.value.faults == (
        "method.init.paths: must be at least two different artifacts, to choose from.",
    )


def test_paths_need_their_source(data):
    for init, fault in (
        ({"from": "artifacts"}, "method.init.paths: is missing with from = 'artifacts'. Add it."),
        (
            {"from": "random", "paths": ["a", "b"]},
            "method.init.paths: means nothing with from = 'random'. Take it out.",
        ),
    ):
        with pytest.raises(RecipeError) as caught:
            load_recipe(data("llama", settings={"init": init}))
        assert caught.value.faults == (fault,)


def test_an_artifact_that_is_missing_is_named(parts, sources, tmp_path):
    paths = sources("llama", "prompt-tuning")
    with pytest.raises(SoftpromptError, match="there is no folder"):
        choose(parts, paths | {"gone": str(tmp_path / "gone")}, "llama", "prompt-tuning")


def test_fit_chooses_among_artifacts_in_memory(rows, backbone, sources):
    artifacts = [read(path) for path in sources("llama", "p-tuning-v2").values()]
    task = Classify("{text} movie", verbalizer={"negative": " bad", "positive": " good"})
    data = {"train": rows(8), "validation": rows(5, 1)}
    config = TrainingConfig(max_steps=1, learning_rate=1e-30)
    method = PTuningV2(length=3)
    model = fit(backbone("llama"), task, data, method=method, init=artifacts, config=config)
    assert torch.equal(model.prompt.keys, artifacts[1].prompt.keys)
    assert model.artifact.manifest.metrics["start_choice"]["chosen"] == "artifact 2"
    with pytest.raises(TrainingError, match="or a list of two artifacts or more"):
        fit(backbone("llama"), task, data, method=method, init=artifacts[:1])


def test_training_that_fails_from_everywhere_is_an_error(parts, sources, monkeypatch):
    paths = sources("bert", "p-tuning-v2", task="head")
    prepared = choose(parts, paths, "bert", "p-tuning-v2", task="head")

    def fail(_trainer) -> None:
        message = "the loss is NaN"
        raise TrainingError(message)

    monkeypatch.setattr(Trainer, "train_step", fail)
    with pytest.raises(TrainingError, match=r"failed from every artifact .* train.learning_rate"):
        try_starts(prepared, accelerate(prepared), callbacks=())


@pytest.mark.parametrize(
    ("method", "more", "remedy"),
    [
        ("prompt-tuning", {}, "write {soft:3} in the template, or start from a prompt of 2."),
        ("p-tuning-v2", {"length": 2}, "set length = 3, or start from a prompt of 2."),
    ],
)
def test_another_length_is_refused_with_its_remedy(parts, sources, method, more, remedy):
    path = sources("llama", method)["good"]
    settings = {"init": {"from": "artifact", "path": path}} | more
    start = start_shorter if method == "prompt-tuning" else start_prefix
    with pytest.raises(PromptError) as caught:
        start(parts, settings)
    assert str(caught.value).endswith(
        "A prompt is not cut or repeated, since its soft tokens were trained together: " + remedy
    )


def start_prefix(parts, settings):
    """A run whose method has two soft tokens."""
    return parts("llama", "p-tuning-v2", settings=settings)


def start_shorter(parts, settings):
    """A run whose template has two soft tokens."""
    prepared = parts("llama", "prompt-tuning")
    task = {"template": "{soft:2}{text} movie"}
    table = prepared.recipe.as_data()
    table["task"] |= task
    table["method"] |= settings
    return setup_run(load_recipe(table), backbone=prepared.backbone, tables=prepared.tables)


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning", "multitask-prompt-tuning"])
def test_a_prompt_in_16_bits_is_a_start(parts, sources, tmp_path, method):
    """Its values are taken as they are, and trained in fp32."""
    artifact = read(sources("llama", "prompt-tuning")["good"])
    half = to(artifact.prompt, dtype=torch.bfloat16)
    manifest = replace(artifact.manifest, dtype="bfloat16")
    save_artifact(replace(artifact, prompt=half, manifest=manifest), tmp_path / "half")
    init = {"from": "artifact", "path": str(tmp_path / "half")}
    prepared = parts("llama", method, settings={"init": init})
    vectors = prepared.method().vectors
    assert vectors.dtype == torch.float32
    if method == "p-tuning":
        assert torch.nn.functional.mse_loss(vectors, half.vectors.float()) < 0.05
    else:
        assert torch.equal(vectors, half.vectors.float())


def test_a_prompt_of_another_task_starts_a_run_of_text(parts, sources, backbone):
    """Labels, template and task may differ: only the prompt is taken."""
    path = sources("llama", "prompt-tuning")["good"]
    prepared = parts(
        "llama", "prompt-tuning", task="text",
        settings={"init": {"from": "artifact", "path": path}},
    )  # fmt: skip
    assert torch.equal(prepared.method().vectors, read(path).prompt.vectors)
    assert prepared.notes == ("the prompt starts as that of the artifact",)
