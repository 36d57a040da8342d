"""``check``, ``train`` and ``resume`` of several tasks: files, messages, and the second stage."""

import json
import tomllib
from pathlib import Path

import pytest
import tomli_w

from softprompt.artifact import load_artifact
from softprompt.recipe.multitask import read_multitask_recipe
from softprompt.train.multitask import run_multitask


@pytest.fixture
def tasks(home) -> Path:
    """A recipe of two tasks, the second of which has fewer rows."""
    shared = {name: home.data[name] for name in ("backbone", "train")}
    own = {"data": home.data["data"], "task": home.data["task"]}
    few = own | {"data": home.data["data"] | {"max_rows": {"train": 20}}}
    table = shared | {
        "method": {"name": "multitask-prompt-tuning"},
        "tasks": {"reviews": own, "few": few},
    }
    path = home.path / "tasks.toml"
    path.write_text(tomli_w.dumps(table), "utf-8")
    return path


def test_check_tells_the_plan_or_names_the_task(tasks: Path, run) -> None:
    result = run("check", tasks)
    assert result.status == 0
    assert "tasks.toml has no faults" in result.out
    assert (
        "task 'reviews': 40 train, 12 validation, 12 test rows; 3 steps of each round" in result.err
    )
    assert "task 'few': 20 train" in result.err
    assert "10 steps in rounds of 5" in result.err
    wrong = run("check", tasks, "--set", "tasks.few.task.template={words}{soft:4}", "--json")
    assert wrong.status == 2
    assert [fault.partition(":")[0] for fault in wrong.json["faults"]] == ["task 'few'"]
    metric = run("check", tasks, "--set", "train.best_metric=f2")
    assert "task 'reviews': train.best_metric: unknown metric 'f2'" in metric.err
    other = run("check", tasks, "--set", "tasks.few.task.template={text}{soft:5}")
    assert other.status == 2
    assert "Give all templates the same number of soft tokens" in other.err


def test_each_task_is_a_run_that_predicts(tasks: Path, run) -> None:
    result = run("train", tasks, "--output", "out", "--json")
    assert result.status == 0, result.err
    assert {line.split()[-1] for line in result.err.splitlines() if line[:1] == " "} >= {
        "reviews",
        "few",
    }
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert result.json["tasks"] == metrics["tasks"]
    assert result.json["shared"]["path"] == "out/shared"
    for name in ("reviews", "few"):
        answer = run("predict", f"out/tasks/{name}", "a great film", "--json")
        assert answer.status == 0, answer.err
        assert tomllib.loads(Path(f"out/tasks/{name}/recipe.toml").read_text())["data"]
        assert Path(f"out/tasks/{name}/curve.png").is_file()
    whole = run("predict", "out", "a great film")
    assert whole.status == 2
    assert "out is a run of several tasks (few, reviews), each of which has a prompt" in whole.err
    again = run("resume", "out")
    assert again.status == 0
    assert "the run in out is finished already" in again.err
    assert "task reviews" in again.out


def test_a_stopped_run_resumes_with_the_same_numbers(tasks: Path, run) -> None:
    assert run("train", tasks, "--output", "whole", "--quiet").status == 0

    def stop(event) -> None:
        if event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_multitask(read_multitask_recipe(tasks), Path("out"), callbacks=[stop])
    refused = run("resume", "out", "--set", "train.batch_size=3")
    assert refused.status == 2
    assert "train.batch_size: cannot be changed in a run that has started" in refused.err
    assert run("resume", "out", "--quiet").status == 0
    for name in ("tasks/reviews", "tasks/few", "shared"):
        one, other = load_artifact(Path("out", name)), load_artifact(Path("whole", name))
        assert one.manifest == other.manifest
        assert one.prompt.vectors.equal(other.prompt.vectors)


def test_a_third_task_starts_from_the_shared_prompt(tasks: Path, home, run) -> None:
    assert run("train", tasks, "--output", "out", "--quiet").status == 0
    home.data["method"] = {
        "name": "multitask-prompt-tuning",
        "train_shared": False,
        "init": {"from": "artifact", "path": "out/shared"},
    }
    result = run("train", home.recipe, "--output", "third", "--json")
    assert result.status == 0, result.err
    width = load_artifact(Path("out/shared")).prompt.vectors.shape[1]
    assert result.json["trainable_parameters"] == 4 + width
    home.data["method"]["init"] = {
        "from": "artifacts",
        "paths": ["out/shared", "out/tasks/few", "third"],
    }
    chosen = run("train", home.recipe, "--output", "fourth", "--json")
    assert chosen.status == 0, chosen.err
    assert "the prompt starts as that of" in chosen.err
    losses = dict(chosen.json["start_choice"]["losses"])
    assert chosen.json["start_choice"]["chosen"] == min(losses, key=losses.get)
    assert len(losses) == 3
