"""Names of files: as users write them, whether or not a file can have them; and our own folder."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder of files that can be made again: ``$SOFTPROMPT_CACHE``, else the user's cache.

    An empty variable counts as unset, as in the XDG specification.
    """
    if own := os.environ.get("SOFTPROMPT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "softprompt"


# Here and not with pathlib, which raises RuntimeError for an unknown ``~user``, and OSError for a
# name that is too long; a name may be a text for a model or a data set on the Hub.
def expand_user(name: str | os.PathLike[str]) -> Path:
    """A path in which ``~`` is the user's folder; that of an unknown user stays, as in a shell.

    Args:
        name: of a file.

    Examples:
        >>> expand_user("~no-such-user/reviews.csv").name
        'reviews.csv'
    """
    return Path(os.path.expanduser(name))  # noqa: PTH111


def is_present(path: str | os.PathLike[str]) -> bool:
    r"""Whether there is a file or folder; False for a name that none can have.

    Args:
        path: its name.

    Examples:
        >>> is_present("."), is_present("x" * 5000), is_present("a\0b")
        (True, False, False)
    """
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file, not a folder or a device; False for a name that none can have.

    Args:
        path: its name.
    """
    return os.path.isfile(path)  # noqa: PTH113
