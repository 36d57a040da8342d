"""The memory of this process."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def trim_memory() -> None:
    """Give free memory back to the system, where the C library is glibc, which keeps much of it."""
    with suppress(AttributeError, TypeError):  # another C library, or Windows
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Search for no cycles while many values are made that have none.

    The search looks at all of them again and again: on a million rows it takes a fifth of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
