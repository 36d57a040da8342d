"""The picture of a run: its unit, its range and the step that was chosen."""

import json

import pytest
from matplotlib.figure import Figure

from softprompt.train import run_recipe


@pytest.fixture
def drawn(monkeypatch, draws):
    """The figures that are saved."""
    figures, save = [], Figure.savefig

    def keep(figure: Figure, *args: object, **kwargs: object) -> None:
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


@pytest.mark.parametrize(
    ("args", "task", "unit"),
    [
        (("llama", "prompt-tuning"), "words", "row"),
        (("bert", "p-tuning-v2"), "head", "row"),
        (("llama", "prompt-tuning"), "text", "scored token"),
    ],
)
def test_the_picture_says_what_it_shows(parts, tmp_path, drawn, args, task, unit):
    made = parts(*args, task=task, learning_rate=0.05, epochs=3)
    run_recipe(made.recipe, tmp_path / "run", prepared=made)
    (figure,) = drawn
    losses, metrics = figure.axes
    assert losses.get_ylabel() == f"loss per {unit}"
    low, high = metrics.get_ylim()
    assert (-0.05 < low < 0, 1 < high < 1.05) == (True, True)
    assert [*metrics.get_yticks()] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    events = map(json.loads, (tmp_path / "run" / "events.jsonl").read_text().splitlines())
    best = min(
        (e for e in events if e["event"] == "evaluation"),
        key=lambda e: (e["metrics"]["loss"], e["step"]),
    )
    for axes in (losses, metrics):
        (line,) = [one for one in axes.lines if str(one.get_label()).startswith("best prompt")]
        assert [*line.get_xdata()] == [best["epoch"]] * 2
        assert line.get_label() == f"best prompt, step {best['step']}"


def test_without_validation_no_step_is_marked(parts, tmp_path, drawn):
    made = parts(sizes=(11,))
    run_recipe(made.recipe, tmp_path / "run", prepared=made)
    losses, metrics = drawn[0].axes
    assert losses.get_ylabel() == "loss per row"
    labels = [str(line.get_label()) for axes in (losses, metrics) for line in axes.lines]
    assert not any(label.startswith("best") for label in labels)
