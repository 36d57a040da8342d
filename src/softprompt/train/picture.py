"""A run's curve: losses on the left, metrics on the right."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_SHOWN = ("accuracy", "macro_f1", "exact_match", "rougeL")


def draw(events: Iterable[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Draw the losses and metrics of a run as PNG.

    Args:
        events: as the run's folder keeps them.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # slow to import, and only needed here

    listed = list(events)
    steps = [e for e in listed if e["event"] == "step"]
    found = [e for e in listed if e["event"] == "evaluation"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*_smooth(steps), color="#b8c4d6", linewidth=1, label="training, each step")
    seen = [e for e in found if e["train_loss"] is not None]
    left.plot(
        [e["epoch"] for e in seen],
        [e["train_loss"] for e in seen],
        marker="o",
        color="#33527a",
        label="training",
    )
    epochs = [e["epoch"] for e in found]
    losses = [e["metrics"]["loss"] for e in found]
    left.plot(epochs, losses, marker="o", color="#c2512e", label="validation")
    left.set(xlabel="epoch", ylabel="loss per scored token")
    left.legend()
    names = [n for n in _SHOWN if found and n in found[0]["metrics"]]
    for name in names:
        values = [e["metrics"][name] for e in found]
        right.plot(epochs, values, marker="o", label=name)
    right.set(xlabel="epoch", ylabel="on validation rows")
    if names:
        right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _smooth(steps: list[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """A running mean over a fiftieth of the run."""
    window = max(1, len(steps) // 50)
    losses = [e["loss"] for e in steps]
    means = [
        sum(losses[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(losses))
    ]
    return [e["epoch"] for e in steps], means
