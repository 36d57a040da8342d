"""What can go wrong, as a tree. Every message says the fact, the limit and the remedy.

    SoftpromptError
    ├── BackboneError     a model cannot be loaded, or does not listen to prompts
    ├── PromptError       a prompt does not fit the backbone it is given to
    ├── TemplateError     a template is malformed, or does not fit task, method or data
    ├── DataError         rows, columns, labels or files are not what the recipe says
    │   └── UnreachableError  they are on the Hub, which cannot be reached
    ├── RecipeError       a recipe has faults (all of them at once, in ``faults``)
    ├── ArtifactError     a file on disk is not a whole, trustworthy artifact or checkpoint
    │   └── HubError      a repository of artifacts is not there, not open or not to be reached
    ├── TrainingError     a run cannot go on (NaN loss, nothing to train)
    └── MissingPackageError   an optional package is needed (with the command that installs it)

All of them are faults of input, not of the program: the command line prints the message alone
and exits with 2.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class SoftpromptError(Exception):
    """Base of every error that softprompt raises on purpose."""


class BackboneError(SoftpromptError):
    """A model cannot be loaded, or does not listen to prompts."""


class PromptError(SoftpromptError):
    """A prompt does not fit the backbone or the rows that it is given to."""


class TemplateError(SoftpromptError):
    """A template is malformed, or does not fit the task, the method or the data."""


class DataError(SoftpromptError):
    """Rows, columns, labels or files are not what the recipe says."""


class UnreachableError(DataError):
    """A data set is on the Hub, which cannot be reached, and nothing of it is on this machine."""


class RecipeError(SoftpromptError):
    """A recipe has faults.

    Args:
        faults: one message a fault; all that were found.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        super().__init__(f"{count} in the recipe:\n" + "\n".join(f"  - {f}" for f in self.faults))


class ArtifactError(SoftpromptError):
    """A file on disk is not a whole, trustworthy artifact or checkpoint."""


class HubError(ArtifactError):
    """A repository of artifacts on the Hub is not there, not open or cannot be reached."""


class TrainingError(SoftpromptError):
    """A run cannot go on."""


class MissingPackageError(SoftpromptError):
    """An optional package is needed and not installed."""


def unknown(what: str, given: str, *, options: Iterable[str]) -> str:
    """Say that ``given`` is no ``what``, list the options, and guess what was meant.

    >>> unknown("method", "p-tunin", options=["prompt-tuning", "p-tuning"])
    "unknown method 'p-tunin'. Options: p-tuning, prompt-tuning. Did you mean 'p-tuning'?"
    """
    names = sorted(options)
    close = get_close_matches(given, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown {what} {given!r}. Options: {', '.join(names)}.{hint}"
