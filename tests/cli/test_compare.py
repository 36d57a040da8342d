"""``softprompt compare``: the same rows for all arms, the test rows once, stopped and gone on."""

import json
import re
import signal

import pytest
from filelock import FileLock

from softprompt.compare.html import html
from softprompt.evaluate import Model

METHODS = "prompt-tuning,p-tuning-v2"
UNTRAINED = ("--controls", "majority,hard-prompt")


@pytest.fixture
def compare(home, run):
    home.data["method"]["initialise"] = {"from": "text", "text": "good"}

    def go(*args):
        return run("compare", home.recipe, "--methods", METHODS, "--seeds", 2, *UNTRAINED, *args)

    return go


def lines(folder):
    return [json.loads(line) for line in (folder / "outcomes.jsonl").read_text().splitlines()]


def test_what_it_says_and_leaves(compare, home):
    said = compare("--rates", "1,3", "--share", 0.5, "--output", "c", "--json")
    assert said.status == 0, said.err
    arms = {arm["arm"]: arm for arm in said.json["arms"]}
    assert {*arms} == {"majority", "hard-prompt", "prompt-tuning", "p-tuning-v2"}
    assert arms["majority"]["mean"] == 0.5  # both labels in turn
    folder = home.path / "c"
    outcomes = [line for line in lines(folder) if line["event"] == "outcome"]
    trained = [line for line in outcomes if line["seed"] is not None]
    assert len(trained) == 4
    assert {len(line["scores"]) for line in outcomes} == {12}
    rows = {"train": 40, "validation": 12}
    hashes = set()
    for path in folder.glob("*/artifact/manifest.json"):
        data = json.loads(path.read_text())["data"]
        assert {name: part["rows"] for name, part in data.items()} == rows
        hashes.add(tuple(part["sha256"] for part in data.values()))
    assert len(hashes) == 1, "every arm saw the same rows, and none the test rows"
    steps = {line["cost"]["steps"] for line in trained}
    assert steps == {6}
    searched = [line for line in lines(folder) if line["event"] == "searched"]
    assert [[factor for factor, _ in s["scores"]] for s in searched] == [[1.0, 3.0]] * 2
    assert (folder / "report.md").read_text().startswith("|  | accuracy |")
    assert said.json["page"] == "c/report.html"


def test_the_page_is_made_of_the_runs(compare, home, monkeypatch):
    made = []

    def kept(report):
        made.append(report)
        return html(report)

    monkeypatch.setattr("softprompt.cli.reporting.html", kept)
    said = compare("--rates", "1", "--output", "c")
    assert said.err.splitlines()[-1].startswith("c/report.html (")
    [report] = made
    assert {*report.curves} == {"accuracy", "loss"}
    for line in lines(home.path / "c"):
        if line["event"] == "outcome" and line["seed"] is not None:
            runs = {
                name: report.curves[name][line["arm"]][line["seed"] - 42] for name in report.curves
            }
            assert [step for step, _ in runs["loss"]] == [0, 3, 6], "validated once an epoch"
            best = min(range(3), key=lambda at: runs["loss"][at][1])
            for name, points in runs.items():
                assert points[best][1] == line["validation"][name]
    page = (home.path / "c" / "report.html").read_text()
    assert "40 train, 12 validation, 12 test" in page
    assert page.count("<svg") == 5 + 2, "and two of what is inside"
    [inside] = report.extras
    words, layers, alike, attended = inside.parts
    manifest = json.loads((home.path / "c/prompt-tuning-42/artifact/manifest.json").read_text())
    moved = [f"{way:.2f}" for way in manifest["metrics"]["moved"]["each"]]
    assert [row[2] for row in words.rows] == moved
    assert [row[0] for row in layers.rows] == ["0", "1"], "the prefix, layer by layer"
    assert "prompt-tuning 42" in alike.drawing
    policy = re.search(
        r"default-src 'none'; img-src data:|default-src &#39;none&#39;; img-src", page
    )
    assert "data:image/png" in alike.drawing
    assert policy, "a heat map is an image inside the page, which its policy lets pass"
    assert "12 validation rows" in attended.caption
    for summary in report.summaries:
        assert f"{100 * summary.mean:.1f}" in page


def test_the_test_rows_are_answered_once_by_each_trained_prompt(compare, monkeypatch):
    answered, predict = [], Model.predict

    def counted(self, rows, **more):
        answered.append(len(rows))
        return predict(self, rows, **more)

    monkeypatch.setattr(Model, "predict", counted)
    compare("--output", "c", "--share", 0.5)
    assert answered == [12] * 4


def test_the_same_command_trains_nothing_again(compare, home):
    first = compare("--rates", "1", "--output", "c", "--json")
    before = (home.path / "c" / "outcomes.jsonl").read_text()
    second = compare("--rates", "1", "--output", "c", "--json")
    assert second.json == first.json
    assert (home.path / "c" / "outcomes.jsonl").read_text() == before
    home.data["train"]["epochs"] = 3
    assert compare("--output", "c").is_mistake("begun with another recipe")


