"""``softprompt compare``: the same rows for all variants, the test rows once, interrupted."""

import json
import re
import signal
from pathlib import Path

import pytest
from filelock import FileLock

from softprompt.compare.api import compare_methods
from softprompt.compare.report.html import render_html
from softprompt.inference import PromptModel
from softprompt.recipe import read_recipe

METHODS = "prompt-tuning,p-tuning-v2"
UNTRAINED = ("--baselines", "majority,hard-prompt")


@pytest.fixture
def compare(home, run):
    home.data["method"]["init"] = {"from": "text", "text": "good"}

    def go(*args):
        return run("compare", home.recipe, "--methods", METHODS, "--seeds", 2, *UNTRAINED, *args)

    return go


def lines(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_what_it_says_and_leaves(compare, home):
    said = compare("--lr-multipliers", "1,3", "--search-fraction", 0.5, "--output", "c", "--json")
    assert said.status == 0, said.err
    variants = {variant["variant"]: variant for variant in said.json["variants"]}
    assert {*variants} == {"majority", "hard-prompt", "prompt-tuning", "p-tuning-v2"}
    assert variants["majority"]["mean"] == 0.5  # both labels in turn
    folder = home.path / "c"
    results = [line for line in lines(folder) if line["event"] == "run_result"]
    trained = [line for line in results if line["seed"] is not None]
    assert len(trained) == 4
    assert {len(line["scores"]) for line in results} == {12}
    rows = {"train": 40, "validation": 12}
    hashes = set()
    for path in folder.glob("*/artifact/manifest.json"):
        data = json.loads(path.read_text())["data"]
        assert {name: part["rows"] for name, part in data.items()} == rows
        hashes.add(tuple(part["sha256"] for part in data.values()))
    assert len(hashes) == 1, "every variant saw the same rows, and none the test rows"
    steps = {line["cost"]["steps"] for line in trained}
    assert steps == {6}
    searched = [line for line in lines(folder) if line["event"] == "search_result"]
    assert [[factor for factor, _ in s["scores"]] for s in searched] == [[1.0, 3.0]] * 2
    assert (folder / "report.md").read_text().startswith("|  | accuracy |")
    assert said.json["page"] == "c/report.html"


def test_the_page_is_made_of_the_runs(compare, home, monkeypatch):
    made = []

    def kept(report):
        made.append(report)
        return render_html(report)

    monkeypatch.setattr("softprompt.compare.report.write.render_html", kept)
    said = compare("--lr-multipliers", "1", "--output", "c")
    assert said.err.splitlines()[-1].startswith("c/report.html (")
    [report] = made
    assert {*report.curves} == {"accuracy", "loss"}
    for line in lines(home.path / "c"):
        if line["event"] == "run_result" and line["seed"] is not None:
            runs = {
                name: report.curves[name][line["variant"]][line["seed"] - 42]
                for name in report.curves
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
    answered, predict = [], PromptModel.predict

    def counted(self, rows, **more):
        answered.append(len(rows))
        return predict(self, rows, **more)

    monkeypatch.setattr(PromptModel, "predict", counted)
    compare("--output", "c", "--search-fraction", 0.5)
    assert answered == [12] * 4


def test_the_same_command_trains_nothing_again(compare, home):
    first = compare("--lr-multipliers", "1", "--output", "c", "--json")
    before = (home.path / "c" / "results.jsonl").read_text()
    second = compare("--lr-multipliers", "1", "--output", "c", "--json")
    assert second.json == first.json
    assert (home.path / "c" / "results.jsonl").read_text() == before
    home.data["train"]["epochs"] = 3
    assert compare("--output", "c").is_mistake("started with another recipe")


def test_a_stopped_comparison_ends_as_if_nobody_had_stopped_it(compare, home, start):
    whole = compare("--lr-multipliers", "1", "--output", "whole", "--json")
    home.data["train"]["epochs"] = 2
    command = (
        "compare",
        home.recipe,
        "--methods",
        METHODS,
        "--seeds",
        2,
        "--lr-multipliers",
        "1",
        *UNTRAINED,
    )
    with start(*command, "--output", "c", cwd=home.path) as going:
        for line in going.stderr:
            if line.startswith("prompt-tuning, seed 42"):
                going.send_signal(signal.SIGINT)
                break
        assert "interrupted; run the same command to resume" in going.stderr.read()
    assert going.returncode == 1
    again = compare("--lr-multipliers", "1", "--output", "c", "--json")
    for one, other in zip(whole.json["variants"], again.json["variants"], strict=True):
        assert (one["variant"], one["mean"], one["spread"]) == (
            other["variant"],
            other["mean"],
            other["spread"],
        )
    right = {
        (x["variant"], x["seed"]): x["scores"]
        for x in lines(home.path / "whole")
        if x["event"] == "run_result"
    }
    assert right == {
        (x["variant"], x["seed"]): x["scores"]
        for x in lines(home.path / "c")
        if x["event"] == "run_result"
    }


@pytest.fixture
def short(home):
    """One prompt and a baseline, for ``compare_methods`` and as options of the command."""
    home.data["method"]["init"] = {"from": "text", "text": "good"}
    asked = {
        "methods": ["prompt-tuning"],
        "baselines": ["majority"],
        "num_seeds": 1,
        "lr_multipliers": [1],
    }
    options = ("--methods", "prompt-tuning", "--baselines", "majority", "--seeds", 1)
    return asked, (*options, "--lr-multipliers", "1")


def answers(folder):
    """All that is written of a comparison but what a clock or a meter says."""
    found = lines(folder)
    for line in found:
        for name in ("seconds", "speed", "memory"):
            (line.get("cost") or {}).pop(name, None)
    return found


def test_python_does_what_the_command_does(short, home, run):
    asked, options = short
    said = run("compare", home.recipe, *options, "--output", "command", "--json")
    told = []
    recipe = read_recipe(home.recipe)
    found = compare_methods(recipe, home.path / "python", callbacks=[told.append], **asked)
    assert answers(home.path / "python") == answers(home.path / "command")
    data = found.to_dict()
    for one, other in zip(data["variants"], said.json["variants"], strict=True):
        assert (one["variant"], one["mean"]) == (other["variant"], other["mean"])
    assert {*data} == {*said.json}
    assert [type(event).__name__ for event in told] == [
        "Status", "RunResult", "SearchResult", "RunResult",
    ]  # fmt: skip
    assert found.report.read_text().startswith("|  | accuracy |")
    assert found.report_html.exists()


def test_a_call_that_was_stopped_resumes_where_it_was(short, home):
    asked, _ = short
    whole = compare_methods(home.recipe, home.path / "whole", **asked)
    steps = iter(range(4))

    def should_stop():
        return next(steps, None) is None

    with pytest.raises(KeyboardInterrupt):
        compare_methods(home.recipe, home.path / "c", should_stop=should_stop, **asked)
    run_folder = home.path / "c" / "prompt-tuning-42"
    assert (run_folder / "checkpoint").exists()
    assert not (run_folder / "metrics.json").exists(), "it was in the middle of a run"
    before = (run_folder / "events.jsonl").read_text()
    again = compare_methods(home.recipe, home.path / "c", **asked)
    assert (run_folder / "events.jsonl").read_text().startswith(before), "nothing was done twice"
    assert answers(home.path / "c") == answers(home.path / "whole")
    assert repr(again) == repr(whole).replace("whole", "c")


def test_the_example_of_the_page_runs(home, capsys):
    """What docs/how-to/compare.md shows in Python, with a recipe that trains in a moment."""
    home.data["method"]["init"] = {"from": "text", "text": "good"}
    assert home.recipe.exists()
    page = Path(__file__).parents[3] / "docs" / "how-to" / "compare.md"
    [example] = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    made = {}
    exec(compile(example, page.name, "exec"), made)  # noqa: S102  # our own page
    assert {row["name"] for row in made["comparison"].to_rows()} == {
        "prompt-tuning", "p-tuning-v2", "majority", "hard-prompt",
    }  # fmt: skip
    assert made["search"].learning_rate in [t.learning_rate for t in made["search"].trials]
    assert f"{made['comparison'].report_html}" in capsys.readouterr().out


def test_another_rate_share_or_setting_is_another_run(compare, home, run):
    """Nothing that was trained otherwise is taken for what is asked for now."""
    first = run(
        "find-lr",
        home.recipe,
        "--lr-multipliers",
        "1",
        "--search-fraction",
        "0.5",
        "--output",
        "s",
        "--json",
    )
    again = run(
        "find-lr",
        home.recipe,
        "--lr-multipliers",
        "1",
        "--search-fraction",
        "1",
        "--output",
        "s",
        "--json",
    )
    alone = run(
        "find-lr",
        home.recipe,
        "--lr-multipliers",
        "1",
        "--search-fraction",
        "1",
        "--output",
        "t",
        "--json",
    )
    assert [row["steps"] for row in first.json["tried"]] == [3]
    assert again.json["tried"] == alone.json["tried"]


def test_a_variant_whose_settings_changed_is_told(home, run):
    plan = home.recipe.with_name("plan.toml")
    text = (
        'base = "recipe.toml"\nnum_seeds = 1\nlr_multipliers = [1.0]\nbaselines = ["majority"]\n'
        '[[variants]]\nname = "mine"\noverrides = { "task.template" = "{text}{soft:2}" }\n'
    )
    plan.write_text(text)
    assert run("compare", plan, "--output", "c").status == 0
    plan.write_text(text.replace("soft:2", "soft:3"))
    said = run("compare", plan, "--output", "c")
    assert said.is_mistake("the variant 'mine' was started with other settings")


def test_a_baseline_that_there_is_not_is_told(home, run):
    del home.data["task"]["verbalizer"]
    home.data["task"]["template"] = "{soft:2}{text}"
    command = (
        "compare",
        home.recipe,
        "--methods",
        "prompt-tuning",
        "--seeds",
        1,
        "--lr-multipliers",
        "1",
    )
    said = run(*command, "--baselines", "hard-prompt,majority", "--output", "c", "--json")
    assert "hard-prompt is skipped. The task predicts with a trained head" in said.err
    assert {variant["variant"] for variant in said.json["variants"]} == {
        "majority",
        "prompt-tuning",
    }


def test_it_is_run_by_one_process(home, run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("compare", home.recipe).is_mistake("run by one process, but this is one of several")
    assert not (home.path / "runs").exists()


def test_two_commands_do_not_write_one_folder(home, run):
    (home.path / "c").mkdir()
    with FileLock(home.path / "c" / ".lock"):
        said = run("compare", home.recipe, "--output", "c")
    assert said.is_mistake("another process works in c")


def test_a_refused_comparison_leaves_nothing_behind(home, run):
    del home.data["data"]["test"]
    assert run("compare", home.recipe, "--output", "c").is_mistake("there are no test rows")
    assert not (home.path / "c").exists()


def test_all_baselines_beside_a_method(home, run):
    """Each is judged on the same rows; what is trained costs what arithmetic says."""
    home.data["method"]["init"] = {"from": "text", "text": "good"}
    command = (
        "compare",
        home.recipe,
        "--methods",
        "prompt-tuning",
        "--seeds",
        1,
        "--lr-multipliers",
        "1",
    )
    said = run(*command, "--output", "c", "--json")
    assert said.status == 0, said.err
    variants = {variant["variant"]: variant for variant in said.json["variants"]}
    names = {"majority", "hard-prompt", "linear-probe", "fine-tuning", "lora"}
    assert {*variants} == {*names, "prompt-tuning"}
    costs = {name: variant["results"][0]["cost"] for name, variant in variants.items()}
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
    best = max((variants[name] for name in names), key=lambda variant: variant["mean"])
    assert variants["prompt-tuning"]["difference"]["baseline"] == best["variant"]
    assert {path.parent.name for path in home.path.glob("c/*/metrics.json")} == {
        "prompt-tuning-42", "fine-tuning-42", "lora-42",
    }  # fmt: skip
    before = (home.path / "c" / "results.jsonl").read_text()
    assert run(*command, "--output", "c", "--json").json == said.json
    assert (home.path / "c" / "results.jsonl").read_text() == before


def test_a_comparison_has_a_file_of_its_own_and_a_budget_of_seconds(home, run):
    home.recipe.with_name("plan.toml").write_text(
        'base = "recipe.toml"\nnum_seeds = 1\nlr_multipliers = [1.0]\nbaselines = ["majority"]\n'
        '[[variants]]\nname = "two tokens"\noverrides = { "task.template" = "{text}{soft:2}" }\n'
        '[[variants]]\nname = "six tokens"\noverrides = { "task.template" = "{text}{soft:6}" }\n'
    )
    said = run("compare", "plan.toml", "--time-budget", "0.5", "--json", "--output", "c")
    assert said.status == 0, said.err
    variants = {variant["variant"]: variant["results"][0] for variant in said.json["variants"]}
    assert {*variants} == {"majority", "two tokens", "six tokens"}
    assert (
        variants["six tokens"]["cost"]["trainable"]
        == 3 * variants["two tokens"]["cost"]["trainable"]
    )
    searched = {x["variant"]: x for x in lines(home.path / "c") if x["event"] == "search_result"}
    for name in ("two tokens", "six tokens"):
        assert variants[name]["cost"]["steps"] == searched[name]["steps"] > 0
        assert searched[name]["seconds"] == 0.5


def test_free_text_is_compared_by_how_near_it_comes(home, run):
    for split, count in (("train", 16), ("validation", 6), ("test", 6)):
        rows = [{**row, "target": row["label"]} for row in home.rows(split)[:count]]
        home.write(split, rows)
    home.data["task"] = {"kind": "generate", "template": "{text} is{soft:4}", "max_new_tokens": 3}
    command = (
        "compare",
        home.recipe,
        "--methods",
        "prompt-tuning",
        "--seeds",
        1,
        "--lr-multipliers",
        "1",
    )
    said = run(*command, "--output", "c", "--json")
    assert said.status == 0, said.err
    assert said.json["measure"] == "chrf"
    variants = {variant["variant"]: variant for variant in said.json["variants"]}
    assert {*variants} == {"majority", "hard-prompt", "fine-tuning", "lora", "prompt-tuning"}
    result = variants["prompt-tuning"]["results"][0]
    assert result["confusion"] is None
    assert {"bleu", "chrf", "rougeL"} <= {*result["metrics"]}
    assert 0 <= variants["prompt-tuning"]["mean"] <= 1


def test_a_broken_variant_is_told_and_the_others_go_on(compare, home):
    home.data["method"]["layers"] = "7:"
    said = compare("--lr-multipliers", "1", "--output", "c", "--json")
    assert said.status == 1
    assert {variant["variant"] for variant in said.json["variants"]} == {
        "majority",
        "hard-prompt",
        "p-tuning-v2",
    }
    [failed] = said.json["failed"]
    assert (failed["variant"], failed["seed"]) == ("prompt-tuning", 42)
    assert "layers = '7:'" in failed["error"]
    assert "prompt-tuning failed, the others continue" in said.err


def test_the_search_alone(home, run):
    command = (
        "find-lr",
        home.recipe,
        "--lr-multipliers",
        "0.1,1,10",
        "--search-fraction",
        0.5,
        "--output",
        "s",
    )
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
    assert run("find-lr", home.recipe, "--output", "s").is_mistake("started with another recipe")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--methods", "lora"), "unknown method 'lora'"),
        (("--lr-multipliers", "1,x"), "--lr-multipliers '1,x' are not distinct positive numbers"),
        (("--lr-multipliers", "1,1"), "not distinct positive numbers"),
        (("--lr-multipliers", "-1"), "not distinct positive numbers"),
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
