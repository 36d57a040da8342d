"""Every variant sees the same rows and the test rows last; results are not computed again."""

import json
import re
from dataclasses import dataclass, replace

import pytest

from softprompt.compare import (
    Cost,
    Failed,
    HeldOutTest,
    Protocol,
    RunResult,
    SearchResult,
    SequentialEngine,
    TrainedRun,
    fit_majority,
    make_finetune_variants,
    make_method_variants,
    run_comparison,
    search_learning_rate,
)
from softprompt.errors import DataError, RecipeError, TrainingError
from softprompt.methods import METHODS
from softprompt.recipe import make_recipe
from softprompt.tasks.objectives import SingleLabel

TEST = [{"text": text, "label": label} for text, label in (("a", "x"), ("b", "y"), ("c", "x"))]
TEST_SET = HeldOutTest(TEST, ["x", "y", "x"], SingleLabel(("x", "y")))
ERROR = ("it broke",)
RECIPE = {
    "seed": 5,
    "backbone": {"name": "none"},
    "data": {"train": "memory"},
    "task": {
        "kind": "classify",
        "template": "Is {text} good?{soft:3}",
        "verbalizer": {"x": [" x"], "y": [" y"]},
    },
    "method": {"name": "prompt-tuning", "init": {"from": "text", "text": "say"}},
    "train": {"learning_rate": 0.5},
}


@dataclass
class FakeRuns:
    """Does not train: the score falls with the distance of the multiplier from the best one."""

    calls: list
    best: float = 3.0
    broken: str = ""
    fault: type[Exception] = TrainingError

    def __call__(self, spec):
        self.calls.append((spec.name, spec.seed, spec.fraction, spec.multiplier, spec.steps))
        if spec.variant.name == self.broken:
            raise self.fault(*ERROR)
        return TrainedRun(
            answer=lambda rows: ["x" for _ in rows],
            score=-abs(spec.multiplier - self.best),
            validation={"loss": 1.0},
            rate=0.5 * spec.multiplier,
            pace=0.5,
            cost=Cost(9, 100, 80, 2.0, 6),
            run=spec.name,
        )


def make_protocol(**changes) -> Protocol:
    defaults = {
        "num_seeds": 2,
        "lr_multipliers": (0.3, 1.0, 3.0),
        "search_fraction": 0.1,
        "test_set": TEST_SET,
    }
    return Protocol(**{**defaults, **changes})


BASELINES = {"majority": lambda: fit_majority(["x", "y", "x"], SingleLabel(("x", "y")))}


def compare(path, runs, methods=("prompt-tuning", "p-tuning-v2"), **changes):
    variants = make_method_variants(make_recipe(RECIPE), methods)
    protocol = make_protocol(**changes)
    engine = SequentialEngine(protocol, runs)
    return [*run_comparison(variants, BASELINES, protocol=protocol, engine=engine, path=path)]


def test_the_order_of_runs(tmp_path):
    runs = FakeRuns([])
    events = compare(tmp_path / "results.jsonl", runs)
    assert [type(e) for e in events] == [
        RunResult,
        SearchResult,
        RunResult,
        SearchResult,
        *[RunResult] * 3,
    ]
    searches = [(f"{v}-search-{f:g}", 5, 0.1, f, None) for v in ("prompt-tuning", "p-tuning-v2")
                for f in (0.3, 1.0, 3.0)]  # fmt: skip
    whole = [(f"{v}-{seed}", seed, 1.0, 3.0, None) for seed in (5, 6)
             for v in ("prompt-tuning", "p-tuning-v2")]  # fmt: skip
    assert sorted(runs.calls) == sorted(searches + whole)
    results = [e for e in events if isinstance(e, RunResult)]
    assert {r.scores for r in results} == {(1.0, 0.0, 1.0)}
    assert {r.score for r in results} == {2 / 3}
    assert {r.metrics["accuracy"] for r in results} == {2 / 3}
    assert {r.confusion.counts for r in results} == {((2, 0), (1, 0))}
    assert {(r.variant, r.seed) for r in results} == {
        ("majority", None), *((v, s) for v in ("prompt-tuning", "p-tuning-v2") for s in (5, 6)),
    }  # fmt: skip
    assert {r.rate for r in results if r.seed} == {1.5}


