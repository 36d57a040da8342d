"""``softprompt compare`` and ``find-lr``: the same rows for all variants, the test rows once."""

import json
import re
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from softprompt.compare.api import compare_methods
from softprompt.compare.report.html import render_html
from softprompt.inference import PromptModel
from softprompt.recipe import read_recipe
from softprompt.train.validation import check_recipe

# Two methods with two seeds, and the baselines without training.
TWO_METHODS = (
    *("--methods", "prompt-tuning,p-tuning-v2", "--seeds", 2),
    *("--baselines", "majority,hard-prompt"),
)
# One method with one seed, without a search.
ONE_METHOD = ("--methods", "prompt-tuning", "--seeds", 1, "--lr-multipliers", "1")


@pytest.fixture
def compare(home, run):
    """Compare two methods."""
    home.data["method"]["init"] = {"from": "text", "text": "good"}

    def run_compare(*args):
        return run("compare", home.recipe, *TWO_METHODS, *args)

    return run_compare


@pytest.fixture
def compare_one(home, run):
    """Compare one method with baselines."""

    def run_compare(*args):
        return run("compare", home.recipe, *ONE_METHOD, *args)

    return run_compare


@pytest.fixture
def find_lr(home, run):
    """Search a learning rate; the result as JSON."""

    def run_find_lr(output, *, multipliers, fraction):
        options = ("--lr-multipliers", multipliers, "--search-fraction", fraction)
        return run("find-lr", home.recipe, *options, "--output", output, "--json").json

    return run_find_lr


