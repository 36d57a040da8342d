"""The page of a comparison: self-contained, escaped, always the same, with the right numbers."""

import re
from html.parser import HTMLParser

import pytest

from softprompt.compare import Cost, Failed, format_rows
from softprompt.compare.report.html import Extra, Grid, Paragraph, Picture, render_html
from softprompt.compare.report.prose import summarize
from softprompt.compare.report.table import format_header, sum_confusions
from softprompt.inference import ConfusionMatrix
from support.comparisons import make_report, make_result

HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Reads a page: its tags, whether they close in order, and its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "meta":
            return
        self.open.append(tag)
        match tag:
            case "table":
                self.tables.append([])
            case "tr":
                self.tables[-1].append([])
            case "th" | "td":
                self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if {"th", "td"} & {*self.open}:
            self.tables[-1][-1][-1] += data


def list_headings(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


def is_self_contained(text: str) -> bool:
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & {
        tag for tag, _ in page.tags
    }
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "xlink:href", "action", "data"}:
                assert value.startswith(("#", "data:image/png;base64,"))
    assert "@import" not in text
    assert all(goal.startswith("#") for goal in re.findall(r"url\(([^)]*)\)", text))
    return True


def test_a_page_is_self_contained_and_always_the_same():
    text = render_html(make_report())
    assert is_self_contained(text)
    assert text == render_html(make_report())
    assert text.startswith("<!doctype html>")
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert list_headings(text) == [
        "Scores",
        "Figures",
        "Confusion matrices",
        "Conditions",
        "Recipe",
    ]
    assert text.count("<svg") == 4


def test_the_table_has_the_numbers_of_the_summaries():
    report = make_report()
    scores = Page(render_html(report)).tables[0]
    assert scores == [[*format_header("accuracy")], *format_rows(report.summaries)]
    assert scores[1][:3] == ["prompt-tuning", "85.0 ± 7.1 %", "2"]
    assert scores[1][3].startswith("+15.0 (")
    assert [row[0] for row in scores[1:]] == ["prompt-tuning", "lora", "p-tuning-v2", "majority"]
    baselines = re.findall(r'<tr class="baseline">.*?</span>(.*?)</th>', render_html(report))
    assert baselines == ["lora", "majority"]


def test_matrices_are_sums_over_seeds():
    report = make_report()
    # prompt-tuning: rows 9 and 10 wrong in one seed, the last in the other.
    tables = {row[0][0]: row for row in Page(render_html(report)).tables[1:]}
    assert tables
    summed = sum_confusions(report.summaries[1])
    assert summed.variant == "prompt-tuning"
    cells = [[(c.count, c.share, c.right) for c in row] for _, row in summed.rows]
    assert cells == [[(9, 0.9, True), (1, 0.1, False)], [(2, 0.2, False), (8, 0.8, True)]]
    assert Page(render_html(report)).tables[1][1] == ["negative", "990%", "110%"]


def test_a_column_that_some_seeds_lack_is_zero_for_them():
    labels = ("no", "yes")
    plain = ConfusionMatrix(labels, labels, ((3, 1), (0, 4)))
    free = ConfusionMatrix(labels, (*labels, "other"), ((2, 1, 1), (0, 0, 4)))
    results = [
        make_result("a", 1, "1" * 10, confusion=plain),
        make_result("a", 2, "1" * 10, confusion=free),
    ]
    summed = sum_confusions(make_report(results).summaries[0])
    assert summed.answered == ("no", "yes", "other")
    counts = {label: [cell.count for cell in cells] for label, cells in summed.rows}
    assert counts == {"no": [5, 2, 1], "yes": [0, 4, 4]}


@pytest.mark.parametrize(("labels", "shown"), [(12, True), (13, False)])
def test_too_many_labels_have_no_matrix(labels, shown):
    names = tuple(f"label {at}" for at in range(labels))
    counts = tuple(tuple(int(i == j) for j in range(labels)) for i in range(labels))
    confusion = ConfusionMatrix(names, names, counts)
    text = render_html(make_report([make_result("a", 1, "1" * 10, confusion=confusion)]))
    assert (len(Page(text).tables) == 2) == shown
    assert ("There are 13 labels" in text) != shown


def test_hostile_names_are_text():
    names = (HOSTILE, "a&b")
    confusion = ConfusionMatrix(names, names, ((5, 0), (0, 5)))
    results = [
        make_result(HOSTILE, 1, "1" * 10, confusion=confusion),
        make_result("majority", None, "10" * 5, confusion=confusion),
    ]
    report = make_report(
        results,
        curves={"accuracy": {HOSTILE: [[(0, 0.5), (9, 0.7)]]}},
        failed=[Failed(HOSTILE, None, HOSTILE)],
        title=HOSTILE,
        extras=[Extra(HOSTILE, [Paragraph(HOSTILE), Grid([HOSTILE], [[HOSTILE]], HOSTILE)])],
    )
    text = render_html(report)
    assert is_self_contained(text)
    assert "<script" not in text
    page = Page(text)
    assert page.tables[0][1][0] == HOSTILE
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) == 4
    assert all("&lt;script&gt;alert(1)&lt;/script&gt;" in picture for picture in pictures)


def test_a_picture_that_is_not_markup_is_escaped():
    picture = Picture("<svg onload=alert(1)>", "not rendered by softprompt")
    report = make_report(extras=[Extra("The trained prompts", [picture])])
    assert "<svg onload" not in render_html(report)


