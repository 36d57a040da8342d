"""Pictures of what was measured."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt


def draw_growth(by: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Seconds a row over what grows, one frame each."""
    figure, frames = plt.subplots(1, len(by), figsize=(12, 3.6), layout="constrained")
    for frame, (name, points) in zip(frames, by.items(), strict=True):
        frame.plot([*points], [1000 * v for v in points.values()], marker="o", color="#2b5079")
        frame.set_xlabel(name)
        frame.set_ylabel("milliseconds a row")
        frame.set_ylim(bottom=0)
        frame.grid(alpha=0.3)
        if name == "rows":
            frame.set_xscale("log")
    figure.savefig(path, dpi=100)
    plt.close(figure)
