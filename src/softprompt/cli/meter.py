"""How much memory something takes beside what is there already."""

import ctypes
import gc
from threading import Event, Thread
from types import TracebackType
from typing import Self

import psutil
import torch

_EVERY = 0.02


class Meter:
    """Watches this process, or the GPU where there is one, while its block runs.

    ``taken`` is the most that there was at any time beside what there was at the beginning, in
    bytes.
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
        _give_back()
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


def _give_back() -> None:
    """Freed memory that the C library keeps would hide what is taken next."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, TypeError):  # not glibc, which alone keeps that much
        return
