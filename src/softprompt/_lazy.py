"""Public names of packages that are imported on first use (PEP 562).

A package that gathers its names so can be imported without its modules, and one of its modules
without the others.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module


def gather_lazily(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """The functions ``__getattr__`` and ``__dir__`` of a package with lazy names.

    No name may be that of a module of the package, since importing that module would replace it.

    Args:
        package: its full name.
        homes: the names by the module that each is imported from.

    Returns:
        Both functions.

    Examples:
        >>> get, list_names = gather_lazily("softprompt._lazy", {"math": ["pi", "tau"]})
        >>> list_names()
        ['pi', 'tau']
        >>> get("pi")
        3.141592653589793
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def get_name(name: str) -> object:
        if name not in home_of:
            msg = f"module {package!r} has no attribute {name!r}"
            raise AttributeError(msg)
        value: object = getattr(import_module(home_of[name]), name)
        setattr(sys.modules[package], name, value)  # so that this is called once for each name
        return value

    def list_names() -> list[str]:
        return sorted(home_of)

    return get_name, list_names
