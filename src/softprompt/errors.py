"""The errors of softprompt, as a tree. Each message states the fact, the limit and the remedy.

    SoftpromptError
    ├── BackboneError     a model cannot be loaded, or prompts have no effect on it
    ├── PromptError       a prompt does not fit the backbone that it is used with
    ├── TemplateError     a template is malformed, or does not fit task, method or data
    ├── DataError         rows, columns, labels or files are not as expected
    │   └── UnreachableError  a data set is on the Hub, which cannot be reached
    ├── RecipeError       a recipe has faults (all of them at once, in ``faults``)
    ├── ArtifactError     a file on disk is not a complete, trustworthy artifact or checkpoint
    │   └── HubError      a repository is missing, not accessible, or cannot be reached
    ├── TrainingError     a run cannot continue (NaN loss, nothing to train)
    └── MissingPackageError   an optional package is needed (with the command that installs it)

All of them are errors in the input, not bugs: the command line prints only the message and exits
with status 2. A problem that does not stop a run is a `SoftpromptWarning`.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import ParamSpec, TypeVar

# Also halves of characters, as Python reads the bytes of names that are not UTF-8.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class SoftpromptError(Exception):
    """Base class of all errors that softprompt raises for wrong input."""


class SoftpromptWarning(UserWarning):
    """A problem that does not stop a run; the message says what to try."""


class BackboneError(SoftpromptError):
    """A model cannot be loaded, or prompts have no effect on it."""


class PromptError(SoftpromptError):
    """A prompt does not fit the backbone or the rows that it is used with."""


class TemplateError(SoftpromptError):
    """A template is malformed, or does not fit the task, the method or the data."""


class DataError(SoftpromptError):
    """Rows, columns, labels or files are not as expected."""


class UnreachableError(DataError):
    """A data set is on the Hub, which cannot be reached, and it is not in the local cache."""


class RecipeError(SoftpromptError):
    """A recipe has faults.

    Args:
        faults: the messages, one per fault.
        where: the thing that has the faults, for the message.

    Attributes:
        faults: the messages, one per fault.
    """

    def __init__(self, faults: Sequence[str], *, where: str = "the recipe") -> None:
        self.faults = tuple(faults)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        super().__init__(f"{count} in {where}:\n" + "\n".join(f"  - {f}" for f in self.faults))
        self._where = where

    def __reduce__(self) -> tuple[Callable[..., "RecipeError"], tuple[Sequence[str], str]]:
        """Faults cross from one process to another as they are, not as their message."""
        return _make_recipe_error, (self.faults, self._where)


def _make_recipe_error(faults: Sequence[str], where: str) -> RecipeError:
    return RecipeError(faults, where=where)


class ArtifactError(SoftpromptError):
    """A file on disk is not a complete, trustworthy artifact or checkpoint."""


class HubError(ArtifactError):
    """A repository on the Hub is missing, not accessible, or cannot be reached."""


class TrainingError(SoftpromptError):
    """A run cannot continue."""


class MissingPackageError(SoftpromptError):
    """An optional package is needed and is not installed."""


def format_unknown(what: str, name: str, *, options: Iterable[str]) -> str:
    """The message for an unknown name: it lists the options and suggests the closest one.

    Args:
        what: the kind of thing that was named, such as ``"method"``.
        name: the unknown name.
        options: the known names.

    Returns:
        The message.

    Examples:
        >>> format_unknown("method", "p-tunin", options=["prompt-tuning", "p-tuning"])
        "unknown method 'p-tunin'. Options: p-tuning, prompt-tuning. Did you mean 'p-tuning'?"
    """
    names = sorted(options)
    close = get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown {what} {name!r}. Options: {', '.join(names)}.{hint}"


def escape_control_characters(text: str) -> str:
    r"""Escape what a terminal would obey instead of showing it, except tabs and line breaks.

    Names, labels and messages of files may contain such characters. The escapes are those of JSON,
    so that JSON stays JSON.

    Args:
        text: to be printed.

    Returns:
        The text with the control characters of ASCII and of Latin-1, and halves of characters,
        escaped.

    Examples:
        >>> print(escape_control_characters("red \x1b[31m or \x9b31m"))
        red \u001b[31m or \u009b31m
    """
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def summarize_error(error: BaseException) -> str:
    """Name an error of another library in one line: its class and its first line."""
    first = str(error).strip().split("\n", 1)[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of a library in Rust (tokenizers): not an `Exception`."""
    return type(error).__name__ == "PanicException"


class FaultCollector:
    """Runs steps that may fail, and raises or collects their errors.

    Args:
        keep_going: collect all faults; otherwise the first one is raised.

    Attributes:
        faults: the messages so far, without duplicates.
        notes: the checks that could not be made, without duplicates.
    """

    def __init__(self, *, keep_going: bool = False) -> None:
        self.keep_going = keep_going
        self.faults: list[str] = []
        self.notes: list[str] = []

    @property
    def is_clean(self) -> bool:
        """Whether everything was checked and no fault was found."""
        return not self.faults and not self.notes

    def attempt(
        self,
        step: Callable[_Arguments, _Result],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> _Result | None:
        """Run a step.

        Returns:
            The step's result. None if it failed and the collector keeps going.

        Raises:
            SoftpromptError: the step failed, and the collector does not keep going.
            UnreachableError: raised in any case: being offline is not a fault of the recipe.
        """
        try:
            return step(*args, **kwargs)
        except UnreachableError:
            raise
        except SoftpromptError as error:
            if not self.keep_going:
                raise
            self.add(error)
        return None

    def check(
        self,
        check: Callable[_Arguments, None],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> bool:
        """Run a check.

        Returns:
            Whether the check found no fault.

        Raises:
            SoftpromptError: the check found a fault, and the collector does not keep going.
        """

        def run() -> bool:
            check(*args, **kwargs)
            return True

        return self.attempt(run) or False

    def add(self, error: SoftpromptError) -> None:
        """Record the faults of an error."""
        messages = error.faults if isinstance(error, RecipeError) else (str(error),)
        self.faults += [message for message in messages if message not in self.faults]

    def add_note(self, text: str) -> None:
        """Record that something could not be checked."""
        if text not in self.notes:
            self.notes.append(text)
