"""Measure the memory that a block of code adds to what is in use before it."""

import ctypes
import gc
from threading import Event, Thread
from types import TracebackType
from typing import Self

import psutil
import torch

_EVERY = 0.02


class MemoryMeter:
    """Measures this process, or the GPU if there is one, while its block runs.

    ``taken`` is the peak minus the memory in use at the beginning, in bytes.
    """

    def __init__(self, device: torch.device) -> None:
        self.taken = 0
        self._cuda = device.type == "cuda"
        self._device = device
        self._before = 0
        self._process = psutil.Process()
        self._over = Event()
        self._watch = Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        gc.collect()
        _trim_heap()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            self._before = self._process.memory_info().rss
            self._watch.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._cuda:
            self.taken = torch.cuda.max_memory_allocated(self._device) - self._before
            return
        self._over.set()
        self._watch.join()

    def _sample(self) -> None:
        while not self._over.wait(_EVERY):
            self.taken = max(self.taken, self._process.memory_info().rss - self._before)


def _trim_heap() -> None:
    """Return freed memory to the system: the next allocations would reuse it unseen."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, TypeError):  # not glibc, the only one that holds much
        return