def read_lines(folder, event):
    """The events of a kind in the results of a comparison."""
    lines = map(json.loads, (folder / "results.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


def by_name(result):
    """The variants that a command printed."""
    return {variant["variant"]: variant for variant in result.json["variants"]}


def test_the_output_and_the_files(compare, home):
    result = compare("--lr-multipliers", "1,3", "--search-fraction", 0.5, "--output", "c", "--json")
    assert result.status == 0, result.err
    variants = by_name(result)
    assert {*variants} == {"majority", "hard-prompt", "prompt-tuning", "p-tuning-v2"}
    assert variants["majority"]["mean"] == 0.5  # half of the rows have either label
    folder = home.path / "c"
    results = read_lines(folder, "run_result")
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
    searches = read_lines(folder, "search_result")
    assert [[multiplier for multiplier, _ in s["scores"]] for s in searches] == [[1.0, 3.0]] * 2
    assert (folder / "report.md").read_text().startswith("|  | accuracy |")
    assert result.json["page"] == "c/report.html"


def test_the_page_has_the_labels_and_the_most_confident_mistakes(compare, home, monkeypatch):
    reports = []

    def render(report):
        reports.append(report)
        return render_html(report)

    monkeypatch.setattr("softprompt.compare.report.write.render_html", render)
    compare("--lr-multipliers", "1", "--output", "c")
    [report] = reports
    extra = next(e for e in report.extras if e.title.startswith("Labels and mistakes of "))
    best = extra.title.removeprefix("Labels and mistakes of ")
    lines = [x for x in read_lines(home.path / "c", "run_result") if x["variant"] == best]
    prompts = [x for x in read_lines(home.path / "c", "run_result") if x["seed"] is not None]
    mean = {name: sum(x["scores"].count("1") for x in prompts if x["variant"] == name)
            for name in {x["variant"] for x in prompts}}  # fmt: skip
    assert mean[best] == max(mean.values())
    labels, *rest = extra.parts
    counts = np.array([x["confusion"]["counts"] for x in lines]).sum(axis=0)
    for at, (label, _, recall, _, rows) in enumerate(labels.rows):
        assert label == lines[0]["confusion"]["labels"][at]
        assert rows == str(counts[at].sum())
        assert recall == f"{counts[at, at] / counts[at].sum():.3f}"
    first = min(lines, key=lambda line: line["seed"])
    model = PromptModel.from_pretrained(home.path / "c" / first["run"])
    wrong = {}
    for row in home.rows("test"):
        (prediction,) = model.predict([row["text"]])
        if prediction.label != row["label"]:
            wrong[row["text"]] = prediction.probabilities[prediction.label], row["label"]
    shown = [row for part in rest if getattr(part, "head", ("",))[0] == "probability"
             for row in part.rows]  # fmt: skip
    assert {row[3]: row[2] for row in shown} == {text: pair[1] for text, pair in wrong.items()}
    confidences = [float(row[0].rstrip("%")) for row in shown]
    assert confidences == sorted(confidences, reverse=True)
    assert confidences == pytest.approx(
        sorted((100 * pair[0] for pair in wrong.values()), reverse=True), abs=0.06
    )


def test_the_page_is_made_of_the_runs(compare, home, monkeypatch):
    reports = []

    def render(report):
        reports.append(report)
        return render_html(report)

    monkeypatch.setattr("softprompt.compare.report.write.render_html", render)
    result = compare("--lr-multipliers", "1", "--output", "c")
    assert result.err.splitlines()[-1].startswith("c/report.html (")
    [report] = reports
    assert {*report.curves} == {"accuracy", "loss"}
    for line in read_lines(home.path / "c", "run_result"):
        if line["seed"] is not None:
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
    assert page.count("<svg") == 5 + 2, "and two in the section on the prompts"
    _, prompts = report.extras
    words, layers, similarity, attention = prompts.parts
    manifest = json.loads((home.path / "c/prompt-tuning-42/artifact/manifest.json").read_text())
    distances = [f"{distance:.2f}" for distance in manifest["metrics"]["moved"]["each"]]
    assert [row[2] for row in words.rows] == distances
    assert [row[0] for row in layers.rows] == ["0", "1"], "the prefix, layer by layer"
    assert "prompt-tuning 42" in similarity.drawing
    policy = re.search(
        r"default-src 'none'; img-src data:|default-src &#39;none&#39;; img-src", page
    )
    assert "data:image/png" in similarity.drawing
    assert policy, "a heat map is an image inside the page, which its policy allows"
    assert "12 validation rows" in attention.caption
    for summary in report.summaries:
        assert f"{100 * summary.mean:.1f}" in page


def test_each_trained_prompt_predicts_the_test_rows_once(compare, monkeypatch):
    counts, predict = [], PromptModel.predict

    def count_rows(self, rows, **more):
        counts.append(len(rows))
        return predict(self, rows, **more)

    monkeypatch.setattr(PromptModel, "predict", count_rows)
    compare("--output", "c", "--search-fraction", 0.5)
    # The report lists the mistakes of the best prompt, which needs its probabilities once more.
    assert counts == [12] * 4 + [12]


def test_the_same_command_trains_nothing_again(compare, home):
    first = compare("--lr-multipliers", "1", "--output", "c", "--json")
    before = (home.path / "c" / "results.jsonl").read_text()
    second = compare("--lr-multipliers", "1", "--output", "c", "--json")
    assert second.json == first.json
    assert (home.path / "c" / "results.jsonl").read_text() == before
    home.data["train"]["epochs"] = 3
    assert compare("--output", "c").is_mistake("started with another recipe")


def test_an_interrupted_comparison_resumes_to_the_same_results(compare, home, start):
    whole = compare("--lr-multipliers", "1", "--output", "whole", "--json")
    home.data["train"]["epochs"] = 2
    command = ("compare", home.recipe, *TWO_METHODS, "--lr-multipliers", "1", "--output", "c")
    with start(*command, cwd=home.path) as process:
        for line in process.stderr:
            if line.startswith("prompt-tuning, seed 42"):
                process.send_signal(signal.SIGINT)
                break
        assert "interrupted; run the same command to resume" in process.stderr.read()
    assert process.returncode == 1
    resumed = compare("--lr-multipliers", "1", "--output", "c", "--json")
    for one, other in zip(whole.json["variants"], resumed.json["variants"], strict=True):
        for key in ("variant", "mean", "spread"):
            assert one[key] == other[key]
    scores = [
        {(x["variant"], x["seed"]): x["scores"] for x in read_lines(home.path / name, "run_result")}
        for name in ("whole", "c")
    ]
    assert scores[0] == scores[1]


# The options of ``ONE_METHOD`` and a baseline in Python.
SHORT = {
    "methods": ["prompt-tuning"],
    "baselines": ["majority"],
    "num_seeds": 1,
    "lr_multipliers": [1],
}


def read_answers(folder):
    """The results of a comparison without time and memory."""
    lines = read_lines(folder, "run_result") + read_lines(folder, "search_result")
    for line in lines:
        for name in ("seconds", "speed", "memory"):
            (line.get("cost") or {}).pop(name, None)
    return lines


def test_python_does_what_the_command_does(compare_one, home):
    home.data["method"]["init"] = {"from": "text", "text": "good"}
    result = compare_one("--baselines", "majority", "--output", "command", "--json")
    events = []
    recipe = read_recipe(home.recipe)
    comparison = compare_methods(recipe, home.path / "python", callbacks=[events.append], **SHORT)
    assert read_answers(home.path / "python") == read_answers(home.path / "command")
    data = comparison.to_dict()
    for one, other in zip(data["variants"], result.json["variants"], strict=True):
        assert (one["variant"], one["mean"]) == (other["variant"], other["mean"])
    assert {*data} == {*result.json}
    shown = [event for event in events if not str(event).startswith("warning: ")]
    assert str(events[0]).startswith("warning: few rows: 12 validation rows")
    assert [type(event).__name__ for event in shown] == [
        "Status", "RunResult", "SearchResult", "RunResult",
    ]  # fmt: skip
    assert comparison.report.read_text().startswith("|  | accuracy |")
    assert comparison.report_html.exists()


def test_a_call_that_was_stopped_resumes_where_it_was(home):
    home.data["method"]["init"] = {"from": "text", "text": "good"}
    whole = compare_methods(home.recipe, home.path / "whole", **SHORT)
    steps = iter(range(4))

    def should_stop():
        return next(steps, None) is None

    with pytest.raises(KeyboardInterrupt):
        compare_methods(home.recipe, home.path / "c", should_stop=should_stop, **SHORT)
    run_folder = home.path / "c" / "prompt-tuning-42"
    assert (run_folder / "checkpoint").exists()
    assert not (run_folder / "metrics.json").exists(), "it was in the middle of a run"
    before = (run_folder / "events.jsonl").read_text()
    resumed = compare_methods(home.recipe, home.path / "c", **SHORT)
    assert (run_folder / "events.jsonl").read_text().startswith(before), "no step was run twice"
    assert read_answers(home.path / "c") == read_answers(home.path / "whole")
    assert repr(resumed) == repr(whole).replace("whole", "c")


def test_the_example_of_the_page_runs(home, capsys):
    """What docs/how-to/compare.md shows in Python, with a recipe that trains in a moment."""
    home.data["method"]["init"] = {"from": "text", "text": "good"}
    assert home.recipe.exists()
    page = Path(__file__).parents[3] / "docs" / "how-to" / "compare.md"
    [example] = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    names = {}
    exec(compile(example, page.name, "exec"), names)  # noqa: S102  # our own page
    assert {row["name"] for row in names["comparison"].to_rows()} == {
        "prompt-tuning", "p-tuning-v2", "majority", "hard-prompt",
    }  # fmt: skip
    assert names["search"].learning_rate in [t.learning_rate for t in names["search"].trials]
    assert f"{names['comparison'].report_html}" in capsys.readouterr().out


def test_another_fraction_of_the_steps_is_another_run(find_lr):
    """The folder has a run of the same name, but with fewer steps."""
    first = find_lr("s", multipliers="1", fraction=0.5)
    second = find_lr("s", multipliers="1", fraction=1)
    alone = find_lr("t", multipliers="1", fraction=1)
    assert [row["steps"] for row in first["tried"]] == [3]
    assert second["tried"] == alone["tried"]


def test_a_variant_whose_settings_changed_is_refused(home, run):
    plan = home.recipe.with_name("plan.toml")
    text = (
        'base = "recipe.toml"\nnum_seeds = 1\nlr_multipliers = [1.0]\nbaselines = ["majority"]\n'
        '[[variants]]\nname = "mine"\noverrides = { "task.template" = "{text}{soft:2}" }\n'
    )
    plan.write_text(text)
    assert run("compare", plan, "--output", "c").status == 0
    plan.write_text(text.replace("soft:2", "soft:3"))
    result = run("compare", plan, "--output", "c")
    assert result.is_mistake("the variant 'mine' was started with other settings")


def write_plan(home, text: str) -> Path:
    plan = home.recipe.with_name("plan.toml")
    plan.write_text(f'base = "recipe.toml"\nnum_seeds = 1\n{text}')
    return plan


def test_check_takes_a_comparison_file(home, run):
    """Its plan is that of its recipe, which --set changes; it is the file that compare takes."""
    plan = write_plan(home, 'methods = ["prompt-tuning", "p-tuning-v2"]\n')
    result = run("check", plan, "--json", "--set", "train.epochs=3")
    alone = run("check", home.recipe, "--json", "--set", "train.epochs=3")
    assert result.status == 0, result.err
    assert result.json == alone.json
    assert run("check", plan).out.startswith(f"{plan} has no faults")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('method = ["p-tuning"]\n', "method: unknown key 'method'."),
        ('methods = ["p-tunin"]\n', "unknown method 'p-tunin'."),
        (
            '[[variants]]\nname = "late"\noverrides = { "method.layers" = "9:" }\n',
            "variant 'late': ",
        ),
        (
            '[[variants]]\nname = "hard"\noverrides = { "task.template" = "{text}" }\n',
            "variant 'hard': the template has no soft tokens, but prompt-tuning trains them.",
        ),
        (
            '[[variants]]\nname = "field"\noverrides = { "task.template" = "{txt}{soft:2}" }\n',
            "variant 'field': ",
        ),
    ],
)
def test_check_finds_the_faults_of_a_comparison(home, run, text, fault):
    assert run("check", write_plan(home, text)).is_mistake(fault)


