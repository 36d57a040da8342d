"""Options of rows: the forms of cells and targets, faults, metrics and means, by other means."""

import json
import math

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt.errors import DataError
from softprompt.tasks import Choose, Prediction
from softprompt.tasks.choices import ChoicePrediction, Choices, make_choices
from softprompt.tasks.option_cells import (
    find_choice,
    read_choice_rows,
    read_options,
    resolve_target_form,
)
from softprompt.tasks.targets import read_targets

OPTIONS = ["Rome", "Paris", "Bern"]
TEXT = st.text(min_size=1, max_size=8).filter(str.strip)
LABELED = {"text": OPTIONS, "label": ["1", "2", "3"]}


def read(cell, **more):
    return read_options({"options": cell, **more}, Choose())


@pytest.mark.parametrize(
    "cell",
    [
        OPTIONS,
        tuple(OPTIONS),
        json.dumps(OPTIONS),
        str(OPTIONS),  # as Python writes it
        "Rome|Paris|Bern",
        " Rome | Paris | Bern ",
        {"text": OPTIONS},
        LABELED,
        json.dumps(LABELED),
    ],
)
def test_the_forms_of_a_cell(cell) -> None:
    assert read(cell).texts == tuple(OPTIONS)


@settings(deadline=None)
@given(st.lists(TEXT, min_size=2, max_size=6, unique=True))
def test_no_option_is_dropped_or_changed(texts) -> None:
    """Of a list, its JSON and a record: whatever characters an option has."""
    for cell in (
        texts,
        json.dumps(texts),
        {"text": texts, "label": [*map(str, range(len(texts)))]},
    ):
        assert read(cell).texts == tuple(texts)
    for at, text in enumerate(texts):
        row = {"options": texts, "target": text}
        form = Choose(target_form="text")
        assert find_choice(row, form, options=read_options(row, form)) == at


def test_columns_of_an_option_each_end_where_a_row_has_no_more() -> None:
    task = Choose(options_column=["a", "b", "c"])
    assert read_options({"a": " x ", "b": "y", "c": None}, task).texts == ("x", "y")
    assert read_options({"a": 1, "b": 2.5, "c": ""}, task).texts == ("1", "2.5")
    with pytest.raises(DataError, match="column 'b' has no option, but 'c' after it has one"):
        read_options({"a": "x", "b": "", "c": "z"}, task)
    with pytest.raises(DataError, match="unknown column 'b'"):
        read_options({"a": "x", "c": "z"}, task)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (["a"], r"has 1 option \('a'\), but a choice needs at least 2"),
        ([], "has 0 options, but a choice"),
        (None, "has 0 options"),
        ("", "has 0 options"),
        ("one", "has 1 option"),
        (["a", ""], r"an empty option \('a', ''\)"),
        (["a", None], "an empty option"),
        ("a||b", "an empty option"),
        (["a", "b", "a"], "the option 'a' stands twice"),
        ([["a"], "b"], "are not a list of texts"),
        ('["a", "b"', "begins as a list, but is not one"),
        ({"text": ["a", "b"], "label": ["A"]}, "neither a list of texts nor a record"),
        ({"text": ["a", "b"], "label": ["A", "A"]}, "have a label twice"),
        ({"answers": ["a", "b"]}, "neither a list of texts nor a record"),
    ],
)
def test_faulty_options_are_refused(cell, message) -> None:
    with pytest.raises(DataError, match=message):
        read(cell)


TARGETS = [
    (OPTIONS, "Paris", "text", 1), (OPTIONS, " Paris ", "text", 1), (OPTIONS, 2, "index", 2),
    (OPTIONS, "2", "index", 2), (OPTIONS, " 0 ", "index", 0), (OPTIONS, "C", "label", 2),
    (OPTIONS, "c", "label", 2), (LABELED, "3", "label", 2), (LABELED, 1, "label", 0),
    (LABELED, "Bern", "text", 2), (["1", "2"], "2", "text", 1), (["A", "B"], "B", "text", 1),
]  # fmt: skip


@pytest.mark.parametrize(("cell", "target", "form", "choice"), TARGETS)
def test_targets_name_an_option_in_their_form(cell, target, form, choice) -> None:
    row = {"options": cell, "target": target}
    table = Dataset.from_list([row | {"options": cell if isinstance(cell, dict) else [*cell]}])
    task = Choose(target_form=form)
    assert find_choice(row, task, options=read_options(row, task)) == choice
    assert read_targets(table, task) == [read(cell).texts[choice]]
    if cell in (OPTIONS, LABELED):
        assert resolve_target_form(Choose(), table).target_form == form


