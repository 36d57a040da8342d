"""How the commands speak: results on stdout, everything else on stderr, no traceback."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import NoReturn, ParamSpec

import typer
from rich.cells import cell_len

from softprompt.errors import SoftpromptError

FAILED, MISTAKE = 1, 2
DEBUG = "SOFTPROMPT_DEBUG"
_Given = ParamSpec("_Given")


def told(command: Callable[_Given, None]) -> Callable[_Given, None]:
    """The same command, whose faults are told in a sentence and an exit status."""

    @wraps(command)
    def run(*args: _Given.args, **kwargs: _Given.kwargs) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except SoftpromptError as error:
            fail(str(error), status=MISTAKE)
        except BrokenPipeError:
            _mute()
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            fail("interrupted", status=FAILED)
        except OSError as error:
            fail(_unreachable(error), status=MISTAKE if error.filename else FAILED)
        except Exception as error:  # noqa: BLE001  # the last resort: no traceback for a user
            fail(_bug(error), status=FAILED)

    return run


def fail(message: str, *, status: int) -> NoReturn:
    """Say what is wrong, and exit."""
    if os.environ.get(DEBUG):
        traceback.print_exc()
    note(message)
    raise typer.Exit(status) from None


def note(message: str) -> None:
    """Say something that is no result."""
    print(message, file=sys.stderr, flush=True)


def note_at_once(message: str) -> None:
    """As `note`, from a signal's handler, which may interrupt a write to the same stream."""
    try:
        os.write(sys.stderr.fileno(), f"{message}\n".encode())
    except (OSError, ValueError):  # stderr is no file, so nothing else writes to it either
        note(message)


def print_json(value: Mapping[str, object]) -> None:
    """Print a result for programs."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def without_bars() -> None:
    """Let the Hub's client show no bars where nobody sees them."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as columns: the first to the left, the others to the right."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first + " " * (widths[0] - cell_len(first))]
        cells += [" " * (w - cell_len(c)) + c for c, w in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def listed(facts: Mapping[str, str]) -> str:
    """Names and what is to be said of them; further lines of a value stand below its first."""
    width = max(map(cell_len, facts)) + 2
    lines = []
    for name, value in facts.items():
        first, *rest = value.split("\n")
        lines += [f"{name:<{width}}{first}", *(" " * width + line for line in rest)]
    return "\n".join(lines)


def _mute() -> None:
    """Nobody reads stdout any more: what is still to be flushed goes nowhere."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # stdout is no file
        return


def _unreachable(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return (
        f"{where}{error.strerror or error}. Check that the place exists, that this user may use "
        "it, and that the disk has room."
    )


def _bug(error: Exception) -> str:
    return (
        f"softprompt failed where it should not: {type(error).__name__}: {error}\n"
        f"Please report it with what {DEBUG}=1 shows."
    )
