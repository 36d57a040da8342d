"""Every variant sees the same rows and the test rows last; what was done is not done again."""

import json
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

TEST = [{"text": text, "label": label} for text, label in (("a", "x"), ("b", "y"), ("c", "x"))]
TEST_SET = HeldOutTest(TEST, ["x", "y", "x"], ("x", "y"))
BROKE = ("it broke",)
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
    """Trains nothing: the score falls with the distance of the multiplier from the best one."""

    calls: list
    best: float = 3.0
    broken: str = ""
    fault: type[Exception] = TrainingError

    def __call__(self, trial):
        self.calls.append((trial.name, trial.seed, trial.fraction, trial.multiplier, trial.steps))
        if trial.variant.name == self.broken:
            raise self.fault(*BROKE)
        return TrainedRun(
            answer=lambda rows: ["x" for _ in rows],
            score=-abs(trial.multiplier - self.best),
            validation={"loss": 1.0},
            rate=0.5 * trial.multiplier,
            pace=0.5,
            cost=Cost(9, 100, 80, 2.0, 6),
            run=trial.name,
        )


def protocol(**changes) -> Protocol:
    usual = {
        "num_seeds": 2,
        "lr_multipliers": (0.3, 1.0, 3.0),
        "search_fraction": 0.1,
        "test_set": TEST_SET,
    }
    return Protocol(**{**usual, **changes})


BESIDE = {"majority": lambda: fit_majority(["x", "y", "x"])}


def go(path, runs, methods=("prompt-tuning", "p-tuning-v2"), **changes):
    variants = make_method_variants(make_recipe(RECIPE), methods)
    asked = protocol(**changes)
    return [
        *run_comparison(
            variants, BESIDE, protocol=asked, engine=SequentialEngine(asked, runs), path=path
        )
    ]


def test_the_order_of_things(tmp_path):
    runs = FakeRuns([])
    events = go(tmp_path / "results.jsonl", runs)
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
    assert {o.scores for o in results} == {(1.0, 0.0, 1.0)}
    assert {o.score for o in results} == {2 / 3}
    assert {o.metrics["accuracy"] for o in results} == {2 / 3}
    assert {o.confusion.counts for o in results} == {((2, 0), (1, 0))}
    assert {(o.variant, o.seed) for o in results} == {
        ("majority", None), *((v, s) for v in ("prompt-tuning", "p-tuning-v2") for s in (5, 6)),
    }  # fmt: skip
    assert {o.rate for o in results if o.seed} == {1.5}


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
def test_what_the_search_goes_by(tmp_path, scores, losses, best):
    runs = FakeRuns([])

    def run(trial):
        score, loss = scores[trial.multiplier], losses[trial.multiplier]
        return replace(runs(trial), score=float(score), validation={"loss": loss})

    [found] = [e for e in go(tmp_path / "o", run, ("p-tuning",)) if isinstance(e, SearchResult)]
    assert found.multiplier == best
    assert dict(found.scores) == scores


def test_a_single_factor_is_no_search(tmp_path):
    runs = FakeRuns([])
    go(tmp_path / "results.jsonl", runs, lr_multipliers=(1.0,), num_seeds=1)
    assert {(fraction, multiplier) for _, _, fraction, multiplier, _ in runs.calls} == {(1.0, 1.0)}


@pytest.mark.parametrize("stop", range(1, 8))
def test_stopped_anywhere_it_goes_on(tmp_path, stop):
    whole = go(tmp_path / "whole.jsonl", FakeRuns([]))
    path, runs = tmp_path / "results.jsonl", FakeRuns([])
    variants = make_method_variants(make_recipe(RECIPE), ("prompt-tuning", "p-tuning-v2"))
    engine = SequentialEngine(protocol(), runs)
    going = run_comparison(variants, BESIDE, protocol=protocol(), engine=engine, path=path)
    for _ in range(stop):
        next(going)
    going.close()
    before = len(runs.calls)
    again = go(path, runs)
    assert again == whole
    assert path.read_text() == (tmp_path / "whole.jsonl").read_text()
    assert before + len(runs.calls[before:]) == 10, "nothing is trained twice"


@pytest.mark.parametrize(
    ("fault", "said"),
    [(TrainingError, "it broke"), (RuntimeError, "RuntimeError: it broke")],
    ids=["ours", "anybody's"],
)
def test_a_broken_variant_takes_no_other_down_and_is_tried_again(tmp_path, fault, said):
    path = tmp_path / "results.jsonl"
    events = go(path, FakeRuns([], broken="p-tuning-v2", fault=fault))
    assert [e for e in events if isinstance(e, Failed)] == [Failed("p-tuning-v2", None, said)]
    assert sum(isinstance(e, RunResult) for e in events) == 3
    mended = go(path, FakeRuns([]))
    assert not any(isinstance(e, Failed) for e in mended)
    assert sum(isinstance(e, RunResult) for e in mended) == 5


def test_other_test_rows_are_another_comparison(tmp_path):
    path = tmp_path / "results.jsonl"
    go(path, FakeRuns([]))
    with pytest.raises(DataError, match="started with 3 test rows, but there are 2 now"):
        go(path, FakeRuns([]), test_set=HeldOutTest(TEST[:2], ["x", "y"], ("x", "y")))


