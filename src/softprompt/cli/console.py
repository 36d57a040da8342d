"""Print results to stdout and everything else to stderr; report errors without a traceback."""

import io
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TextIO

import typer
from rich.cells import cell_len

from softprompt.errors import (
    SoftpromptError,
    SoftpromptWarning,
    escape_control_characters,
)

# Exit statuses: the work failed or was interrupted; the input has a mistake.
FAILED, MISTAKE = 1, 2
DEBUG = "SOFTPROMPT_DEBUG"
# A larger confusion matrix is not readable in a terminal.
_MAX_LABELS = 20
# The most labels that a line lists.
_MAX_ABSENT = 10
# Metrics from 0 to 100.
_PERCENT = {"bleu", "chrf"}
_Params = ParamSpec("_Params")


def report_errors(command: Callable[_Params, None]) -> Callable[_Params, None]:
    """Wrap a command, so that an error becomes a message and an exit status."""

    @wraps(command)
    def run(*args: _Params.args, **kwargs: _Params.kwargs) -> None:
        try:
            with _print_warnings(), redirect_stdout(_EscapingStream(sys.stdout)):
                command(*args, **kwargs)
            sys.stdout.flush()
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except SoftpromptError as error:
            exit_with(str(error), status=MISTAKE)
        except BrokenPipeError:
            _discard(sys.stdout)
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            exit_with("interrupted", status=FAILED)
        except OSError as error:
            exit_with(describe_os_error(error), status=MISTAKE if error.filename else FAILED)
        except Exception as error:  # noqa: BLE001  # the last resort: no traceback for a user
            exit_with(_describe_bug(error), status=FAILED)

    return run


class _EscapingStream(io.TextIOBase):
    """Standard output, to which no control character from a file is written."""

    def __init__(self, stream: TextIO) -> None:
        self.inner = stream

    def write(self, text: str) -> int:
        self.inner.write(escape_control_characters(text))
        return len(text)

    def flush(self) -> None:
        self.inner.flush()

    def isatty(self) -> bool:
        return self.inner.isatty()

    def fileno(self) -> int:
        return self.inner.fileno()


@contextmanager
def _print_warnings() -> Iterator[None]:
    """Print softprompt's warnings as messages; those of other libraries are shown as usual."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", SoftpromptWarning)
        show = warnings.showwarning

        def print_warning(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, SoftpromptWarning):
                print_status(f"warning: {message}")
            else:
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = print_warning
        yield


def exit_with(message: str, *, status: int) -> NoReturn:
    """Print a message to stderr, and exit."""
    if os.environ.get(DEBUG):
        traceback.print_exc()
    print_status(message)
    raise typer.Exit(status) from None


def print_status(message: str) -> None:
    """Print a message, which is not a result, to stderr; work continues where that fails."""
    try:
        print(escape_control_characters(message), file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def print_progress(message: str) -> None:
    """Print what is being done to stderr, if someone is watching: only in a terminal."""
    if sys.stderr.isatty():
        print_status(message)


def print_status_now(message: str) -> None:
    """As `print_status`, from a signal handler, which may interrupt a write to the stream."""
    try:
        os.write(sys.stderr.fileno(), f"{escape_control_characters(message)}\n".encode())
    except (OSError, ValueError):  # stderr is not a file, so no write to it can be interrupted
        print_status(message)


def print_json(value: Mapping[str, object]) -> None:
    """Print a result as JSON."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def print_styled(parts: Iterable[tuple[str, str]]) -> bool:
    """Print a text in colours, if stdout is a terminal that has them.

    Args:
        parts: of the text, each with its style, as rich names styles.

    Returns:
        Whether there are colours; without them nothing is printed.
    """
    from rich.console import Console
    from rich.text import Text

    stream = sys.stdout.inner if isinstance(sys.stdout, _EscapingStream) else sys.stdout
    console = Console(file=stream, highlight=False)
    if not console.is_terminal or console.no_color or console.color_system is None:
        return False
    safe = ((escape_control_characters(text), style) for text, style in parts)
    console.print(Text.assemble(*safe), soft_wrap=True)
    return True


