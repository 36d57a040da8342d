"""What an arm looks like in every picture of a report: its colour, its mark, its line."""

from collections.abc import Sequence
from dataclasses import dataclass

from softprompt.compare.statistics import Summary

_LONGEST = 28

# Okabe & Ito 2008, "Color universal design", without the yellow and the black: told apart by people
# with any of the common kinds of colour blindness. The second of each pair is for dark pages.
PROMPTS = (
    ("#0072b2", "#56a8e0"),
    ("#d55e00", "#f0803c"),
    ("#009e73", "#2fc79b"),
    ("#cc79a7", "#e39ac1"),
    ("#e69f00", "#f2b630"),
    ("#56b4e9", "#86cdf5"),
)
CONTROLS = (("#4a4a4f", "#c9c9cf"), ("#77777d", "#a0a0a8"), ("#8d8d94", "#83838c"))
_PROMPT_MARKS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "*")
_CONTROL_MARKS = ("o", "s", "^", "D", "v", "P")
_DASHES = ("--", ":", "-.")


@dataclass(frozen=True)
class Look:
    """How an arm is drawn.

    Args:
        label: its name, cut to what a picture has room for.
        colour: on white, as ``#rrggbb``.
        mark: of its points, as matplotlib names it.
        line: likewise.
        filled: whether its points are; those of controls are hollow.
    """

    label: str
    colour: str
    mark: str
    line: str
    filled: bool


def looks(found: Sequence[Summary]) -> dict[str, Look]:
    """A look for each arm, by the order of the arms: the same in all pictures.

    Prompts have colours and whole lines; controls are grey, hollow and dashed.
    """
    prompts = [summary.arm for summary in found if not summary.control]
    controls = [summary.arm for summary in found if summary.control]
    own = {name: _prompt(at, name) for at, name in enumerate(prompts)}
    theirs = {name: _control(at, name) for at, name in enumerate(controls)}
    return own | theirs


def shortened(name: str) -> str:
    """A name on one line, cut to what a picture has room for."""
    whole = " ".join(name.split())
    return whole if len(whole) <= _LONGEST else f"{whole[: _LONGEST - 1]}…"


def _prompt(at: int, name: str) -> Look:
    colour, _ = PROMPTS[at % len(PROMPTS)]
    return Look(shortened(name), colour, _PROMPT_MARKS[at % len(_PROMPT_MARKS)], "-", filled=True)


def _control(at: int, name: str) -> Look:
    colour, _ = CONTROLS[at % len(CONTROLS)]
    mark, line = _CONTROL_MARKS[at % len(_CONTROL_MARKS)], _DASHES[at % len(_DASHES)]
    return Look(shortened(name), colour, mark, line, filled=False)
