"""Errors of the Hub's client, translated to error messages with a remedy."""

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
_UNKNOWN, _LIMITED, _FAILED = (
    401,
    429,
    500,
)  # HTTP's: unauthorized, too many requests, server errors
_CONFLICT = ("it was changed by another commit at the same time", "Try again.")
_MEANS = {
    _UNKNOWN: (
        "the token is not accepted",
        "Log in again with `hf auth login`, or correct HF_TOKEN, which takes precedence.",
    ),
    403: (
        "the token has no permission for this repository to be {doing}",
        "Use a token with that permission for this owner, or another name.",
    ),
    409: _CONFLICT,
    412: _CONFLICT,
}


@contextmanager
def translate_hub_errors(name: str, *, doing: str) -> Iterator[None]:
    """Turn every error of a block that uses the Hub into a HubError.

    Args:
        name: the repository.
        doing: the action, as a participle: ``read`` or ``written to``.

    Raises:
        HubError: the action failed.
    """
    try:
        yield
    except SoftpromptError:
        raise
    except Exception as error:  # the client's, its transports' and the disk's, of many kinds
        raise HubError(_explain(_unwrap(error), name, doing)) from error


def is_out_of_reach(error: HubError) -> bool:
    """Whether an error means that there is no connection to the Hub."""
    return isinstance(error.__cause__, Exception) and isinstance(
        _unwrap(error.__cause__), OfflineModeIsEnabled | TransportError
    )


def _unwrap(error: Exception) -> BaseException:
    """The original error, if the client wraps it in another."""
    is_wrapper = isinstance(error, LocalEntryNotFoundError) or type(error) is RuntimeError
    return error.__cause__ if is_wrapper and error.__cause__ is not None else error


def _explain(error: BaseException, name: str, doing: str) -> str:
    fact = f"{name} cannot be {doing}"
    match error:
        case OfflineModeIsEnabled():
            return (
                f"{fact}: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, so nothing is sent or "
                "fetched. Unset it for this command."
            )
        case GatedRepoError():
            return (
                f"{fact}: it is gated, and its owner grants access to it. Request access on its "
                f"page, {constants.ENDPOINT}/{name}, and log in: `hf auth login`."
            )
        case RepositoryNotFoundError():
            return f"{fact}: {_explain_missing()}"
        case HfHubHTTPError():
            return f"{fact}: {_explain_status(error, doing)}"
        case TransportError():
            return (
                f"{fact}: {constants.ENDPOINT} cannot be reached ({_short(error)}). Check the "
                "network, a proxy (HTTPS_PROXY) and HF_ENDPOINT."
            )
        case _:
            return f"{fact}: {_local(error)}"


def _local(error: BaseException) -> str:
    """The message for an error on this machine."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}. Free some space, or use a writable folder."
    return f"{_short(error)}. Try again; if it fails again, update huggingface_hub."


def _explain_missing() -> str:
    if get_token() is None:
        return (
            "there is no such repository, or it is private and you are not logged in. Check the "
            "name, or run `hf auth login`."
        )
    return (
        "there is no such repository, or it is private and the token has no access to it. Check "
        "the name, and the token's permissions."
    )


def _explain_status(error: HfHubHTTPError, doing: str) -> str:
    """The message for an HTTP status of the Hub."""
    status = error.response.status_code
    detail = f" ({_clean(error.server_message)})" if error.server_message else ""
    if status == _UNKNOWN and get_token() is None:
        return _explain_missing()
    if status == _LIMITED:
        after = error.response.headers.get(_RETRY, "")
        wait = f"{after} seconds" if after.isdigit() else "some minutes"
        return f"the Hub received too many requests{detail}. Wait {wait}, or log in."
    if status in _MEANS:
        fact, remedy = _MEANS[status]
        return f"{fact.format(doing=doing)}{detail}. {remedy}"
    if status >= _FAILED:
        return f"the Hub failed with status {status}{detail}. Try again later."
    return f"the Hub answered with status {status}{detail}. Check name and revision."


def _short(error: BaseException) -> str:
    first = _clean(str(error))
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _clean(text: str) -> str:
    """The first line of a server's text, without control characters."""
    lines = [line for line in text.splitlines() if line.strip()]
    shown = "".join(c for c in (lines or [""])[0] if c.isprintable()).rstrip(". ")
    return f"{shown[:_LONG]}…" if len(shown) > _LONG else shown
