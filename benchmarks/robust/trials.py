"""What a damaged input may come to, and how one is tried within limits of time and memory."""

import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from softprompt.errors import SoftpromptError, SoftpromptWarning

Outcome = Literal["refused", "answered", "crashed", "changed"]
OUTCOMES: tuple[Outcome, ...] = ("refused", "answered", "crashed", "changed")
# An input that takes more seconds of a core, or more bytes than the process had, has crashed. One
# that waits for ever is stopped from outside.
SECONDS = 15
MEMORY = 4 << 30


class ChangedError(Exception):
    """An input was accepted, but gives other results than the original, or contradicts itself."""


class TimeLimitError(BaseException):
    """The time is over; no handler of errors may take it for one."""


@dataclass
class Given:
    """One input.

    Args:
        random: decides everything of it.
        folder: an empty folder of its own.
        damage: what was done, in words; the trial writes it.
        note: what is to be counted besides the outcome; the trial may write one.
    """

    random: random.Random
    folder: Path
    damage: str = ""
    note: str = ""


Trial = Callable[[Given], Literal["refused", "answered"]]


@dataclass(frozen=True)
class Kind:
    """A kind of inputs.

    Args:
        name: its name.
        inputs: how many a quick run has.
        prepare: makes the undamaged original in a folder, and returns what tries one input. That
            damages a copy, uses it, and says whether it was answered as the original. An error of
            softprompt counts as refused, a `ChangedError` as changed, any other as crashed.
    """

    name: str
    inputs: int
    prepare: Callable[[Path], Trial]


def try_input(
    trial: Trial, *, kind: str, seed: int, index: int, folder: Path
) -> tuple[Outcome, dict[str, Any]]:
    """Try one input, which its kind, the seed and its index decide.

    Args:
        trial: of the kind.
        kind: its name.
        seed: of the run.
        index: of the input.
        folder: where the input may write; emptied afterwards.

    Returns:
        What it came to, and the facts of it.
    """
    folder.mkdir()
    given = Given(random.Random(f"{kind} {seed} {index}"), folder)  # noqa: S311  # not secret
    start = time.process_time()
    outcome: Outcome
    facts: dict[str, Any] = {"index": index}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with _limit_time():
                outcome = trial(given)
        except SoftpromptError as error:
            outcome, facts["message"] = "refused", _shorten(error)
            if not str(error).strip():
                outcome = "crashed"
        except ChangedError as error:
            told = any(issubclass(one.category, SoftpromptWarning) for one in said)
            outcome = "answered" if told else "changed"
            facts |= {"error": "changed", "message": _shorten(error), "where": ""}
        except (Exception, TimeLimitError) as error:  # noqa: BLE001  # that is what is looked for
            outcome, facts = "crashed", facts | describe(error)
    seconds = time.process_time() - start
    if seconds > SECONDS and outcome != "crashed":
        outcome = "crashed"
        facts |= {"error": "slow", "message": f"{seconds:.0f} seconds", "where": ""}
    shutil.rmtree(folder, ignore_errors=True)
    return outcome, facts | {"damage": given.damage[:300], "note": given.note}


def describe(error: BaseException) -> dict[str, str]:
    """The facts of a crash: its type, its message, and the last line of softprompt in it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/src/softprompt/" in frame.filename] or frames
    place = own[-1].filename.rpartition("/src/softprompt/")[2].rpartition("benchmarks/robust/")[2]
    return {
        "error": type(error).__name__,
        "message": _shorten(error),
        "where": f"{place}:{own[-1].lineno}",
    }


def _shorten(error: BaseException) -> str:
    text = str(error).encode("utf-8", "backslashreplace").decode()
    text = re.sub(rf"{re.escape(tempfile.gettempdir())}/\S*/", "…/", text)
    return text if len(text) <= 300 else f"{text[:200]} … {text[-90:]}"  # noqa: PLR2004


@contextmanager
def _limit_time() -> Iterator[None]:
    def stop(_signal: int, _frame: object) -> None:
        raise TimeLimitError

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def limit_memory() -> None:
    """Let this process have no more than `MEMORY` beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
    sys.setrecursionlimit(1000)
