"""Where the names of points stand in a picture, so that none lies on another.

Lengths are in points of 1/72 inch, from the lower left corner of the figure.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

_HEIGHT = 1.25
_FAR = 12.0
_DISTANCES = (7.0, 11.0, 16.0, 23.0, 32.0, 44.0, 60.0)
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
# An overlap is worse than any distance, and to leave the frame is worse than an overlap.
_OVERLAP, _OUTSIDE = 10.0, 100.0


@dataclass(frozen=True)
class Box:
    """A rectangle.

    Args:
        left: its least x.
        low: its least y.
        right: its greatest x.
        high: its greatest y.
    """

    left: float
    low: float
    right: float
    high: float

    @property
    def area(self) -> float:
        """Of the rectangle."""
        return (self.right - self.left) * (self.high - self.low)

    def shared(self, other: "Box") -> float:
        """The area that it has in common with another."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        tall = min(self.high, other.high) - max(self.low, other.low)
        return max(0.0, wide) * max(0.0, tall)


@dataclass(frozen=True)
class Spot:
    """Where a label may stand.

    Args:
        box: that it fills.
        distance: from what it names.
    """

    box: Box
    distance: float

    @property
    def far(self) -> bool:
        """Whether a line has to say what it names."""
        return self.distance > _FAR


def around(x: float, y: float, *, width: float, size: float) -> Iterator[Spot]:
    """Places around a point, the nearest first.

    Args:
        width: of the label.
        size: of its font.
    """
    tall = _HEIGHT * size
    for distance, (across, up) in product(_DISTANCES, _DIRECTIONS):
        step = distance if 0 in (across, up) else 0.75 * distance
        left = x + across * step - width * (1 - across) / 2
        low = y + up * step - tall * (1 - up) / 2
        yield Spot(Box(left, low, left + width, low + tall), distance)


def along(y: float, frame: Box, *, width: float, size: float) -> Iterator[Spot]:
    """Places on and under a line across a frame: at its right end first.

    Args:
        y: of the line.
        width: of the label.
        size: of its font.
    """
    tall, room = _HEIGHT * size, frame.right - frame.left - width
    for share, low in product((1.0, 0.0, 0.5, 0.75, 0.25), (y + 1, y - 1 - tall)):
        left = frame.left + share * room
        yield Spot(Box(left, low, left + width, low + tall), _DISTANCES[0])


def placed(choices: Sequence[Sequence[Spot]], *, taken: Sequence[Box], frame: Box) -> list[Spot]:
    """One spot for each label, one label after the other: where it covers least.

    Args:
        choices: for each label.
        taken: what should not be covered.
        frame: that no label should leave.
    """
    full, found = list(taken), list[Spot]()
    for spots in choices:
        best = min(spots, key=lambda spot: _cost(spot, full, frame))
        found.append(best)
        full.append(best.box)
    return found


def _cost(spot: Spot, taken: Sequence[Box], frame: Box) -> float:
    covered = sum(spot.box.shared(other) for other in taken)
    outside = spot.box.area - spot.box.shared(frame)
    return _OVERLAP * covered + _OUTSIDE * outside + spot.distance
