"""The learning curves of a run: losses on the left, metrics on the right."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_Event: TypeAlias = Mapping[str, Any]
# Of all validation metrics, those that are drawn, and shown while a run trains.
SHOWN_METRICS = (
    *("accuracy", "macro_f1", "micro_f1", "exact_match", "rougeL"),
    *("pearson", "spearman", "r2"),
)


def draw_run(
    events: Iterable[Mapping[str, Any]],
    path: Path,
    *,
    title: str,
    unit: str = "scored token",
    folds: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Draw the losses and metrics of a run as PNG.

    Args:
        events: as the run's folder stores them.
        path: of the picture.
        title: of the picture.
        unit: what the loss is a mean over.
        folds: the scores of a cross-validation, as the folder stores them; their metrics are drawn
            where the run itself has no validation rows.
    """
    all_events = list(events)
    steps = [e for e in all_events if e["event"] == "step"]
    evaluations = [e for e in all_events if e["event"] == "evaluation"]
    with _make_figure(path, title=title, unit=unit) as (left, right):
        _draw_losses(left, steps, evaluations)
        if folds:
            _draw_folds(right, folds)
        else:
            _draw_metrics(right, evaluations)
        for axes in (left, right):
            _mark_best(axes, evaluations)


def draw_seeds(
    seeds: Mapping[str, Sequence[Mapping[str, Any]]],
    path: Path,
    *,
    title: str,
    unit: str = "scored token",
) -> None:
    """Draw the losses and the first metric of several seeds of a run as PNG, a line for each.

    Args:
        seeds: the events of each, as its folder stores them, by the name of the line.
        path: of the picture.
        title: of the picture.
        unit: what the loss is a mean over.
    """
    with _make_figure(path, title=title, unit=unit) as (left, right):
        _style_metrics(right)
        for number, (name, events) in enumerate(seeds.items()):
            style = {"label": name, "color": f"C{number % 10}"}
            evaluations = [e for e in events if e["event"] == "evaluation"]
            losses = [(e["epoch"], e["metrics"]["loss"]) for e in evaluations]
            epochs, means = _smooth([e for e in events if e["event"] == "step"])
            _draw_line(left, losses or [*zip(epochs, means, strict=True)], **style)
            shown = [n for n in SHOWN_METRICS if evaluations and n in evaluations[0]["metrics"]]
            for metric in shown[:1]:
                right.set_ylabel(f"{metric} on validation rows")
                pairs = [(e["epoch"], e["metrics"][metric]) for e in evaluations]
                _draw_line(right, pairs, **style)


@contextmanager
def _make_figure(path: Path, *, title: str, unit: str) -> "Iterator[tuple[Axes, Axes]]":
    """A figure for losses on the left and metrics on the right, saved when the block ends."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # slow to import, and only needed here

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set_ylabel(f"loss per {unit}")
    yield left, right
    for axes in (left, right):
        axes.set_xlabel(axes.get_xlabel() or "epoch")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    # A folder's name may contain dollar signs, between which matplotlib reads mathematics.
    # Its name may have bytes that are not UTF-8, which no font can draw.
    figure.suptitle(title.encode("utf-8", "replace").decode(), parse_math=False)
    figure.savefig(path, dpi=120, format="png")


def _draw_losses(axes: "Axes", steps: Sequence[_Event], evaluations: Sequence[_Event]) -> None:
    epochs, means = _smooth(steps)
    axes.plot(epochs, means, color="#b8c4d6", linewidth=1, label="training, each step")
    of_steps = [(e["epoch"], e["train_loss"]) for e in evaluations if e["train_loss"] is not None]
    of_rows = [(e["epoch"], e["train"]["loss"]) for e in evaluations if e.get("train")]
    _draw_line(axes, of_rows or of_steps, color="#33527a", label="training")
    validation = [(e["epoch"], e["metrics"]["loss"]) for e in evaluations]
    _draw_line(axes, validation, color="#c2512e", label="validation")


def _draw_metrics(axes: "Axes", evaluations: Sequence[_Event]) -> None:
    with_train = [e for e in evaluations if e.get("train")]
    for name in [n for n in SHOWN_METRICS if evaluations and n in evaluations[0]["metrics"]]:
        _draw_line(axes, [(e["epoch"], e["metrics"][name]) for e in evaluations], label=name)
        pairs = [(e["epoch"], e["train"][name]) for e in with_train]
        _draw_line(axes, pairs, label=f"{name}, training rows", linestyle="--")
    axes.set_ylabel("on validation rows")
    _style_metrics(axes)


def _draw_folds(axes: "Axes", folds: Sequence[_Event]) -> None:
    """The mean of each metric over the folds, weighted by their rows, and each fold as a point."""
    validations = range(min(len(fold["metrics"]) for fold in folds))
    weights = [fold["rows"] for fold in folds]
    for number, name in enumerate(n for n in SHOWN_METRICS if n in folds[0]["metrics"][0]):
        style = {"label": f"{name}, mean of {len(folds)} folds", "color": f"C{number}"}
        pairs = []
        for at in validations:
            progress = [fold["progress"][at] for fold in folds]
            values = [fold["metrics"][at][name] for fold in folds]
            axes.scatter(progress, values, color=style["color"], alpha=0.3, s=12)
            pairs.append((fmean(progress, weights), fmean(values, weights)))
        _draw_line(axes, pairs, **style)
    axes.set_xlabel("share of the longest training")
    axes.set_ylabel("on the rows of each fold")
    _style_metrics(axes)


def _style_metrics(axes: "Axes") -> None:
    # The metrics are shares; a margin keeps points at 0 and 1 whole.
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([tenth / 10 for tenth in range(0, 11, 2)])


def _mark_best(axes: "Axes", evaluations: Sequence[_Event]) -> None:
    """Mark the validation whose prompt is the run's."""
    best = [e for e in evaluations if e["best"]]
    if best:
        label = f"best prompt, step {best[-1]['step']}"
        axes.axvline(best[-1]["epoch"], color="#7a7a7a", linestyle=":", label=label)


def _draw_line(axes: "Axes", pairs: Sequence[tuple[float, float]], **style: str) -> None:
    if pairs:
        epochs, values = zip(*pairs, strict=True)
        (line,) = axes.plot(epochs, values, marker="o")
        line.set(**style)


def _smooth(steps: Sequence[_Event]) -> tuple[list[float], list[float]]:
    """A running mean over a fiftieth of the run."""
    window = max(1, len(steps) // 50)
    sums = [0.0, *accumulate(e["loss"] for e in steps)]
    begins = [max(0, end - window) for end in range(1, len(sums))]
    means = [(sums[end] - sums[begin]) / (end - begin) for end, begin in enumerate(begins, start=1)]
    return [e["epoch"] for e in steps], means
