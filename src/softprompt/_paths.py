"""Folders that softprompt writes to without being given one."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder of files that can be made again: ``$SOFTPROMPT_CACHE``, else the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "softprompt"
    return Path(os.environ.get("SOFTPROMPT_CACHE", default))
