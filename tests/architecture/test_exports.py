"""The public names of ``softprompt`` exist, are documented and sorted, and there are no others."""

import inspect
import re
from types import ModuleType

import pytest

import softprompt


def order(name: str) -> tuple[int, str]:
    """As ruff sorts ``__all__``: CONSTANTS, Classes, then the rest."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)


def own_docstring(value: object, name: str) -> str:
    """The docstring that was written for a value; Python generates one for dataclasses."""
    written = value.__doc__ or ""
    return "" if written.startswith(f"{name}(") else written


def described(name: str, text: str) -> bool:
    """Whether a page of text names a value, whole and as code."""
    return re.search(rf"`{re.escape(name)}`", text) is not None


def is_part(package: ModuleType, name: str) -> bool:
    """Whether a name is a module of the package, which importing it makes an attribute."""
    value = getattr(package, name)
    return isinstance(value, ModuleType) and value.__name__ == f"{package.__name__}.{name}"


def faults(package: ModuleType) -> list[str]:
    """Everything that is wrong with a package's public names."""
    names = list(package.__all__)
    missing = [name for name in names if not hasattr(package, name)]
    found = [f"{name} is in __all__ but does not exist" for name in missing]
    if names != sorted(names, key=order):
        found.append(f"__all__ is not in order: {sorted(names, key=order)}")
    for name in {*names} - {*missing}:
        value = getattr(package, name)
        code = inspect.isclass(value) or inspect.isroutine(value)
        if code and not own_docstring(value, name):
            found.append(f"{name} has no docstring")
        if not code and not described(name, package.__doc__ or ""):
            found.append(
                f"{name} is not a class or function: describe it in the package's docstring"
            )
    visible = {name for name in dir(package) if not name.startswith("_")}
    stray = sorted(name for name in visible - {*names} if not is_part(package, name))
    return found + [f"{name} is public and not in __all__" for name in stray]


def test_the_public_names_are_complete() -> None:
    assert faults(softprompt) == []


def planted(**names: object) -> ModuleType:
    package = ModuleType("planted", "A package with `LIMIT`, the largest number.")
    vars(package).update(names)
    return package


class Value:
    """A value."""


def action() -> None:
    """Do it."""


def bare() -> None: ...


GOOD = {"LIMIT": 3, "Value": Value, "action": action, "part": ModuleType("planted.part")}
PLANTED = [
    ({"__all__": ["LIMIT", "Value", "absent", "action"]}, "absent is in __all__"),
    ({"__all__": ["LIMIT", "action", "Value"]}, "not in order"),
    ({"__all__": ["LIMIT", "Value", "action", "bare"], "bare": bare}, "bare has no docstring"),
    ({"__all__": ["LIMIT", "OTHER", "Value", "action"], "OTHER": 3}, "OTHER is not a class"),
    ({"__all__": ["LIMIT", "Value"]}, "action is public"),
    ({"__all__": ["LIMIT", "Value", "action"], "re": re}, "re is public"),
]


def test_the_guard_lets_pass() -> None:
    assert faults(planted(__all__=["LIMIT", "Value", "action"], **GOOD)) == []


@pytest.mark.parametrize(("names", "message"), PLANTED)
def test_the_guard_catches(names: dict[str, object], message: str) -> None:
    found = faults(planted(**GOOD | names))
    assert len(found) == 1
    assert message in found[0]