def test_a_stopped_comparison_ends_as_if_nobody_had_stopped_it(compare, home, start):
    whole = compare("--rates", "1", "--output", "whole", "--json")
    home.data["train"]["epochs"] = 2
    command = (
        "compare",
        home.recipe,
        "--methods",
        METHODS,
        "--seeds",
        2,
        "--rates",
        "1",
        *UNTRAINED,
    )
    with start(*command, "--output", "c", cwd=home.path) as going:
        for line in going.stderr:
            if line.startswith("prompt-tuning, seed 42"):
                going.send_signal(signal.SIGINT)
                break
        assert "the same command goes on where it was" in going.stderr.read()
    assert going.returncode == 1
    again = compare("--rates", "1", "--output", "c", "--json")
    for one, other in zip(whole.json["arms"], again.json["arms"], strict=True):
        assert (one["arm"], one["mean"], one["spread"]) == (
            other["arm"],
            other["mean"],
            other["spread"],
        )
    right = {
        (x["arm"], x["seed"]): x["scores"]
        for x in lines(home.path / "whole")
        if x["event"] == "outcome"
    }
    assert right == {
        (x["arm"], x["seed"]): x["scores"]
        for x in lines(home.path / "c")
        if x["event"] == "outcome"
    }


def test_another_rate_share_or_setting_is_another_run(compare, home, run):
    """Nothing that was trained otherwise is taken for what is asked for now."""
    first = run("find-lr", home.recipe, "--rates", "1", "--share", "0.5", "--output", "s", "--json")
    again = run("find-lr", home.recipe, "--rates", "1", "--share", "1", "--output", "s", "--json")
    alone = run("find-lr", home.recipe, "--rates", "1", "--share", "1", "--output", "t", "--json")
    assert [row["steps"] for row in first.json["tried"]] == [3]
    assert again.json["tried"] == alone.json["tried"]


def test_an_arm_whose_settings_changed_is_told(home, run):
    plan = home.recipe.with_name("plan.toml")
    text = (
        'recipe = "recipe.toml"\nseeds = 1\nrates = [1.0]\ncontrols = ["majority"]\n'
        '[[arms]]\nname = "mine"\nset = { "task.template" = "{text}{soft:2}" }\n'
    )
    plan.write_text(text)
    assert run("compare", plan, "--output", "c").status == 0
    plan.write_text(text.replace("soft:2", "soft:3"))
    said = run("compare", plan, "--output", "c")
    assert said.is_mistake("the arm 'mine' was begun with other settings")


def test_a_control_that_there_is_not_is_told(home, run):
    del home.data["task"]["verbalizer"]
    home.data["task"]["template"] = "{soft:2}{text}"
    command = ("compare", home.recipe, "--methods", "prompt-tuning", "--seeds", 1, "--rates", "1")
    said = run(*command, "--controls", "hard-prompt,majority", "--output", "c", "--json")
    assert "hard-prompt: none here. A trained head answers" in said.err
    assert {arm["arm"] for arm in said.json["arms"]} == {"majority", "prompt-tuning"}