def test_check_misses_the_splits_that_a_comparison_needs(home, run):
    plan = write_plan(home, 'methods = ["prompt-tuning"]\n')
    del home.data["data"]["test"]
    assert run("check", home.recipe).status == 0
    assert run("check", plan).is_mistake(
        "there are no test rows, but variants are compared by test"
    )


def test_a_comparison_is_not_a_recipe():
    (fault,) = check_recipe({"base": "recipe.toml"}).faults
    assert fault.startswith("base: this is a comparison, not a recipe. Check it with softprompt ")


def test_rows_in_two_splits_are_reported_by_a_comparison(compare_one, home):
    rows = home.rows("train")
    home.write("test", [*home.rows("test"), rows[0], {**rows[1], "text": rows[1]["text"].upper()}])
    result = compare_one("--baselines", "majority", "--output", "c")
    assert result.status == 0, result.err
    page = (home.path / "c" / "report.html").read_text()
    found = re.search(r"(\d+) of 14 test rows have their text in the train data too, ", result.err)
    assert int(found[1]) >= 2
    assert found[0] in page
    assert "few rows: 12 validation rows" in page


def test_a_baseline_that_does_not_exist_for_the_task_is_skipped(compare_one, home):
    del home.data["task"]["verbalizer"]
    home.data["task"]["template"] = "{soft:2}{text}"
    result = compare_one("--baselines", "hard-prompt,majority", "--output", "c", "--json")
    assert "hard-prompt is skipped. The task predicts with a trained head" in result.err
    assert {*by_name(result)} == {"majority", "prompt-tuning"}