def hide_progress_bars() -> None:
    """Disable the progress bars of the Hub's client where stderr is not a terminal."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()


def format_columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a table: the first column is aligned left, the others right."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first + " " * (widths[0] - cell_len(first))]
        cells += [" " * (w - cell_len(c)) + c for c, w in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def format_fields(fields: Mapping[str, str]) -> str:
    """Names and values, one a line; further lines of a value are aligned with its first."""
    width = max(map(cell_len, fields)) + 2
    lines = []
    for name, value in fields.items():
        first, *rest = value.split("\n")
        lines += [f"{name:<{width}}{first}", *(" " * width + line for line in rest)]
    return "\n".join(lines)


def _discard(stream: TextIO) -> None:
    """Discard what is still to be flushed to a closed pipe or a full disk, and what follows."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):  # it is not a file
        return


def check_streams() -> None:
    """Check that results can be printed, and let messages vanish if stderr is closed.

    A stream that was closed when the program was started is None.
    """
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # to the end
    if sys.stdout is None:
        print_status(
            "standard output is closed, so no result can be printed. Redirect it instead, to a "
            "file or to /dev/null."
        )
        sys.exit(MISTAKE)


def describe_os_error(error: OSError) -> str:
    """The message for an error of the system."""
    where = f"{error.filename}: " if error.filename else ""
    return (
        f"{where}{error.strerror or error}. Check that the path exists, that you have permission "
        "to use it, and that the disk has free space."
    )


def _describe_bug(error: Exception) -> str:
    return (
        f"internal error (a bug in softprompt): {type(error).__name__}: {error}\n"
        f"Please report it with the output of {DEBUG}=1."
    )


def format_scores(report: Mapping[str, Any]) -> str:
    """A table of metrics, and the confusion matrix if there is one.

    Args:
        report: the metrics of a split by name, as in ``metrics.json``.
    """
    names = [name for name in report if name not in {"confusion", "intervals", "rows"}]
    intervals = report.get("intervals", {})
    confusion = report.get("confusion")
    rows = [
        [name, _format_score(name, float(report[name])), _format_interval(intervals.get(name))]
        for name in names
    ]
    for row in rows:
        if row[0] == "f1" and confusion is not None:
            row[2] = f"of {confusion['labels'][1]!r}, the second label"
    if "rows" in report:
        rows.append(["rows", f"{report['rows']:,}", ""])
    table = format_columns(rows)
    if confusion is None:
        return table
    return f"{table}{_format_absent(confusion)}\n\n{format_confusion(confusion)}"


def _format_interval(interval: Sequence[float] | None) -> str:
    """The interval of a share of right answers; empty without one."""
    return "" if interval is None else f"95 % interval {interval[0]:.2f} to {interval[1]:.2f}"


def _format_absent(confusion: Mapping[str, Any]) -> str:
    """A line on the labels that no row has; empty without any."""
    rows = zip(confusion["labels"], confusion["counts"], strict=True)
    absent = [label for label, counts in rows if not any(counts)]
    if not absent:
        return ""
    shown = ", ".join(absent[:_MAX_ABSENT])
    more = f" and {len(absent) - _MAX_ABSENT} more" if len(absent) > _MAX_ABSENT else ""
    one = len(absent) == 1
    return (
        f"\nmacro_f1 counts {'a label' if one else f'{len(absent)} labels'} without rows as 0: "
        f"{shown}{more}"
    )


def format_confusion(confusion: Mapping[str, Any]) -> str:
    """A confusion matrix with true labels as rows; a large one is left to --json."""
    labels, columns = confusion["labels"], confusion["predicted_labels"]
    if len(labels) > _MAX_LABELS:
        return f"confusion of {len(labels)} labels: see --json"
    rows = zip(labels, confusion["counts"], strict=True)
    cells = [[label, *map(str, counts)] for label, counts in rows]
    return format_columns([["true \\ predicted", *columns], *cells])


def _format_score(name: str, value: float) -> str:
    return f"{value:.2f}" if name in _PERCENT else f"{value:.4f}"
