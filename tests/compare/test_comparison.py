"""The result of a comparison in Python: rows, plain data, a short text, a table in a notebook."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from softprompt.compare import Failed, format_rows, summarize_variants
from softprompt.compare.api import compare_methods, find_learning_rate
from softprompt.compare.comparison import Comparison, LearningRateSearch, LearningRateTrial
from softprompt.errors import RecipeError
from support.comparisons import make_result


class CellParser(HTMLParser):
    """The cells of a table, row by row."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def handle_starttag(self, tag, _attrs):
        if tag == "tr":
            self.rows.append([])
        elif tag in {"th", "td"}:
            self.rows[-1].append("")

    def handle_data(self, data):
        self.rows[-1][-1] += data


def read_cells(text):
    parser = CellParser()
    parser.feed(text)
    return parser.rows


@pytest.fixture
def comparison():
    results = [
        make_result("majority", None, "1010101010"),
        make_result("<b> & co", 42, "1111111100"),
        make_result("<b> & co", 43, "1111111110"),
    ]
    return Comparison(
        "accuracy", (*summarize_variants(results),), (Failed("c", 42, "why"),), Path("runs/c")
    )


def test_rows_are_the_cells_of_the_table_by_column(comparison):
    rows = comparison.to_rows()
    assert [[*row.values()] for row in rows] == format_rows(comparison.summaries)
    assert [row["name"] for row in rows] == ["<b> & co", "majority"]
    assert [*rows[0]] == ["name", *comparison.columns[1:]]
    assert rows[0]["accuracy"] == "85.0 ± 7.1 %"


def test_a_notebook_shows_its_table_and_names_are_text(comparison):
    cells = read_cells(comparison._repr_html_())
    assert cells == [comparison.columns, *([*row.values()] for row in comparison.to_rows())]
    assert "<b>" not in comparison._repr_html_()


def test_as_plain_data_it_is_json_without_the_scores_of_rows(comparison):
    data = comparison.to_dict()
    assert json.loads(json.dumps(data))["measure"] == "accuracy"
    assert [variant["mean"] for variant in data["variants"]] == [0.5, pytest.approx(0.85)]
    assert not any(
        "scores" in result for variant in data["variants"] for result in variant["results"]
    )
    assert data["failed"] == [{"variant": "c", "seed": 42, "error": "why"}]
    assert (data["report"], data["page"]) == ("runs/c/report.md", "runs/c/report.html")
    assert comparison.results == Path("runs/c/results.jsonl")


def test_its_text_is_short(comparison):
    assert repr(comparison) == (
        "Comparison(accuracy: <b> & co 85.0 ± 7.1 %, majority 50.0 %; 1 failed; output='runs/c')"
    )


def test_events_are_sentences():
    text = str(make_result("prompt-tuning", 42, "1111111100"))
    assert text == "prompt-tuning, seed 42: accuracy 80.0%, 20 s"
    assert str(make_result("majority", None, "10")) == "majority: accuracy 50.0%"
    assert str(make_result("a", None, "10", confusion=None)) == "a: chrf 50.0%"


def test_a_search_for_a_learning_rate():
    trials = tuple(
        LearningRateTrial(0.01 * m, m, 3, {"loss": 1 / m, "accuracy": 0.5}) for m in (0.5, 2.0)
    )
    search = LearningRateSearch(trials, trials[1], "accuracy", None, Path("rates.png"))
    assert repr(search) == "LearningRateSearch(learning_rate=0.02, 2 trials, picture='rates.png')"
    assert search.to_rows()[0] == {
        "learning rate": "0.005",
        "valid. loss": "2.0000",
        "valid. accuracy": "0.5000",
    }
    assert read_cells(search._repr_html_())[2] == ["0.02", "0.5000", "0.5000"]
    assert search.to_dict() == {
        "rate": 0.02,
        "picture": "rates.png",
        "tried": [
            {"rate": 0.005, "steps": 3, "loss": 2.0, "accuracy": 0.5},
            {"rate": 0.02, "steps": 3, "loss": 0.5, "accuracy": 0.5},
        ],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr_multipliers": [1, 1]}, r"lr_multipliers \[1, 1\] are not distinct positive"),
        ({"lr_multipliers": [0.0]}, "not distinct positive"),
        ({"lr_multipliers": []}, "not distinct positive"),
        ({"search_fraction": 2}, "search_fraction 2 is not above 0 and at most 1"),
    ],
)
def test_faults_of_a_search(arguments, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        find_learning_rate("absent.toml", tmp_path, **arguments)


def test_a_wrong_recipe_option_or_engine_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="the path of a file, a mapping or a Recipe, not list"):
        compare_methods([], tmp_path)
    with pytest.raises(
        TypeError, match=r"no argument 'seeds'\. Its options are methods, baselines"
    ):
        compare_methods({}, tmp_path, seeds=3)
    with pytest.raises(RecipeError, match="unknown engine 'rai'"):
        compare_methods(RECIPE, tmp_path, engine="rai")


RECIPE = {
    "backbone": {"name": "none"},
    "data": {"train": "memory"},
    "task": {"kind": "classify"},
    "method": {"name": "prompt-tuning"},
}
