"""What came of an arm with a seed, and how it is written down."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from softprompt.errors import DataError
from softprompt.evaluate import Confusion


@dataclass(frozen=True)
class Cost:
    """What an arm took.

    Args:
        trainable: parameters.
        parameters: of the backbone that are run, trained or not.
        added: trained parameters that are none of the backbone's.
        size: bytes of what has to be kept of it, beside the backbone.
        seconds: of training, validations included; the search for a rate is not.
        steps: of the optimiser; 0 where there is none.
        speed: training rows per second, validations not counted; 0 where it is not known.
        memory: bytes of the backbone and the most that training took beside it; 0 where it is not
            known.
    """

    trainable: int
    parameters: int
    size: int
    seconds: float
    steps: int = 0
    speed: float = 0.0
    memory: int = 0
    added: int = 0


@dataclass(frozen=True)
class Outcome:
    """A trained arm, or a control.

    Args:
        arm: its name.
        seed: None where nothing is random.
        scores: of each test row: 1 or 0 for right or wrong, or how near a text comes, 0 to 1.
        metrics: on the test rows.
        control: whether it is what prompts must beat.
        confusion: who was taken for whom; None for free text.
        validation: the metrics that the arm was chosen by; empty where nothing was.
        rate: the learning rate; None without one.
        cost: None where nothing was trained.
        run: the folder of the run, inside the comparison's; empty where there is none.
    """

    arm: str
    seed: int | None
    scores: tuple[float, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    control: bool = False
    confusion: Confusion | None = None
    validation: Mapping[str, float] = field(default_factory=dict)
    rate: float | None = None
    cost: Cost | None = None
    run: str = ""

    @property
    def score(self) -> float:
        """The mean over test rows: the accuracy, where answers are right or wrong."""
        return sum(self.scores) / len(self.scores)


@dataclass(frozen=True)
class Searched:
    """The short search for an arm's learning rate.

    Args:
        arm: its name.
        scores: by the factor of the rate; the higher, the better.
        factor: the best one.
        share: of the steps, that each was tried for.
        mark: of the arm's recipe, which tells it from another one of the same name.
        seconds: that a whole run may take; None where the recipe says how many steps it has.
        steps: of a whole run, where seconds decide.
    """

    arm: str
    scores: Mapping[float, float]
    factor: float
    share: float
    mark: str
    seconds: float | None = None
    steps: int | None = None

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

_DIGITS = {0.0: "0", 1.0: "1"}


def as_line(event: Event) -> dict[str, Any]:
    """An event as JSON has it; scores of right and wrong are a digit a row."""
    found = {"event": type(event).__name__.lower(), **asdict(event)}
    if isinstance(event, Outcome):
        digits = [_DIGITS.get(score) for score in event.scores]
        whole = None not in digits
        found["scores"] = "".join(str(d) for d in digits) if whole else [*event.scores]
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
                cost, confusion = values.pop("cost", None), values.pop("confusion", None)
                scores = tuple(float(score) for score in values.pop("scores"))
                return Outcome(
                    **values,
                    scores=scores,
                    cost=None if cost is None else Cost(**cost),
                    confusion=None if confusion is None else _confusion(**confusion),
                )
            case "searched":
                tried = {float(factor): float(score) for factor, score in values.pop("scores")}
                return Searched(**values, scores=tried)
            case "failed":
                return Failed(**values)
    except (KeyError, TypeError, ValueError) as error:
        msg = f"a line of the comparison is damaged ({error}). Take it out, and it is run again."
        raise DataError(msg) from error
    msg = f"a line of the comparison is of no known kind: {line.get('event')!r}. Take it out."
    raise DataError(msg)


def _confusion(
    labels: Sequence[str], predicted_labels: Sequence[str], counts: Sequence[Sequence[int]]
) -> Confusion:
    return Confusion((*labels,), (*predicted_labels,), tuple((*row,) for row in counts))