@pytest.mark.parametrize(
    ("cell", "target", "form", "message"),
    [
        (OPTIONS, "Oslo", "text", r"'Oslo' is not the text of one \('Rome', 'Paris', 'Bern'\)"),
        (OPTIONS, "Rome", "index", "'Rome' is not its index, 0 to 2"),
        (OPTIONS, 3, "index", "'3' is not its index.* Indices count from 0: subtract 1"),
        (OPTIONS, -1, "index", "'-1' is not its index"),
        (OPTIONS, 1.5, "index", r"'1\.5' is not its index"),
        (OPTIONS, "D", "label", "'D' is not its label, A, B, C"),
        (OPTIONS, None, "text", "target has no value"),
        (OPTIONS, "  ", "auto", "target has no value"),
        (OPTIONS, "Oslo", "auto", "text of one .*, or its index, 0 to 2, or its label, A, B, C"),
        (LABELED, 0, "auto", "text of one .*, or its label, 1, 2, 3"),
        (["1", "0"], "1", "auto", "as a text option 0, as an index option 1"),
        (["B", "A"], "B", "auto", "as a text option 0, as a label option 1"),
    ],
)
def test_targets_that_are_not_clear_are_refused(cell, target, form, message) -> None:
    row, task = {"options": cell, "target": target}, Choose(target_form=form)
    with pytest.raises(DataError, match=message):
        find_choice(row, task, options=read_options(row, task))
    if target is not None:
        rows = Dataset.from_list([row])
        with pytest.raises(DataError, match=rf"row 0 .*column 'target': .*{message}"):
            read_choice_rows(rows, task, split="train")


def make_rows(*pairs):
    return Dataset.from_list([{"options": cell, "target": target} for cell, target in pairs])


def test_one_form_is_found_for_all_rows() -> None:
    """A row alone may be read in several ways; all rows together in one."""
    forms = resolve_target_form(Choose(), make_rows((["1", "0"], "1"), (["a", "b"], "1")))
    assert forms.target_form == "index"
    forms = resolve_target_form(Choose(), make_rows((["B", "A"], "B"), (["good", "bad"], "bad")))
    assert forms.target_form == "text"
    with pytest.raises(DataError, match=r"row 0 .*as a text option 0, as a label option 1"):
        resolve_target_form(Choose(), make_rows((["B", "A"], "B"), (["A", "B"], "A")))
    with pytest.raises(DataError, match="not all of one form: row 1 is not a text, row 0 is not a"):
        resolve_target_form(Choose(), make_rows((OPTIONS, "Rome"), (OPTIONS, "1")))


def make_prediction(objective, shares, twin=()):
    return objective.choose(shares, scores=[math.log(x) for x in shares.values()], twin_shares=twin)


def test_metrics_are_counted_by_hand() -> None:
    objective = make_choices(Choose())
    assert objective.metric_names == ("accuracy", "accuracy_normalized", "ece")
    found = [
        make_prediction(objective, {"a": 0.75, "b": 0.25}, (0.4, 0.6)),
        make_prediction(objective, {"c": 0.2, "a": 0.3, "d": 0.5}, (0.1, 0.8, 0.1)),
        make_prediction(objective, {"x": 0.5, "y": 0.5}, (0.5, 0.5)),  # the first of equal ones
    ]
    assert [(one.label, one.choice, one.twin_choice) for one in found] == [
        ("a", 0, 1), ("d", 2, 1), ("x", 0, 0),
    ]  # fmt: skip
    truth = ["a", "a", "x"]
    metrics = objective.score(truth, found).metrics
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["accuracy_normalized"] == pytest.approx(2 / 3)
    assert objective.score_rows(truth, [one.label for one in found]) == (1.0, 0.0, 1.0)
    # Two of share 0.5, of which one is right, and one of 0.75 that is right.
    assert metrics["ece"] == pytest.approx(abs(0.75 - 1) / 3)
    assert found[0].details == {"choice": 0, "scores": found[0].scores, "twin_choice": 1}
    plain = [Prediction(one.label, {}) for one in found]
    assert objective.score(truth, plain).metrics == {"accuracy": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"length_normalization": "tokens"}, ("accuracy", "accuracy_unnormalized", "ece")),
        ({"length_normalization": "characters"}, ("accuracy", "accuracy_unnormalized", "ece")),
        ({"head": "linear"}, ("accuracy", "ece")),
    ],
)
def test_the_names_of_metrics_are_those_of_the_settings(settings, names) -> None:
    assert make_choices(Choose(**settings)).metric_names == names


def test_the_mean_of_several_prompts_is_of_both_rules() -> None:
    objective = Choices()
    found = objective.average(
        [
            make_prediction(objective, {"a": 0.9, "b": 0.1}, (0.2, 0.8)),
            make_prediction(objective, {"a": 0.4, "b": 0.6}, (0.7, 0.3)),
        ]
    )
    assert found == ChoicePrediction("a", {"a": 0.65, "b": 0.35}, choice=0, twin_choice=1)
    assert found.twin_shares == pytest.approx((0.45, 0.55))
    head = Choices(has_twin=False)
    assert head.average([head.choose({"a": 0.3, "b": 0.7})]).twin_choice is None
