"""The figure of the measured growth."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt


def draw_growth(seconds: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Draw the time per row, with one frame for each quantity that grows.

    Args:
        seconds: per row, by the name of the quantity and its value.
        path: of the picture.
    """
    figure, frames = plt.subplots(1, len(seconds), figsize=(12, 3.6), layout="constrained")
    for frame, (name, points) in zip(frames, seconds.items(), strict=True):
        frame.plot([*points], [1000 * v for v in points.values()], marker="o", color="#2b5079")
        frame.set_xlabel(name)
        frame.set_ylabel("milliseconds per row")
        frame.set_ylim(bottom=0)
        frame.grid(alpha=0.3)
        if name == "rows":
            frame.set_xscale("log")
    figure.savefig(path, dpi=100)
    plt.close(figure)
