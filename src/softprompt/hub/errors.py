"""Errors of the Hub's client, translated to error messages with a remedy."""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

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

_MAX_DETAIL = 200  # characters of a server's message
_CONFLICT = ("it was changed by another commit at the same time", "Try again.")
# The fact and the remedy for an HTTP status.
_EXPLANATIONS = {
    HTTPStatus.UNAUTHORIZED: (
        "the token is not accepted",
        "Log in again with `hf auth login`, or correct HF_TOKEN, which takes precedence.",
    ),
    HTTPStatus.FORBIDDEN: (
        "the token has no permission for this repository to be {action}",
        "Use a token with that permission for this owner, or another name.",
    ),
    HTTPStatus.CONFLICT: _CONFLICT,
    HTTPStatus.PRECONDITION_FAILED: _CONFLICT,
}


@contextmanager
def translate_hub_errors(name: str, *, action: str) -> Iterator[None]:
    """Turn every error of a block that uses the Hub into a HubError.

    Args:
        name: the repository.
        action: the action, as a participle: ``read`` or ``written to``.

    Raises:
        HubError: the action failed.
    """
    try:
        yield
    except SoftpromptError:
        raise
    except Exception as error:  # from the client, its transport or the disk, of many kinds
        raise HubError(_explain(_unwrap(error), name, action)) from error


def is_out_of_reach(error: HubError) -> bool:
    """Whether an error means that there is no connection to the Hub."""
    return isinstance(error.__cause__, Exception) and isinstance(
        _unwrap(error.__cause__), OfflineModeIsEnabled | TransportError
    )


def _unwrap(error: Exception) -> BaseException:
    """The original error, if the client wraps it in another."""
    is_wrapper = isinstance(error, LocalEntryNotFoundError) or type(error) is RuntimeError
    return error.__cause__ if is_wrapper and error.__cause__ is not None else error


def _explain(error: BaseException, name: str, action: str) -> str:
    fact = f"{name} cannot be {action}"
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
            return f"{fact}: {_explain_status(error, action)}"
        case TransportError():
            return (
                f"{fact}: {constants.ENDPOINT} cannot be reached ({_summarize(error)}). Check the "
                "network, a proxy (HTTPS_PROXY) and HF_ENDPOINT."
            )
        case _:
            return f"{fact}: {_explain_local(error)}"


def _explain_local(error: BaseException) -> str:
    """The message for an error on this machine."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}. Free some space, or use a writable folder."
    return f"{_summarize(error)}. Try again; if it fails again, update huggingface_hub."


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


def _explain_status(error: HfHubHTTPError, action: str) -> str:
    """The message for an HTTP status of the Hub."""
    status = error.response.status_code
    detail = f" ({_clean(error.server_message)})" if error.server_message else ""
    if status == HTTPStatus.UNAUTHORIZED and get_token() is None:
        return _explain_missing()
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        seconds = error.response.headers.get("retry-after", "")
        wait = f"{seconds} seconds" if seconds.isdigit() else "some minutes"
        return f"the Hub received too many requests{detail}. Wait {wait}, or log in."
    if status in _EXPLANATIONS:
        fact, remedy = _EXPLANATIONS[HTTPStatus(status)]
        return f"{fact.format(action=action)}{detail}. {remedy}"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return f"the Hub failed with status {status}{detail}. Try again later."
    return f"the Hub answered with status {status}{detail}. Check name and revision."


def _summarize(error: BaseException) -> str:
    """The class and the first line of an error."""
    detail = _clean(str(error))
    return f"{type(error).__name__}: {detail}" if detail else type(error).__name__


def _clean(text: str) -> str:
    """The first line of a server's text, without control characters."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    line = "".join(c for c in first if c.isprintable()).rstrip(". ")
    return f"{line[:_MAX_DETAIL]}…" if len(line) > _MAX_DETAIL else line
