"""A model takes rows of any shape, answers at once, and has a short repr."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from softprompt.errors import ArtifactError, DataError, PromptError, SoftpromptWarning
from softprompt.inference import Ensemble, PromptModel
from softprompt.inference.loops import EvaluationReport
from softprompt.tasks import Classify

TEXTS = ["a good film", "dull", "the story is old"]
LABELS = ["positive", "negative", "negative"]
ROWS = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
SHAPES = {
    "list": lambda: ROWS,
    "generator": lambda: (row for row in ROWS),
    "pandas": lambda: pd.DataFrame(ROWS),
    "polars": lambda: pytest.importorskip("polars").DataFrame(ROWS),
    "datasets": lambda: datasets.Dataset.from_list(ROWS),
    "datasets of classes": lambda: datasets.Dataset.from_list(ROWS).cast_column(
        "label", datasets.ClassLabel(names=["negative", "positive"])
    ),
    "datasets stream": lambda: datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
    "pyarrow": lambda: pa.Table.from_pylist(ROWS),
}
COLUMNS = {
    "texts": lambda: TEXTS,
    "pandas column": lambda: pd.Series(TEXTS),
    "numpy": lambda: np.array(TEXTS),
}
ModelFactory = Callable[..., PromptModel]


@pytest.fixture
def pair(model: ModelFactory) -> Ensemble:
    """Two members that differ."""
    two = Classify("so {text} is{soft:3}", verbalizer={"negative": " bad", "positive": " good"})
    one = Classify("{soft:3}{text} is", verbalizer={"negative": " bad", "positive": " good"})
    return Ensemble([model("causal words", settings=s) for s in (one, two)])


@pytest.mark.parametrize("shape", SHAPES | COLUMNS)
def test_every_shape_is_answered_as_the_list(
    model: ModelFactory, pair: Ensemble, shape: str
) -> None:
    make = (SHAPES | COLUMNS)[shape]
    for trained in (model("causal words"), pair):
        assert trained.predict(make()) == trained.predict(ROWS)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_evaluated_as_the_list(
    model: ModelFactory, pair: Ensemble, shape: str
) -> None:
    for trained in (model("causal words"), pair):
        assert trained.evaluate(SHAPES[shape]()) == trained.evaluate(ROWS)


def test_a_text_is_one_row(model: ModelFactory, pair: Ensemble) -> None:
    for trained in (model("causal words"), pair):
        assert trained.predict("dull") == trained.predict(["dull"])
        assert trained.predict({"text": "dull"}) == trained.predict(["dull"])
        assert trained.predict_proba("dull").shape == (1, 2)


def test_faults_show_at_the_call(model: ModelFactory, pair: Ensemble) -> None:
    for trained in (model("causal words"), pair):
        for given in (7, None, b"dull", [7], [{"txet": "a"}], pd.DataFrame({"text": [None]})):
            with pytest.raises(DataError):
                trained.predict(given)
        with pytest.raises(DataError, match="cannot be read from a value of type int"):
            trained.predict_stream(7)


@pytest.mark.parametrize("way", ["causal words", "head on [CLS]", "answer words"])
def test_probabilities_are_those_of_the_answers(model: ModelFactory, rows, way: str) -> None:
    trained = model(way)
    found = trained.predict_proba(rows)
    assert (found.dtype, found.shape) == (np.float64, (len(rows), 2))
    assert trained.labels == ("negative", "positive")
    for line, answer in zip(found, trained.predict(rows), strict=True):
        assert [*line] == [answer.probabilities[label] for label in trained.labels]
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-6)
    assert trained.predict_proba([]).shape == (0, 2)


def test_probabilities_of_an_ensemble_are_the_members_mean(pair: Ensemble, rows) -> None:
    mean = sum(member.predict_proba(rows) for member in pair.members) / 2
    np.testing.assert_allclose(pair.predict_proba(rows), mean, atol=1e-5)


@pytest.mark.parametrize("way", ["text", "a choice"])
def test_written_text_has_no_probabilities(model: ModelFactory, way: str) -> None:
    for trained in (model(way), Ensemble([model(way)])):
        with pytest.raises(PromptError, match=r"no probabilities of labels\. Use predict, or"):
            trained.predict_proba(["a"])


@pytest.mark.parametrize("together", [False, True])
def test_an_answer_that_is_no_choice_is_refused_before_anything_is_run(
    model: ModelFactory, monkeypatch: pytest.MonkeyPatch, *, together: bool
) -> None:
    trained = model("a choice")
    known, *_ = trained.task.labels
    rows = [{"text": "a", "label": known}, {"text": "b", "label": "neither"}]
    column = trained.task.target_column
    rows = [{"text": row["text"], column: row["label"]} for row in rows]
    monkeypatch.setattr("softprompt.inference.model.evaluate_rows", None)  # running it would fail
    with pytest.raises(DataError, match="the given data has 'neither', but the choices are"):
        (Ensemble([trained]) if together else trained).evaluate(rows)


def trained_on(model: ModelFactory, folder: Path, **data: object) -> PromptModel:
    """A model whose recipe names files."""
    for name, rows in {"train": ROWS * 4, "validation": ROWS[:2], "test": ROWS}.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")
    trained = model("causal words")
    named = {"train": str(folder / "train.jsonl")} | data
    manifest = replace(trained.artifact.manifest, recipe={"seed": 1, "data": named})
    return replace(trained, artifact=replace(trained.artifact, manifest=manifest))


def test_a_split_is_evaluated_as_the_rows_of_its_file(model: ModelFactory, tmp_path: Path) -> None:
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("validation", "test")}
    trained = trained_on(model, tmp_path, **files)
    assert trained.evaluate() == trained.evaluate(split="test") == trained.evaluate(ROWS)
    assert trained.evaluate(split="validation") == trained.evaluate(ROWS[:2])
    assert trained.evaluate(split="train").rows == 12
    assert Ensemble([trained, trained]).evaluate(split="validation").rows == 2
    assert trained.read_split("test").to_list() == ROWS


def test_a_split_that_the_data_lacks_is_refused(model: ModelFactory, tmp_path: Path) -> None:
    trained = trained_on(model, tmp_path, validation=str(tmp_path / "validation.jsonl"))
    with pytest.raises(ArtifactError, match=r"unknown split 'test'\. Options: train, validation"):
        trained.evaluate()
    with pytest.raises(DataError, match="both rows and the split 'test' are given"):
        trained.evaluate(ROWS, split="test")


def test_changed_rows_raise_a_warning(model: ModelFactory, tmp_path: Path) -> None:
    trained = trained_on(model, tmp_path, test=str(tmp_path / "test.jsonl"))
    data = {"test": {"rows": 3, "sha256": "0" * 64}}
    changed = replace(
        trained,
        artifact=replace(trained.artifact, manifest=replace(trained.artifact.manifest, data=data)),
    )
    with pytest.warns(SoftpromptWarning, match="the test data has changed since"):
        assert changed.evaluate() == trained.evaluate()
    with pytest.warns(SoftpromptWarning, match="member 2 was not trained with the same test rows"):
        Ensemble([trained, changed]).evaluate()


RECIPES = [
    ({}, "does not say which data it was trained on. Give the rows"),
    ({"data": {"train": "memory"}}, "does not say which data it was trained on"),
    ({"data": {"train": 7}}, "recipe cannot be read: data.train: "),
    ({"data": {"train": "a.csv", "more": 1}}, "recipe cannot be read: data.more: "),
    ({"data": {"train": "a.csv"}, "seed": "x"}, "recipe cannot be read: seed is 'x'"),
]


@pytest.mark.parametrize(("recipe", "said"), RECIPES)
def test_a_recipe_that_names_no_rows_is_refused(
    model: ModelFactory, recipe: dict, said: str
) -> None:
    trained = model("causal words", recipe=recipe)
    with pytest.raises(ArtifactError) as caught:
        trained.evaluate()
    assert said in str(caught.value)


def test_a_folder_is_never_looked_up_on_the_hub(
    model: ModelFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = model("causal words")
    trained.save("runs/sentiment")
    again = PromptModel.from_pretrained("runs/sentiment", backbone=trained.backbone)
    assert again.predict(ROWS) == trained.predict(ROWS)
    with pytest.raises(ArtifactError) as caught:
        PromptModel.from_pretrained("runs/sentimnt", backbone=trained.backbone)
    assert "there is no folder runs/sentimnt" in str(caught.value)
    assert "Did you mean sentiment? To download from the Hub, give OWNER/NAME" in str(caught.value)
    for path in ("sentiment", "./sentiment", tmp_path / "sentiment"):
        with pytest.raises(ArtifactError, match="there is no folder"):
            PromptModel.from_pretrained(path, backbone=trained.backbone)
    with pytest.raises(ArtifactError, match="is a path, which has no revision 'main'"):
        PromptModel.from_pretrained("runs/sentiment", revision="main", backbone=trained.backbone)


def saved_twice(trained: PromptModel, folder: Path) -> tuple[bytes, bytes]:
    """The tensors as they were saved, and as they are saved again once loaded."""
    first = trained.save(folder / "one")
    second = PromptModel.from_pretrained(first, backbone=trained.backbone).save(folder / "two")
    return tuple((place / "prompt.safetensors").read_bytes() for place in (first, second))


@pytest.mark.parametrize("way", ["causal words", "head on [CLS]", "text"])
def test_loaded_and_saved_it_is_the_same_to_the_last_bit(
    model: ModelFactory, tmp_path: Path, way: str
) -> None:
    one, two = saved_twice(model(way), tmp_path)
    assert one == two


@pytest.mark.parametrize("way", ["causal words", "causal words, prefix", "head on [CLS]", "text"])
def test_values_say_in_a_line_what_they_are(model: ModelFactory, rows, way: str) -> None:
    trained = model(way)
    values = [
        trained,
        trained.prompt,
        trained.artifact,
        trained.artifact.manifest,
        trained.backbone,
    ]
    values += [Ensemble([trained, trained]), trained.predict(rows)[0]]
    values += [trained.evaluate(rows)] if way != "text" else []
    for value in values:
        line = repr(value)
        assert line.startswith(f"{type(value).__name__}(")
        assert len(line) < 200
        assert "tensor" not in line.lower()
        assert "\n" not in line


def test_the_lines_hold_the_facts(model: ModelFactory) -> None:
    trained = model("causal words")
    assert repr(trained.prompt) == "InputPrompt(length=3, width=32, dtype=float32)"
    assert repr(trained) == (
        "PromptModel(task='classify', labels=2, backbone='llama', "
        "prompt=InputPrompt(length=3, width=32, dtype=float32))"
    )
    prefix = model("causal words, prefix").prompt
    assert repr(prefix).startswith("KVPrefix(length=")
    assert re.search(r"layers=2, heads=4, head_size=8, dtype=float32\)$", repr(prefix))
    count = sum(p.numel() for p in trained.backbone.model.parameters())
    assert f"family='llama', kind='causal', parameters={count:,}, " in repr(trained.backbone)
    report = EvaluationReport(7, {"loss": 0.51234, "accuracy": 0.5}, None)
    assert repr(report) == "EvaluationReport(rows=7, loss=0.5123, accuracy=0.5)"


def test_a_long_name_is_shown_by_its_end(model: ModelFactory) -> None:
    trained = model("causal words")
    name = "/" + "far/" * 60 + "llama"
    manifest = replace(
        trained.artifact.manifest, backbone=trained.artifact.manifest.backbone | {"name": name}
    )
    line = repr(replace(trained, artifact=replace(trained.artifact, manifest=manifest)))
    assert len(line) < 200
    assert "far/llama" in line


class Checked(HTMLParser):
    """Whether what is opened is closed, and the text that a reader sees."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, _attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.seen.append(data)


def read_html(html: str) -> list[str]:
    parser = Checked()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser.seen


def test_a_notebook_shows_tables_in_which_nothing_is_code(model: ModelFactory, rows) -> None:
    trained = model("causal words")
    template = "{soft:3}<b>{text}</b> & so"
    manifest = replace(trained.artifact.manifest, template=template)
    marked = replace(trained, artifact=replace(trained.artifact, manifest=manifest))
    for value in (marked, Ensemble([marked, marked])):
        html = value._repr_html_()
        assert template in read_html(html)
        assert "<b>" not in html
    report = trained.evaluate(rows)
    seen = read_html(report._repr_html_())
    assert f"{report.metrics['accuracy']:.4f}" in seen
    assert [*map(str, report.confusion.counts[0])] == seen[-5:-3]
    low, high = report.intervals["accuracy"]
    assert low < report.metrics["accuracy"] < high or report.metrics["accuracy"] in {low, high}
    assert f"{low:.2f} to {high:.2f}" in seen
    assert report.absent_labels == ()
    positive = trained.evaluate([row for row in rows if row["label"] == "positive"])
    assert positive.absent_labels == ("negative",)
    assert "negative" in read_html(positive._repr_html_())