def test_it_is_run_by_one_process(home, run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("compare", home.recipe).is_mistake("run by one process, but this is one of several")
    assert not (home.path / "runs").exists()


def test_two_commands_do_not_write_one_folder(home, run):
    (home.path / "c").mkdir()
    with FileLock(home.path / "c" / ".lock"):
        result = run("compare", home.recipe, "--output", "c")
    assert result.is_mistake("c is in use by another process. Wait until it has finished")


def test_all_baselines(compare_one, home):
    """All are scored on the same rows; their costs are those of arithmetic."""
    home.data["method"]["init"] = {"from": "text", "text": "good"}
    result = compare_one("--output", "c", "--json")
    assert result.status == 0, result.err
    variants = by_name(result)
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
    assert compare_one("--output", "c", "--json").json == result.json
    assert (home.path / "c" / "results.jsonl").read_text() == before


def test_a_comparison_file_with_a_time_budget(home, run):
    home.recipe.with_name("plan.toml").write_text(
        'base = "recipe.toml"\nnum_seeds = 1\nlr_multipliers = [1.0]\nbaselines = ["majority"]\n'
        '[[variants]]\nname = "two tokens"\noverrides = { "task.template" = "{text}{soft:2}" }\n'
        '[[variants]]\nname = "six tokens"\noverrides = { "task.template" = "{text}{soft:6}" }\n'
    )
    result = run("compare", "plan.toml", "--time-budget", "0.5", "--json", "--output", "c")
    assert result.status == 0, result.err
    costs = {name: variant["results"][0]["cost"] for name, variant in by_name(result).items()}
    assert {*costs} == {"majority", "two tokens", "six tokens"}
    assert costs["six tokens"]["trainable"] == 3 * costs["two tokens"]["trainable"]
    searches = {x["variant"]: x for x in read_lines(home.path / "c", "search_result")}
    for name in ("two tokens", "six tokens"):
        assert costs[name]["steps"] == searches[name]["steps"] > 0
        assert searches[name]["seconds"] == 0.5


def test_free_text_is_compared_by_its_similarity(compare_one, home):
    for split, count in (("train", 16), ("validation", 6), ("test", 6)):
        rows = [{**row, "target": row["label"]} for row in home.rows(split)[:count]]
        home.write(split, rows)
    home.data["task"] = {"kind": "generate", "template": "{text} is{soft:4}", "max_new_tokens": 3}
    result = compare_one("--output", "c", "--json")
    assert result.status == 0, result.err
    assert result.json["measure"] == "chrf"
    variants = by_name(result)
    assert {*variants} == {"majority", "hard-prompt", "fine-tuning", "lora", "prompt-tuning"}
    trained = variants["prompt-tuning"]["results"][0]
    assert trained["confusion"] is None
    assert {"bleu", "chrf", "rougeL"} <= {*trained["metrics"]}
    assert 0 <= variants["prompt-tuning"]["mean"] <= 1


def test_after_a_failure_the_others_continue(compare, home):
    home.data["method"]["layers"] = "7:"
    result = compare("--lr-multipliers", "1", "--output", "c", "--json")
    assert result.status == 1
    assert {*by_name(result)} == {"majority", "hard-prompt", "p-tuning-v2"}
    [failed] = result.json["failed"]
    assert (failed["variant"], failed["seed"]) == ("prompt-tuning", 42)
    assert "layers = '7:'" in failed["error"]
    assert "prompt-tuning failed, the others continue" in result.err


def test_find_lr(find_lr, home, run):
    search = find_lr("s", multipliers="0.1,1,10", fraction=0.5)
    tried = {row["rate"]: row for row in search["tried"]}
    assert [*tried] == pytest.approx([0.005, 0.05, 0.5])
    assert {row["steps"] for row in tried.values()} == {3}
    assert search["rate"] == min(tried, key=lambda rate: tried[rate]["loss"])
    picture = home.path / "s" / "rates.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    for path in (home.path / "s").glob("*/artifact/manifest.json"):
        assert "test" not in json.loads(path.read_text())["data"]
    options = ("--lr-multipliers", "0.1,1,10", "--search-fraction", 0.5, "--output", "s")
    result = run("find-lr", home.recipe, *options)
    assert result.out.splitlines()[0].split() == ["learning", "rate", "valid.", "loss"]
    command = f"softprompt train {home.recipe} --set train.learning_rate={search['rate']:g}"
    assert result.err.endswith(f"Next:\n  {command}\n")
    home.data["train"]["epochs"] = 5
    assert run("find-lr", home.recipe, "--output", "s").is_mistake("started with another recipe")


def test_find_lr_suggests_a_command_with_the_same_overrides(home, run):
    overrides = ("--set", "train.epochs=1", "--set", 'method.init={from = "vocabulary"}')
    result = run("find-lr", home.recipe, *overrides, "--lr-multipliers", "1", "--output", "s")
    command = shlex.split(result.err.split("Next:\n")[1])
    assert command == [
        "softprompt", "train", str(home.recipe), *overrides, "--set", "train.learning_rate=0.05",
    ]  # fmt: skip


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


def test_a_label_that_only_test_rows_have(home, run):
    home.write("test", [{"text": "good", "label": "neutral"}])
    assert run("compare", home.recipe).is_mistake("neutral", "test")


def test_missing_splits_are_refused_and_nothing_is_written(home, run):
    del home.data["data"]["test"]
    assert run("compare", home.recipe, "--output", "c").is_mistake(
        "there are no test rows, but variants are compared by test rows. Set data.test; or, to "
        "split them off the training rows, leave out data.validation and data.test and give "
        "validation and test a share in data.split_sizes."
    )
    del home.data["data"]["validation"]
    home.data["data"]["split_sizes"] = {"train": 1.0, "validation": 0.0, "test": 0.0}
    result = run("compare", home.recipe, "--output", "c")
    assert result.is_mistake("there are no validation and test rows")
    assert run("find-lr", home.recipe, "--output", "c").is_mistake(
        "there are no validation rows, but prompts are selected by validation rows. Set "
        "data.validation; or, ",
        "and give validation a share in data.split_sizes.",
    )
    assert not (home.path / "c").exists()
    home.data["data"]["split_sizes"] = {"train": 0.5, "validation": 0.25, "test": 0.25}
    options = (*ONE_METHOD, "--baselines", "majority", "--output", "c")
    assert run("compare", home.recipe, *options).status == 0
