"""The memory of this process."""

import ctypes
from contextlib import suppress


def trim_memory() -> None:
    """Give free memory back to the system, where the C library is glibc, which keeps much of it."""
    with suppress(AttributeError, TypeError):  # another C library, or Windows
        ctypes.CDLL(None).malloc_trim(0)