def test_extras_come_before_the_conditions():
    grid = Grid(["soft token", "nearest words"], [["1", "film, movie"], ["2", "good"]], "By cosine")
    text = render_html(
        make_report(extras=[Extra("The trained prompts", [Paragraph("What it says."), grid])])
    )
    assert list_headings(text)[-3:] == ["The trained prompts", "Conditions", "Recipe"]
    assert [*grid.rows] == Page(text).tables[-1][1:]
    assert "By cosine" in text


def test_with_one_seed():
    results = [make_result("majority", None, "10" * 5), make_result("a", 7, "1111111110")]
    text = render_html(make_report(results, curves={"accuracy": {"a": [[(0, 0.5), (5, 0.8)]]}}))
    assert is_self_contained(text)
    assert Page(text).tables[0][1][1] == "90.0 %"
    assert "over 1 seed" not in text


def test_without_baselines():
    results = [make_result("a", 7, "1111111110"), make_result("b", 7, "1111111100")]
    text = render_html(make_report(results))
    assert is_self_contained(text)
    assert "There was no baseline" in text
    assert text.count("<svg") == 2, "no differences, and no curves of other variants"


def test_of_free_text():
    results = [make_result("a", 7, "1111111110", confusion=None)]
    text = render_html(make_report(results, curves={}, labels=()))
    assert is_self_contained(text)
    assert "Confusion matrices" not in list_headings(text)
    assert "90.0 % chrf" in text


def test_of_failures_only():
    failed = [Failed("a", 42, "memory ran out"), Failed("b", None, "no such layer: '7:'")]
    text = render_html(make_report([], curves={}, failed=failed))
    assert is_self_contained(text)
    assert list_headings(text) == ["Conditions", "Failures", "Recipe"]
    assert "a, seed 42" in text
    assert "no such layer: &#39;7:&#39;" in text
    assert "No run finished" in text
    assert "a and b failed and are listed below." in text


def test_the_conditions_are_those_of_the_report():
    conditions = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", render_html(make_report())))
    assert conditions["Backbone"] == "some-backbone"
    assert conditions["Rows"].startswith("960 train, 120 validation, 10 test:")
    assert conditions["Seeds"].startswith("2, from 42 to 43:")
    assert conditions["Budget"] == (
        "3 passes over the training rows, 32 at a time. That is 90 steps per run."
    )
    assert "0.3, 1, 3, each tried for 10% of the steps" in conditions["Learning rates"]
    assert conditions["Selected multiples"] == "prompt-tuning 1"
    assert (
        conditions["Selection"]
        == "Of each run, the state with the lowest loss on the validation rows."
    )
    assert conditions["Versions"] == "softprompt 0.1.0, torch 9.9"


def summarize_results(results, failed=()):
    return summarize(make_report(results).summaries, failed=failed, measure="accuracy")


def test_the_verdict_names_the_best_and_its_difference():
    results = [
        make_result("majority", None, "01" * 50),
        make_result("a", 1, "1" * 90 + "0" * 10),
        make_result("b", 1, "1" * 80 + "0" * 20),
    ]
    text = summarize_results(results)
    assert text.startswith(
        "a is the best of 2 prompts: 90.0 % accuracy on 100 test rows; the next is b with 80.0 %. "
        "That is 40.0 points above the best baseline, majority (50.0 %)."
    )
    low, high = map(float, re.search(r"difference, (\S+) to (\S+),", text).groups())
    assert 0 < low < 40 < high
    assert "excludes 0: on such rows the prompt is better than the baseline." in text


@pytest.mark.parametrize(
    ("right", "fragments"),
    [
        (4, ["60.0 points below", "excludes 0", "worse than the baseline"]),
        (64, ["tied with", "contains 0", "is not significant"]),
        (66, ["2.0 points above", "contains 0", "is not significant"]),
    ],
)
def test_the_verdict_says_whether_the_difference_is_significant(right, fragments):
    answers = "0" * (100 - right) + "1" * right
    results = [make_result("majority", None, "1" * 64 + "0" * 36), make_result("a", 1, answers)]
    text = summarize_results(results)
    assert text.startswith(f"a is the only prompt: {right}.0 % accuracy")
    assert all(fragment in text for fragment in fragments), text


def test_the_verdict_of_tied_prompts_and_of_their_sizes():
    results = [
        make_result("lora", 1, "1100", cost=Cost(4_000, 900_000, 1, 9.0)),
        make_result("a", 1, "1110"),
        make_result("b", 1, "0111"),
    ]
    text = summarize_results(results, [Failed("c", 1, "no")])
    assert text.startswith("a and b are tied: 75.0 % accuracy on 4 test rows.")
    assert "It trains 1,000 parameters (0.111% of the backbone's), the baseline 4,000." in text
    assert text.endswith("c failed and is listed below.")


def test_the_verdict_says_when_a_constant_answer_is_as_good():
    lora = make_result("lora", 1, "1110")
    tied = [make_result("majority", None, "1100"), lora, make_result("a", 1, "1001")]
    assert "Even majority, the same answer for every row, has 50.0 %." in summarize_results(tied)
    better = [make_result("majority", None, "1000"), lora, make_result("a", 1, "1001")]
    assert "majority" not in summarize_results(better)


def test_the_verdict_of_baselines_alone():
    results = [make_result("majority", None, "1000"), make_result("hard-prompt", None, "1100")]
    text = summarize_results(results)
    assert text.startswith("No prompt finished")
    assert text.endswith("The best of them is hard-prompt: 50.0 % accuracy on 4 test rows.")
