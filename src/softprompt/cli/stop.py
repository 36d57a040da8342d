"""Ctrl-C and SIGTERM end a run between two steps, where its state is whole."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from softprompt.cli.say import FAILED, note_at_once

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Waits for a wish to stop while its block runs.

    Before the first step a wish interrupts at once. After it, the first wish is heeded after the
    step; a second one leaves at once, with the last checkpoint as it is.
    """

    def __init__(self) -> None:
        self._wished = False
        self._stepping = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {s: signal.signal(s, self._wish) for s in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler)

    def heed(self) -> None:
        """Stop here if it was wished.

        Raises:
            KeyboardInterrupt: it was.
        """
        self._stepping = True
        if self._wished:
            raise KeyboardInterrupt

    def _wish(self, _signal: int, _frame: FrameType | None) -> None:
        if not self._stepping:
            raise KeyboardInterrupt
        if self._wished:
            raise SystemExit(FAILED)
        self._wished = True
        note_at_once("stopping after this step (once more: at once, from the last checkpoint)")
