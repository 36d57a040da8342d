"""Why a request is not answered, and how protocols report it."""

from typing import Literal

import torch

from softprompt.errors import SoftpromptError, summarize_error

FaultKind = Literal[
    "invalid", "unauthorized", "forbidden", "unknown", "too_large", "limited", "failed", "full",
    "stopping", "expired", "upstream", "unreachable",
]  # fmt: skip
# The status of HTTP, and the type of OpenAI's errors.
STATUS: dict[FaultKind, tuple[int, str]] = {
    "invalid": (400, "invalid_request_error"),
    "unauthorized": (401, "authentication_error"),
    "forbidden": (403, "permission_error"),
    "unknown": (404, "not_found_error"),
    "too_large": (413, "invalid_request_error"),
    "limited": (429, "rate_limit_error"),
    "failed": (503, "server_error"),
    "full": (503, "overloaded_error"),
    "stopping": (503, "overloaded_error"),
    "expired": (504, "timeout_error"),
    "upstream": (502, "server_error"),
    "unreachable": (503, "server_error"),
}


class ServingError(SoftpromptError):
    """A request is not answered.

    Args:
        message: the fact, the limit and the remedy.
        kind: of the fault.
        param: the field of the request that is wrong, if one is.
        retry_after: in how many seconds a repetition may succeed; None if it cannot.

    Examples:
        >>> ServingError("1,024 rows wait. Try again later.", kind="full", retry_after=2).status
        503
    """

    def __init__(
        self,
        message: str,
        *,
        kind: FaultKind,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.param = param
        self.retry_after = retry_after

    @property
    def status(self) -> int:
        """The status of HTTP."""
        return STATUS[self.kind][0]

    @property
    def type(self) -> str:
        """The type of the error in OpenAI's form."""
        return STATUS[self.kind][1]


def describe_failure(error: Exception) -> ServingError:
    """The answer to the sender of a row that raised an error.

    Args:
        error: that was raised.

    Returns:
        The error to send.
    """
    if isinstance(error, torch.OutOfMemoryError):
        msg = "there is not enough memory for this row alone. Shorten it."
        return ServingError(msg, kind="failed")
    if isinstance(error, ServingError):
        return error
    if isinstance(error, SoftpromptError):
        return ServingError(str(error), kind="invalid")
    return ServingError(f"the row could not be run: {summarize_error(error)}.", kind="failed")