@pytest.mark.parametrize(
    ("scores", "losses", "best"),
    [
        ({0.3: 1, 1.0: 2, 3.0: 0}, {0.3: 1, 1.0: 1, 3.0: 1}, 1.0),
        ({0.3: 2, 1.0: 2, 3.0: 2}, {0.3: 3, 1.0: 2, 3.0: 1}, 3.0),
        ({0.3: 2, 1.0: 2, 3.0: 2}, {0.3: 1, 1.0: 1, 3.0: 1}, 1.0),
        ({0.3: 2, 1.0: 0, 3.0: 2}, {0.3: 1, 1.0: 9, 3.0: 2}, 0.3),
    ],
    ids=["the score", "else the loss", "else the usual rate", "not the worst score"],
)
def test_the_best_multiplier_is_selected(tmp_path, scores, losses, best):
    runs = FakeRuns([])

    def run(spec):
        score, loss = scores[spec.multiplier], losses[spec.multiplier]
        return replace(runs(spec), score=float(score), validation={"loss": loss})

    events = compare(tmp_path / "o", run, ("p-tuning",))
    [search] = [event for event in events if isinstance(event, SearchResult)]
    assert search.multiplier == best
    assert dict(search.scores) == scores


def test_a_single_multiplier_needs_no_search(tmp_path):
    runs = FakeRuns([])
    compare(tmp_path / "results.jsonl", runs, lr_multipliers=(1.0,), num_seeds=1)
    assert {(fraction, multiplier) for _, _, fraction, multiplier, _ in runs.calls} == {(1.0, 1.0)}


@pytest.mark.parametrize("stop", range(1, 8))
def test_it_resumes_wherever_it_was_stopped(tmp_path, stop):
    whole = compare(tmp_path / "whole.jsonl", FakeRuns([]))
    path, runs = tmp_path / "results.jsonl", FakeRuns([])
    variants = make_method_variants(make_recipe(RECIPE), ("prompt-tuning", "p-tuning-v2"))
    protocol = make_protocol()
    engine = SequentialEngine(protocol, runs)
    events = run_comparison(variants, BASELINES, protocol=protocol, engine=engine, path=path)
    for _ in range(stop):
        next(events)
    events.close()
    resumed = compare(path, runs)
    assert resumed == whole
    assert path.read_text() == (tmp_path / "whole.jsonl").read_text()
    assert len(runs.calls) == 10, "no run is trained twice"


@pytest.mark.parametrize(
    ("fault", "message"),
    [(TrainingError, "it broke"), (RuntimeError, "RuntimeError: it broke")],
    ids=["of softprompt", "of a library"],
)
def test_after_a_failure_the_others_continue_and_it_is_tried_again(tmp_path, fault, message):
    path = tmp_path / "results.jsonl"
    events = compare(path, FakeRuns([], broken="p-tuning-v2", fault=fault))
    assert [e for e in events if isinstance(e, Failed)] == [Failed("p-tuning-v2", None, message)]
    assert sum(isinstance(e, RunResult) for e in events) == 3
    repeated = compare(path, FakeRuns([]))
    assert not any(isinstance(e, Failed) for e in repeated)
    assert sum(isinstance(e, RunResult) for e in repeated) == 5


def test_other_test_rows_are_another_comparison(tmp_path):
    path = tmp_path / "results.jsonl"
    compare(path, FakeRuns([]))
    with pytest.raises(DataError, match="started with 3 test rows, but there are 2 now"):
        compare(
            path, FakeRuns([]), test_set=HeldOutTest(TEST[:2], ["x", "y"], SingleLabel(("x", "y")))
        )


@pytest.mark.parametrize(
    "change", [{"lr_multipliers": (1.0,)}, {"search_fraction": 0.2}, {"time_budget_seconds": 9.0}]
)
def test_another_search_is_another_comparison(tmp_path, change):
    path = tmp_path / "results.jsonl"
    compare(path, FakeRuns([]))
    with pytest.raises(
        DataError, match=r"started with learning rates times 0.3, 1, 3, each for 10% of"
    ):
        compare(path, FakeRuns([]), **change)


DAMAGES = [
    (r".*", "{", "Expecting property name"),
    (r".*", "[1]", ""),
    ('"variant"', '"name"', "the keys of the event 'search_result' are not valid"),
    (
        "search_result",
        "search",
        r"unknown event 'search'\. Remove the line; what it recorded is run",
    ),
]


@pytest.mark.parametrize(("pattern", "replacement", "message"), DAMAGES)
def test_a_damaged_line_is_named(tmp_path, pattern, replacement, message):
    path = tmp_path / "results.jsonl"
    compare(path, FakeRuns([]))
    first, second, *others = path.read_text().split("\n")
    path.write_text("\n".join([first, re.sub(pattern, replacement, second, count=1), *others]))
    with pytest.raises(DataError, match=rf"line 2 of .*results\.jsonl is damaged: {message}"):
        compare(path, FakeRuns([]))


