"""The public API is documented completely: arguments, results, errors, and examples that run.

What counts as public is what ``__all__`` of the packages in ``PUBLIC`` names; of a class, also its
public methods. The form is Google's, as ``docs/reference/python.md`` is made from it.
"""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator

import pytest

import softprompt

PUBLIC = ("softprompt", "softprompt.analysis", "softprompt.interop", "softprompt.sklearn")
SECTION = re.compile(
    r"^(Args|Attributes|Returns|Yields|Raises|Examples|Note|Notes|Source|Sources|References?):$"
)
ENTRY = re.compile(r"^(\*{0,2}\w+)(?: \([^)]*\))?:\s*(\S.*)?$")
# Examples that cannot run here, and why; they are shown as code, and not as a doctest.
NOT_RUN = {
    "VLLMPrompt": "needs a vLLM server",
    "pull": "needs the Hub",
    "push": "needs the Hub",
}


def read_sections(docstring: str) -> dict[str, list[str]]:
    """The sections of a docstring in Google form by their titles; '' is the text."""
    sections: dict[str, list[str]] = {"": []}
    title = ""
    for line in inspect.cleandoc(docstring).splitlines():
        if match := SECTION.match(line):
            title = match[1]
            sections.setdefault(title, [])
        elif line and not line[0].isspace():
            title = ""
            sections[title].append(line)
        else:
            sections[title].append(line)
    return sections


def described_names(lines: list[str]) -> set[str]:
    """The names that a section of arguments or attributes describes with some words."""
    block = textwrap.dedent("\n".join(lines)).splitlines()
    names = set()
    for line, following in zip(block, [*block[1:], ""], strict=False):
        if (match := ENTRY.match(line)) and (match[2] or following.strip()):
            names.add(match[1].lstrip("*"))
    return names


