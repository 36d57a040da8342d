"""Ctrl-C and SIGTERM stop a run between two steps, where its state is consistent."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from softprompt.cli.console import FAILED, print_status_now

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulStop:
    """Handles SIGINT and SIGTERM while its block runs.

    Before the first step a signal interrupts at once. After it, the first signal stops the run
    after the current step; a second one exits at once, and the run resumes from its last
    checkpoint.
    """

    def __init__(self) -> None:
        self._requested = False
        self._stepping = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def is_requested(self) -> bool:
        """Whether to stop now, between two steps."""
        self._stepping = True
        return self._requested

    def check(self) -> None:
        """Stop now if a signal has requested it.

        Raises:
            KeyboardInterrupt: a stop was requested.
        """
        if self.is_requested():
            raise KeyboardInterrupt

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        if not self._stepping:
            raise KeyboardInterrupt
        if self._requested:
            raise SystemExit(FAILED)
        self._requested = True
        print_status_now(
            "stopping after this step; press Ctrl-C again to stop now (resumes from the last "
            "checkpoint)"
        )