@pytest.mark.parametrize(
    "change", [{"lr_multipliers": (1.0,)}, {"search_fraction": 0.2}, {"time_budget_seconds": 9.0}]
)
def test_another_search_is_another_comparison(tmp_path, change):
    path = tmp_path / "results.jsonl"
    go(path, FakeRuns([]))
    with pytest.raises(
        DataError, match=r"started with learning rates times 0.3, 1, 3, each for 10% of"
    ):
        go(path, FakeRuns([]), **change)


def test_a_damaged_file_is_told(tmp_path):
    path = tmp_path / "results.jsonl"
    go(path, FakeRuns([]))
    path.write_text(path.read_text().replace("seed", "s\n", 1))
    with pytest.raises(DataError, match=r"results.jsonl is damaged"):
        go(path, FakeRuns([]))


def test_a_last_line_that_a_kill_cut_off_is_run_again(tmp_path):
    path = tmp_path / "results.jsonl"
    whole = go(path, FakeRuns([]))
    path.write_text(path.read_text()[:-9])
    runs = FakeRuns([])
    assert go(path, runs) == whole
    assert [name for name, *_ in runs.calls] == ["p-tuning-v2-6"]


def test_a_budget_of_seconds_is_one_of_steps_by_a_trial(tmp_path):
    """A step takes half a second: nine seconds are eighteen steps, in searches a tenth of them."""
    runs = FakeRuns([])
    events = go(tmp_path / "o", runs, ("p-tuning",), time_budget_seconds=9.0)
    assert runs.calls[0] == ("p-tuning-pace", 5, 1.0, 1.0, 12)
    assert {steps for *_, steps in runs.calls[1:]} == {18}
    [found] = [e for e in events if isinstance(e, SearchResult)]
    assert (found.seconds, found.steps) == (9.0, 18)
    again = FakeRuns([])
    go(tmp_path / "o", again, ("p-tuning",), time_budget_seconds=9.0, num_seeds=3)
    assert again.calls == [("p-tuning-7", 7, 1.0, 3.0, 18)], "what was found out stays"


def test_a_broken_baseline_takes_no_variant_down(tmp_path):
    def broken():
        raise ValueError(*BROKE)

    asked = protocol(num_seeds=1)
    variants, engine = (
        make_method_variants(make_recipe(RECIPE), ["p-tuning"]),
        SequentialEngine(asked, FakeRuns([])),
    )
    beside = {"linear-probe": broken}
    events = [*run_comparison(variants, beside, protocol=asked, engine=engine, path=tmp_path / "o")]
    assert events[0] == Failed("linear-probe", None, "ValueError: it broke")
    assert isinstance(events[-1], RunResult)


def test_fewer_seeds_are_told_of_and_the_others_kept(tmp_path):
    path = tmp_path / "o"
    go(path, FakeRuns([]), num_seeds=3)
    whole = path.read_text()
    events = go(path, FakeRuns([]), ("p-tuning-v2",), num_seeds=1)
    results = [(e.variant, e.seed) for e in events if isinstance(e, RunResult)]
    assert results == [("majority", None), ("p-tuning-v2", 5)]
    assert path.read_text() == whole


def test_a_search_lets_go_of_weights(tmp_path):
    found = search_learning_rate(make_method_variants(make_recipe(RECIPE), ["p-tuning"])[0],
    multipliers=(1.0,), fraction=1,
                   run=FakeRuns([]))  # fmt: skip
    with pytest.raises(TrainingError, match="weights of a search are not stored"):
        found[1.0].answer(TEST)


def test_what_changes_the_backbone_is_a_baseline_with_the_words_of_the_prompt(tmp_path):
    recipe = make_recipe(RECIPE)
    variants = make_finetune_variants(recipe, ["fine-tuning", "lora"])
    assert [(variant.name, variant.kind) for variant in variants] == [
        ("fine-tuning",) * 2,
        ("lora",) * 2,
    ]
    assert variants[0].recipe.task_settings.template == "Is {text} good? say"
    assert variants[0].recipe.train.learning_rate is None
    asked = protocol()
    engine = SequentialEngine(asked, FakeRuns([]))
    events = run_comparison(variants, {}, protocol=asked, engine=engine, path=tmp_path / "o")
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
    own = variant.recipe.method_settings
    template = variant.recipe.task_settings.template
    if METHODS[second].prompt_kind == "kv":
        assert (own.length, template) == (3, "Is {text} good?")
    else:
        assert template == ("Is {text} good?{soft:3}" if soft else "{soft:3}Is {text} good?")
    assert variant.recipe.train.learning_rate == (0.5 if first == second else None)
    assert variant.recipe.data == make_recipe(data).data


def test_methods_that_are_none_or_named_twice():
    with pytest.raises(RecipeError, match=r"unknown method 'prompt-tunning'.*Did you mean") as one:
        make_method_variants(make_recipe(RECIPE), ["prompt-tunning", "p-tuning", "p-tuning"])
    assert "method 'p-tuning' is named twice" in str(one.value)
