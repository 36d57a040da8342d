"""Signals stop a run between two steps."""

import signal

import pytest

from softprompt.cli.signals import GracefulStop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_after_the_step_and_the_second_at_once(number) -> None:
    previous = signal.getsignal(number)
    with GracefulStop() as stop:
        with pytest.raises(KeyboardInterrupt):  # before the first step
            signal.raise_signal(number)
        stop.check()
        signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            stop.check()
        with pytest.raises(SystemExit) as exit_info:
            signal.raise_signal(number)
        assert exit_info.value.code == 1
    assert signal.getsignal(number) is previous
