"""Measure the memory that a block of code adds to what is in use before it."""

import gc
from threading import Event, Thread
from types import TracebackType
from typing import Self

import psutil
import torch

from softprompt._memory import trim_memory

# Seconds between two samples of a process.
_INTERVAL = 0.02


class MemoryMeter:
    """Measures this process, or the GPU if the device is one, while its block runs.

    Args:
        device: where the block computes.

    Attributes:
        added_bytes: the peak minus the memory in use at the beginning.
    """

    def __init__(self, device: torch.device) -> None:
        self.added_bytes = 0
        self._cuda = device.type == "cuda"
        self._device = device
        self._before = 0
        self._process = psutil.Process()
        self._stopped = Event()
        self._sampler = Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        gc.collect()
        trim_memory()  # allocations that reuse free memory would not be measured
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            self._before = self._process.memory_info().rss
            self._sampler.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._cuda:
            self.added_bytes = torch.cuda.max_memory_allocated(self._device) - self._before
            return
        self._stopped.set()
        self._sampler.join()

    def _sample(self) -> None:
        while not self._stopped.wait(_INTERVAL):
            added = self._process.memory_info().rss - self._before
            self.added_bytes = max(self.added_bytes, added)