def test_a_last_line_that_a_kill_cut_off_is_run_again(tmp_path):
    path = tmp_path / "results.jsonl"
    whole = compare(path, FakeRuns([]))
    path.write_text(path.read_text()[:-9])
    runs = FakeRuns([])
    assert compare(path, runs) == whole
    assert [name for name, *_ in runs.calls] == ["p-tuning-v2-6"]


def test_a_time_budget_is_converted_to_steps_by_a_short_run(tmp_path):
    """A step takes half a second: nine seconds are eighteen steps, in searches a tenth of them."""
    runs = FakeRuns([])
    events = compare(tmp_path / "o", runs, ("p-tuning",), time_budget_seconds=9.0)
    assert runs.calls[0] == ("p-tuning-pace", 5, 1.0, 1.0, 12)
    assert {steps for *_, steps in runs.calls[1:]} == {18}
    [search] = [e for e in events if isinstance(e, SearchResult)]
    assert (search.seconds, search.steps) == (9.0, 18)
    more = FakeRuns([])
    compare(tmp_path / "o", more, ("p-tuning",), time_budget_seconds=9.0, num_seeds=3)
    assert more.calls == [("p-tuning-7", 7, 1.0, 3.0, 18)], "the search is not run again"


def test_after_a_failure_of_a_baseline_the_variants_continue(tmp_path):
    def fail():
        raise ValueError(*ERROR)

    protocol = make_protocol(num_seeds=1)
    variants = make_method_variants(make_recipe(RECIPE), ["p-tuning"])
    engine, path = SequentialEngine(protocol, FakeRuns([])), tmp_path / "o"
    baselines = {"linear-probe": fail}
    events = [*run_comparison(variants, baselines, protocol=protocol, engine=engine, path=path)]
    assert events[0] == Failed("linear-probe", None, "ValueError: it broke")
    assert isinstance(events[-1], RunResult)


def test_with_fewer_seeds_or_variants_the_file_keeps_the_other_results(tmp_path):
    path = tmp_path / "o"
    compare(path, FakeRuns([]), num_seeds=3)
    before = path.read_text()
    events = compare(path, FakeRuns([]), ("p-tuning-v2",), num_seeds=1)
    results = [(e.variant, e.seed) for e in events if isinstance(e, RunResult)]
    assert results == [("majority", None), ("p-tuning-v2", 5)]
    assert path.read_text() == before


def test_a_search_releases_the_weights(tmp_path):
    [variant] = make_method_variants(make_recipe(RECIPE), ["p-tuning"])
    runs = search_learning_rate(variant, multipliers=(1.0,), fraction=1, run=FakeRuns([]))
    with pytest.raises(TrainingError, match="weights of a search are not stored"):
        runs[1.0].answer(TEST)


def test_tuning_the_backbone_is_a_baseline_with_the_words_of_the_prompt(tmp_path):
    recipe = make_recipe(RECIPE)
    variants = make_finetune_variants(recipe, ["fine-tuning", "lora"])
    assert [(variant.name, variant.kind) for variant in variants] == [
        ("fine-tuning",) * 2,
        ("lora",) * 2,
    ]
    assert variants[0].recipe.task_settings.template == "Is {text} good? say"
    assert variants[0].recipe.train.learning_rate is None
    protocol = make_protocol()
    engine = SequentialEngine(protocol, FakeRuns([]))
    events = run_comparison(variants, {}, protocol=protocol, engine=engine, path=tmp_path / "o")
    assert {e.is_baseline for e in events if isinstance(e, RunResult)} == {True}


@pytest.mark.parametrize("first", METHODS)
@pytest.mark.parametrize("second", METHODS)
def test_another_method_gets_as_many_soft_tokens(first, second):
    data = json.loads(json.dumps(RECIPE))
    soft = METHODS[first].prompt_kind == "input"
    data["method"] |= {"name": first} | ({} if soft else {"length": 3})
    data["task"]["template"] = "Is {text} good?" + ("{soft:3}" if soft else "")
    [variant] = make_method_variants(make_recipe(data), [second])
    assert variant.name == variant.recipe.method.name == second
    settings = variant.recipe.method_settings
    template = variant.recipe.task_settings.template
    if METHODS[second].prompt_kind == "kv":
        assert (settings.length, template) == (3, "Is {text} good?")
    else:
        assert template == ("Is {text} good?{soft:3}" if soft else "{soft:3}Is {text} good?")
    assert variant.recipe.train.learning_rate == (0.5 if first == second else None)
    assert variant.recipe.data == make_recipe(data).data


def test_methods_that_are_unknown_or_named_twice():
    with pytest.raises(RecipeError, match=r"unknown method 'prompt-tunning'.*Did you mean") as info:
        make_method_variants(make_recipe(RECIPE), ["prompt-tunning", "p-tuning", "p-tuning"])
    assert "method 'p-tuning' is named twice" in str(info.value)
