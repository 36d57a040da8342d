"""Folders that softprompt writes to without being given one."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder of files that can be made again: ``$SOFTPROMPT_CACHE``, else the user's cache.

    An empty variable counts as unset, as in the XDG specification.
    """
    if own := os.environ.get("SOFTPROMPT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "softprompt"
