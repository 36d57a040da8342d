"""What goes wrong on the way to the Hub, in our words."""

from collections.abc import Iterator
from contextlib import contextmanager

from httpx2 import TransportError
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from softprompt.errors import HubError, SoftpromptError

_LONG = 200
_RETRY = "retry-after"
_UNKNOWN, _LIMITED, _FAILED = 401, 429, 500  # HTTP's: who is it, too many, and faults of the server
_MOVED = ("somebody else changed it at the same moment", "Try again.")
_MEANS = {
    _UNKNOWN: (
        "the token is not accepted",
        "Log in again with `hf auth login`, or correct HF_TOKEN, which goes before it.",
    ),
    403: (
        "the token lacks the right to have it {doing}",
        "Use one with that right for this owner, or another name.",
    ),
    409: _MOVED,
    412: _MOVED,
}


@contextmanager
def reached(name: str, *, doing: str) -> Iterator[None]:
    """Tell every fault of a block that speaks to the Hub.

    Args:
        name: the repository.
        doing: what it cannot be then: ``read`` or ``written to``.

    Raises:
        HubError: for whatever went wrong.
    """
    try:
        yield
    except SoftpromptError:
        raise
    except Exception as error:  # the client's, its transports' and the disk's, of many kinds
        raise HubError(_said(_inner(error), name, doing)) from error


def _inner(error: Exception) -> BaseException:
    """What happened, where the client wraps it in another."""
    wraps = isinstance(error, LocalEntryNotFoundError) or type(error) is RuntimeError
    return error.__cause__ if wraps and error.__cause__ is not None else error


def _said(error: BaseException, name: str, doing: str) -> str:
    fact = f"{name} cannot be {doing}"
    match error:
        case OfflineModeIsEnabled():
            return (
                f"{fact}: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, so nothing is sent or "
                "fetched. Unset it for this command."
            )
        case GatedRepoError():
            return (
                f"{fact}: it is gated, and its owner decides who may have it. Ask for it on its "
                f"page, {constants.ENDPOINT}/{name}, and log in as who may: `hf auth login`."
            )
        case RepositoryNotFoundError():
            return f"{fact}: {_hidden()}"
        case HfHubHTTPError():
            return f"{fact}: {_answered(error, doing)}"
        case TransportError():
            return (
                f"{fact}: {constants.ENDPOINT} cannot be reached ({_short(error)}). Check the "
                "network, a proxy (HTTPS_PROXY) and HF_ENDPOINT."
            )
        case _:
            return f"{fact}: {_local(error)}"


def _local(error: BaseException) -> str:
    """What went wrong on this machine, or on the way."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}. Free some space, or use a folder that can be written."
    return f"{_short(error)}. Try again; if it stays so, update huggingface_hub."


def _hidden() -> str:
    if get_token() is None:
        return (
            "there is no such repository, or it is private and nobody is logged in. Check the "
            "name, or run `hf auth login`."
        )
    return (
        "there is no such repository, or it is private and the token may not see it. Check the "
        "name, and the token's rights."
    )


def _answered(error: HfHubHTTPError, doing: str) -> str:
    """What an answer of the Hub means."""
    status = error.response.status_code
    said = f" ({_clean(error.server_message)})" if error.server_message else ""
    if status == _UNKNOWN and get_token() is None:
        return _hidden()
    if status == _LIMITED:
        after = error.response.headers.get(_RETRY, "")
        wait = f"{after} seconds" if after.isdigit() else "some minutes"
        return f"the Hub has had too many requests{said}. Wait {wait}, or log in for more."
    if status in _MEANS:
        fact, remedy = _MEANS[status]
        return f"{fact.format(doing=doing)}{said}. {remedy}"
    if status >= _FAILED:
        return f"the Hub failed with status {status}{said}. Try again later."
    return f"the Hub answered with status {status}{said}. Check name and revision."


def _short(error: BaseException) -> str:
    first = _clean(str(error))
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _clean(text: str) -> str:
    """A line of somebody else's text, in which nothing moves a terminal's cursor."""
    lines = [line for line in text.splitlines() if line.strip()]
    shown = "".join(c for c in (lines or [""])[0] if c.isprintable()).rstrip(". ")
    return f"{shown[:_LONG]}…" if len(shown) > _LONG else shown