def test_it_is_run_by_one_process(home, run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("compare", home.recipe).is_mistake("run by one process, but this is one of several")
    assert not (home.path / "runs").exists()


def test_two_commands_do_not_write_one_folder(home, run):
    (home.path / "c").mkdir()
    with FileLock(home.path / "c" / ".lock"):
        said = run("compare", home.recipe, "--output", "c")
    assert said.is_mistake("another command works in c")


def test_a_refused_comparison_leaves_nothing_behind(home, run):
    del home.data["data"]["test"]
    assert run("compare", home.recipe, "--output", "c").is_mistake("there are no test rows")
    assert not (home.path / "c").exists()


def test_all_controls_beside_a_method(home, run):
    """Each is judged on the same rows; what is trained costs what arithmetic says."""
    home.data["method"]["initialise"] = {"from": "text", "text": "good"}
    command = ("compare", home.recipe, "--methods", "prompt-tuning", "--seeds", 1, "--rates", "1")
    said = run(*command, "--output", "c", "--json")
    assert said.status == 0, said.err
    arms = {arm["arm"]: arm for arm in said.json["arms"]}
    names = {"majority", "hard-prompt", "linear-probe", "fine-tuning", "lora"}
    assert {*arms} == {*names, "prompt-tuning"}
    costs = {name: arm["outcomes"][0]["cost"] for name, arm in arms.items()}
    assert costs["majority"] is costs["hard-prompt"] is None
    whole = costs["prompt-tuning"]["parameters"]
    assert costs["prompt-tuning"]["trainable"] == 4 * 32
    assert costs["linear-probe"]["trainable"] == 32 + 1
    assert costs["fine-tuning"]["trainable"] == costs["fine-tuning"]["parameters"] == whole
    assert costs["fine-tuning"]["size"] == 4 * whole
    assert costs["lora"]["parameters"] == whole
    for name in ("prompt-tuning", "fine-tuning", "lora"):
        assert costs[name]["steps"] == 6
        assert costs[name]["memory"] > 4 * whole
        assert costs[name]["speed"] > 0
    best = max((arms[name] for name in names), key=lambda arm: arm["mean"])
    assert arms["prompt-tuning"]["difference"]["control"] == best["arm"]
    assert {path.parent.name for path in home.path.glob("c/*/metrics.json")} == {
        "prompt-tuning-42", "fine-tuning-42", "lora-42",
    }  # fmt: skip
    before = (home.path / "c" / "outcomes.jsonl").read_text()
    assert run(*command, "--output", "c", "--json").json == said.json
    assert (home.path / "c" / "outcomes.jsonl").read_text() == before


def test_a_comparison_has_a_file_of_its_own_and_a_budget_of_seconds(home, run):
    home.recipe.with_name("plan.toml").write_text(
        'recipe = "recipe.toml"\nseeds = 1\nrates = [1.0]\ncontrols = ["majority"]\n'
        '[[arms]]\nname = "two tokens"\nset = { "task.template" = "{text}{soft:2}" }\n'
        '[[arms]]\nname = "six tokens"\nset = { "task.template" = "{text}{soft:6}" }\n'
    )
    said = run("compare", "plan.toml", "--seconds", "0.5", "--json", "--output", "c")
    assert said.status == 0, said.err
    arms = {arm["arm"]: arm["outcomes"][0] for arm in said.json["arms"]}
    assert {*arms} == {"majority", "two tokens", "six tokens"}
    assert arms["six tokens"]["cost"]["trainable"] == 3 * arms["two tokens"]["cost"]["trainable"]
    searched = {x["arm"]: x for x in lines(home.path / "c") if x["event"] == "searched"}
    for name in ("two tokens", "six tokens"):
        assert arms[name]["cost"]["steps"] == searched[name]["steps"] > 0
        assert searched[name]["seconds"] == 0.5


def test_free_text_is_compared_by_how_near_it_comes(home, run):
    for split, count in (("train", 16), ("validation", 6), ("test", 6)):
        rows = [{**row, "target": row["label"]} for row in home.rows(split)[:count]]
        home.write(split, rows)
    home.data["task"] = {"kind": "generate", "template": "{text} is{soft:4}", "max_new_tokens": 3}
    command = ("compare", home.recipe, "--methods", "prompt-tuning", "--seeds", 1, "--rates", "1")
    said = run(*command, "--output", "c", "--json")
    assert said.status == 0, said.err
    assert said.json["measure"] == "chrf"
    arms = {arm["arm"]: arm for arm in said.json["arms"]}
    assert {*arms} == {"majority", "hard-prompt", "fine-tuning", "lora", "prompt-tuning"}
    outcome = arms["prompt-tuning"]["outcomes"][0]
    assert outcome["confusion"] is None
    assert {"bleu", "chrf", "rougeL"} <= {*outcome["metrics"]}
    assert 0 <= arms["prompt-tuning"]["mean"] <= 1


def test_a_broken_arm_is_told_and_the_others_go_on(compare, home):
    home.data["method"]["layers"] = "7:"
    said = compare("--rates", "1", "--output", "c", "--json")
    assert said.status == 1
    assert {arm["arm"] for arm in said.json["arms"]} == {"majority", "hard-prompt", "p-tuning-v2"}
    [failed] = said.json["failed"]
    assert (failed["arm"], failed["seed"]) == ("prompt-tuning", 42)
    assert "layers = '7:'" in failed["error"]
    assert "prompt-tuning failed, the others go on" in said.err


def test_the_search_alone(home, run):
    command = ("find-lr", home.recipe, "--rates", "0.1,1,10", "--share", 0.5, "--output", "s")
    found = run(*command, "--json").json
    tried = {row["rate"]: row for row in found["tried"]}
    assert [*tried] == pytest.approx([0.005, 0.05, 0.5])
    assert {row["steps"] for row in tried.values()} == {3}
    assert found["rate"] == min(tried, key=lambda rate: tried[rate]["loss"])
    picture = home.path / "s" / "rates.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    for path in (home.path / "s").glob("*/artifact/manifest.json"):
        assert "test" not in json.loads(path.read_text())["data"]
    again = run(*command)
    assert again.out.splitlines()[0].split() == ["learning", "rate", "valid.", "loss"]
    assert f"--set train.learning_rate={found['rate']:g}" in again.err
    home.data["train"]["epochs"] = 5
    assert run("find-lr", home.recipe, "--output", "s").is_mistake("begun with another recipe")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--methods", "lora"), "unknown method 'lora'"),
        (("--rates", "1,x"), "--rates '1,x' are no distinct positive numbers"),
        (("--rates", "1,1"), "no distinct positive numbers"),
        (("--rates", "-1"), "no distinct positive numbers"),
    ],
)
def test_mistakes(home, run, options, message):
    assert run("compare", home.recipe, *options).is_mistake(message)


def test_a_label_of_the_test_rows_that_nobody_can_answer(home, run):
    home.write("test", [{"text": "good", "label": "neutral"}])
    assert run("compare", home.recipe).is_mistake("neutral", "test")


def test_without_test_rows_there_is_no_comparison(home, run):
    del home.data["data"]["test"]
    assert run("compare", home.recipe).is_mistake("there are no test rows")
