"""A comparison's outcomes on disk, a line each, so that it can be stopped and gone on with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from softprompt.compare.outcome import Event, Outcome, Searched, as_line, from_line
from softprompt.errors import DataError

Search = tuple[tuple[float, ...], float, float | None]


@dataclass(frozen=True)
class Journal:
    """The outcomes of one comparison.

    Args:
        path: of the file.
    """

    path: Path

    def read(self) -> list[Event]:
        """What is written there; a last line that was cut off by a kill is left out.

        Raises:
            DataError: the file is damaged.
        """
        if not self.path.exists():
            return []
        *lines, _ = self.path.read_text(encoding="utf-8").split("\n")
        try:
            return [from_line(json.loads(line)) for line in lines]
        except (AttributeError, ValueError) as error:  # no object of JSON, or no JSON
            msg = (
                f"{self.path} is damaged ({error}). Take the damaged line out, and it is run again."
            )
            raise DataError(msg) from error

    def write(self, events: Sequence[Event]) -> None:
        """Write these events and no others; the file is whole at any time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(".new")
        aside.write_text("".join(map(_line, events)), encoding="utf-8")
        aside.replace(self.path)

    def add(self, event: Event) -> None:
        """Write one more."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(event))


def check(events: Sequence[Event], *, rows: int, wanted: Search, marks: Mapping[str, str]) -> None:
    """Check that what is written was measured as what is to come.

    Args:
        rows: of the test.
        wanted: the factors of the search, its share of the budget, and that in seconds, if any.
        marks: of the arms' recipes, by name.

    Raises:
        DataError: it was not.
    """
    for event in events:
        if isinstance(event, Outcome) and len(event.scores) != rows:
            msg = (
                f"the comparison was begun with {len(event.scores)} test rows, but there are "
                f"{rows} now. Begin a new one in another folder."
            )
            raise DataError(msg)
        if isinstance(event, Searched):
            _check_search((event.factors, event.share, event.seconds), wanted)
            if marks.get(event.arm, event.mark) != event.mark:
                msg = (
                    f"the arm {event.arm!r} was begun with other settings. Give it another name, "
                    "or begin a new comparison in another folder."
                )
                raise DataError(msg)


def _check_search(found: Search, wanted: Search) -> None:
    if found == wanted:
        return
    factors, share, seconds = found
    tried = ", ".join(f"{factor:g}" for factor in factors)
    budget = "the steps" if seconds is None else f"{seconds:g} seconds"
    msg = (
        f"the comparison was begun with rates times {tried}, each for {share:.0%} of {budget}. All "
        "arms get the same search: ask for that again, or begin a new comparison in another folder."
    )
    raise DataError(msg)


def _line(event: Event) -> str:
    return json.dumps(as_line(event)) + "\n"