def signature_of(value: object) -> inspect.Signature | None:
    """The signature of a function or class; None if it has none of its own."""
    try:
        return inspect.signature(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def argument_names(value: object) -> list[str]:
    """The arguments that a caller gives, by name."""
    signature = signature_of(value)
    names = [] if signature is None else list(signature.parameters)
    return [name for name in names if name not in {"self", "cls"} and not name.startswith("_")]


def inherited_docs(owner: type) -> str:
    """The docstrings of a class and of its base classes."""
    own = (base for base in owner.__mro__ if base.__module__.partition(".")[0] != "builtins")
    return "\n\n".join(inspect.cleandoc(base.__doc__ or "") for base in own)


def raised_names(function: object) -> set[str]:
    """The errors that the source of a function raises."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))  # type: ignore[arg-type]
    except (OSError, TypeError, SyntaxError):
        return set()
    calls = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc)
    targets = (call.func if isinstance(call, ast.Call) else call for call in calls)
    names = {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if name[:1].isupper()}


def returns_value(function: object) -> bool:
    annotation = inspect.get_annotations(inspect.unwrap(function)).get("return")  # type: ignore[arg-type]
    return annotation not in (None, "None", type(None), typing.Never, typing.NoReturn)


def callable_faults(name: str, value: object, docstring: str) -> Iterator[str]:
    """What the docstring of a function or method leaves out."""
    sections = read_sections(docstring)
    missing = [
        arg for arg in argument_names(value) if arg not in described_names(sections.get("Args", []))
    ]
    if missing:
        yield f"{name}: not in Args: {', '.join(missing)}"
    if returns_value(value) and not {"Returns", "Yields"} & {*sections}:
        yield f"{name}: no Returns"
    stated = described_names(sections.get("Raises", []))
    if hidden := sorted(raised_names(value) - stated):
        yield f"{name}: not in Raises: {', '.join(hidden)}"


def class_faults(name: str, value: type) -> Iterator[str]:
    """What the docstrings of a class and of its public methods leave out."""
    sections = read_sections(inherited_docs(value))
    described = described_names([*sections.get("Args", []), *sections.get("Attributes", [])])
    own_init = dataclasses.is_dataclass(value) or "__init__" in vars(value)
    missing = [arg for arg in argument_names(value) if own_init and arg not in described]
    if missing:
        yield f"{name}: not in Args or Attributes: {', '.join(missing)}"
    for attribute, member in sorted(vars(value).items()):
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if attribute.startswith("_") or not inspect.isfunction(function):
            continue
        docstring = inspect.getdoc(getattr(value, attribute)) or ""
        yield from callable_faults(f"{name}.{attribute}", function, docstring)


def example_fault(name: str, docstring: str) -> str | None:
    """What is wrong with the example of a public name; None if nothing is."""
    example = "\n".join(read_sections(docstring).get("Examples", []))
    if not example.strip():
        return f"{name}: no Examples"
    if name not in NOT_RUN and ">>> " not in example:
        return f"{name}: Examples has no doctest"
    if "+SKIP" in example:
        return f"{name}: the doctest of Examples is skipped"
    return None


def is_described(value: object) -> bool:
    """Whether a value needs a docstring: errors and unions of types do not."""
    return inspect.isroutine(value) or (
        inspect.isclass(value) and not issubclass(value, BaseException)
    )


def doc_faults(name: str, value: object) -> list[str]:
    """Everything that the documentation of a public name leaves out."""
    if not is_described(value):
        return []
    docstring = inspect.getdoc(value) or ""
    faults = (
        [*class_faults(name, value)]
        if inspect.isclass(value)
        else [*callable_faults(name, value, docstring)]
    )
    example = example_fault(name, docstring)
    return faults + ([example] if example else [])


def public_values() -> dict[str, object]:
    """Every public name with its value."""
    values: dict[str, object] = {}
    for package in PUBLIC:
        if importlib.util.find_spec(package) is None:
            continue
        module = importlib.import_module(package)
        values |= {name: getattr(module, name) for name in module.__all__}
    return values


def test_the_public_api_is_documented_completely() -> None:
    values = public_values()
    faults = [fault for name, value in values.items() for fault in doc_faults(name, value)]
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults)


def test_every_example_that_is_not_run_is_public() -> None:
    assert {*NOT_RUN} <= {*softprompt.__all__}


def good(rows: int, *, size: float = 1.0) -> float:
    """Scale rows.

    Longer text.

    Args:
        rows: how many.
        size: of each, in
            centimetres.

    Returns:
        The product.

    Raises:
        ValueError: there are none.

    Examples:
        >>> good(2)
        2.0
    """
    if rows < 0:
        msg = "below 0"
        raise ValueError(msg)
    return rows * size


class Good:
    """A value.

    Args:
        rows: how many.

    Examples:
        >>> Good(2).double()
        4
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def double(self) -> int:
        """Twice as many.

        Returns:
            The number.
        """
        return 2 * self.rows

    def clear(self) -> None:
        """Remove all."""
        self.rows = 0


@dataclasses.dataclass(frozen=True)
class Sized:
    """A value with a size.

    Attributes:
        size: in centimetres.

    Examples:
        >>> Sized(2.0).size
        2.0
    """

    size: float


@pytest.mark.parametrize("value", [good, Good, Sized, ValueError, int | str, 3])
def test_the_guard_lets_pass(value: object) -> None:
    assert doc_faults("value", value) == []


@pytest.mark.parametrize(
    ("removed", "fault"),
    [
        ("        size: of each, in\n            centimetres.\n", "value: not in Args: size"),
        ("        rows: how many.\n", "value: not in Args: rows"),
        (": how many.", "value: not in Args: rows"),
        ("    Returns:\n        The product.\n", "value: no Returns"),
        ("    Raises:\n        ValueError: there are none.\n", "value: not in Raises: ValueError"),
        ("    Examples:\n        >>> good(2)\n        2.0\n", "value: no Examples"),
        (">>> ", "value: Examples has no doctest"),
    ],
)
def test_the_guard_catches_a_function(removed: str, fault: str, monkeypatch) -> None:
    text = good.__doc__ or ""
    # Python 3.13 removes the indentation of docstrings itself.
    removed = removed if removed in text else textwrap.dedent(removed)
    assert removed in text
    monkeypatch.setattr(good, "__doc__", text.replace(removed, "        " * (removed[:1] == ":")))
    assert doc_faults("value", good) == [fault]


def test_the_guard_catches_a_class(monkeypatch) -> None:
    monkeypatch.setattr(Good.double, "__doc__", "Twice as many.")
    assert doc_faults("Good", Good) == ["Good.double: no Returns"]
    monkeypatch.setattr(Good, "__doc__", "A value.")
    assert doc_faults("Good", Good) == [
        "Good: not in Args or Attributes: rows",
        "Good.double: no Returns",
        "Good: no Examples",
    ]


def test_the_guard_catches_a_field(monkeypatch) -> None:
    monkeypatch.setattr(
        Sized, "__doc__", "A value.\n\nExamples:\n    >>> Sized(2.0)  # doctest: +SKIP\n"
    )
    assert doc_faults("Sized", Sized) == [
        "Sized: not in Args or Attributes: size",
        "Sized: the doctest of Examples is skipped",
    ]
