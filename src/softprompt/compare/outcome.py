"""What came of an arm with a seed, and how it is written down."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from softprompt.errors import DataError


@dataclass(frozen=True)
class Outcome:
    """A trained arm, or a control.

    Args:
        arm: its name.
        seed: None for a control, in which nothing is random.
        right: for each test row whether its answer was right.
        validation: the metrics that the prompt was chosen by; empty for a control.
        rate: the learning rate; None for a control.
        trainable: parameters.
        size: bytes of the artifact.
        seconds: of training, the search for a rate not included.
        steps: of the optimiser.
    """

    arm: str
    seed: int | None
    right: tuple[bool, ...]
    validation: Mapping[str, float]
    rate: float | None = None
    trainable: int = 0
    size: int = 0
    seconds: float = 0.0
    steps: int = 0

    @property
    def accuracy(self) -> float:
        """The share of test rows that are right."""
        return sum(self.right) / len(self.right)


@dataclass(frozen=True)
class Searched:
    """The short search for an arm's learning rate.

    Args:
        arm: its name.
        scores: by the factor of the rate; the higher, the better.
        factor: the best one.
        share: of the steps, that each was tried for.
    """

    arm: str
    scores: Mapping[float, float]
    factor: float
    share: float

    @property
    def factors(self) -> tuple[float, ...]:
        """What was chosen from, in order; a single one is not tried."""
        return tuple(sorted(self.scores)) or (self.factor,)


@dataclass(frozen=True)
class Failed:
    """An arm that could not be run; the others are.

    Args:
        arm: its name.
        seed: with which it failed; None in the search for a rate.
        error: what was said.
    """

    arm: str
    seed: int | None
    error: str


Event = Outcome | Searched | Failed


def as_line(event: Event) -> dict[str, Any]:
    """An event as JSON has it."""
    found = {"event": type(event).__name__.lower(), **asdict(event)}
    if isinstance(event, Outcome):
        found["right"] = "".join("01"[right] for right in event.right)
    if isinstance(event, Searched):
        found["scores"] = [[factor, score] for factor, score in event.scores.items()]
    return found


def from_line(line: Mapping[str, Any]) -> Event:
    """The event that was written.

    Raises:
        DataError: it is none.
    """
    values = {name: value for name, value in line.items() if name != "event"}
    try:
        match line.get("event"):
            case "outcome":
                right = tuple(digit == "1" for digit in values.pop("right"))
                return Outcome(**values, right=right)
            case "searched":
                scores = {float(factor): float(score) for factor, score in values.pop("scores")}
                return Searched(**values, scores=scores)
            case "failed":
                return Failed(**values)
    except (KeyError, TypeError, ValueError) as error:
        msg = f"a line of the comparison is damaged ({error}). Take it out, and it is run again."
        raise DataError(msg) from error
    msg = f"a line of the comparison is of no known kind: {line.get('event')!r}. Take it out."
    raise DataError(msg)
