"""What a search for a learning rate found, as a picture."""

from collections.abc import Mapping
from pathlib import Path

from softprompt.compare.rates import Trained


def draw_rates(
    found: Mapping[float, Trained], path: Path, *, select: str, best: float, title: str
) -> None:
    """Draw the validation loss, and the metric that is chosen by, over the learning rate, as PNG.

    Args:
        found: by factor.
        select: the metric that prompts are chosen by.
        best: the factor to mark.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # slow to import, and only needed here

    points = sorted(found.values(), key=lambda trained: trained.rate)
    names = ["loss"] if select == "loss" else ["loss", select]
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    frames = figure.subplots(1, len(names), squeeze=False)[0]
    for frame, name in zip(frames, names, strict=True):
        values = [trained.validation[name] for trained in points]
        frame.plot([p.rate for p in points], values, marker="o", color="#33527a")
        chosen = found[best]
        frame.plot(
            [chosen.rate], [chosen.validation[name]], marker="o", markersize=11, color="#b5482f"
        )
        frame.set_xscale("log")
        frame.set_xlabel("learning rate")
        frame.set_ylabel(f"validation {name}")
        frame.grid(alpha=0.3)
    figure.suptitle(title, parse_math=False)
    figure.savefig(path, dpi=120, format="png")
