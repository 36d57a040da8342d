"""Packages stand in one strict order; a module imports only those below it, without circles.

The guard reads source text, so imports inside functions and under TYPE_CHECKING count too.
"""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from support.source import import_graph, is_own, list_imports

# From the bottom to the top: each may import those before it in this list, and none after it.
ORDER = (
    "_lazy",
    "_memory",
    "errors",
    "_paths",
    "_parsing",
    "prompt",
    "decoding",
    "_io",
    "backbone",
    "data",
    "injection",
    "methods",
    "tasks",
    "artifact",
    "hub",
    "recipe",
    "inference",
    "analysis",
    "interop",
    "train",
    "serve",  # does not exist yet; its place is decided
    "compare",
    "sklearn",
    "cli",
    "__main__",
)
HEIGHT = {package: height for height, package in enumerate(ORDER)}
# What a package may not reach at all, even through others. Tasks and inference know the two prompt
# values and no method; a server does not need training either.
OUT_OF_REACH = {
    "tasks": {"methods"},
    "inference": {"methods"},
    "serve": {"methods", "recipe", "train", "compare"},
    "compare": {"serve"},
}
TOP = "softprompt/__init__.py"


def package_of(module: str) -> str:
    """The file or folder right under softprompt that a module belongs to."""
    _, _, rest = module.partition(".")
    return rest.split(".")[0] or TOP


def target(name: str) -> str:
    """The package that an imported name belongs to; a name of no package is a public name."""
    package = package_of(name)
    return package if package in HEIGHT else TOP


def violation(here: str, there: str) -> str | None:
    """Why ``here`` may not import ``there``; None if it may."""
    if here in (there, TOP):
        return None
    if here not in HEIGHT:
        return f"{here} has no place in the order: give it one in ORDER in {__name__}"
    if there == TOP:
        return f"{here} imports {TOP}; import the module that defines the name"
    if HEIGHT[there] > HEIGHT[here]:
        return f"{here} imports {there}, which stands above it"
    if there in OUT_OF_REACH.get(here, ()):
        return f"{here} may not import {there}"
    return None


def layer_faults(module: str, source: str) -> Iterator[str]:
    """Imports of one module that go up."""
    for line, name in list_imports(source):
        if name == ".":
            yield f"{module}:{line}: relative import; write the absolute name"
        elif is_own(name) and (why := violation(package_of(module), target(name))):
            yield f"{module}:{line}: {why}"


def reachable(sources: dict[str, str], start: str) -> dict[str, str]:
    """The modules that ``start`` reaches through any chain of imports, each with its importer.

    Importing ``a.b.c`` runs ``a.b`` too; the top package alone is left out, since it loads on
    demand.
    """
    seen = {start: ""}
    todo = [start]
    while todo:
        here = todo.pop()
        for _, name in list_imports(sources[here]):
            parts = name.split(".") if is_own(name) else []
            for module in (".".join(parts[:end]) for end in range(2, len(parts) + 1)):
                if module in sources and module not in seen:
                    seen[module] = here
                    todo.append(module)
    return seen


def reach_faults(sources: dict[str, str]) -> list[str]:
    """Chains of imports from a package to one that it may not reach."""
    chains = []
    for start in sources:
        barred = OUT_OF_REACH.get(package_of(start), set())
        seen = reachable(sources, start) if barred else {}
        for end in (module for module in seen if package_of(module) in barred):
            chain = [end]
            while chain[-1] != start:
                chain.append(seen[chain[-1]])
            chains.append(" → ".join(reversed(chain)))
    return chains


def shortest_circle(graph: dict[str, set[str]], start: str) -> list[str]:
    """The shortest way from a module back to itself; empty if there is none."""
    ways = [[start]]
    seen: set[str] = set()
    for way in ways:  # grows while it is read: breadth first
        for following in sorted(graph[way[-1]]):
            if following == start:
                return [*way, start]
            if following not in seen:
                seen.add(following)
                ways.append([*way, following])
    return []


def circle_faults(sources: dict[str, str]) -> list[str]:
    """Every circle of imports once, from its first module by name; a package is its __init__."""
    graph = import_graph(sources)
    graph.pop("softprompt", None)
    graph = {module: targets & {*graph} for module, targets in graph.items()}
    circles = (shortest_circle(graph, module) for module in sorted(graph))
    return [" → ".join(circle) for circle in circles if circle and circle[0] == min(circle)]


def test_no_module_imports_upward(sources: dict[str, str]) -> None:
    faults = [fault for module, source in sources.items() for fault in layer_faults(module, source)]
    assert not faults, "\n".join(faults)


def test_every_package_has_a_place_in_the_order(sources: dict[str, str]) -> None:
    assert {package_of(module) for module in sources} <= {*HEIGHT, TOP}


def test_nothing_is_reached_by_a_detour(sources: dict[str, str]) -> None:
    faults = reach_faults(sources)
    assert not faults, "\n".join(faults)


def test_there_is_no_circle_of_imports(sources: dict[str, str]) -> None:
    faults = circle_faults(sources)
    assert not faults, "\n".join(faults)


def test_the_order_is_strict() -> None:
    """Of any two packages exactly one may import the other, unless it is barred from it."""
    for here in ORDER:
        for there in ORDER[: HEIGHT[here]]:
            assert violation(there, here)
            assert (violation(here, there) is None) == (there not in OUT_OF_REACH.get(here, ()))


PLANTED = [
    ("softprompt.errors", "import softprompt.prompt", "which stands above it"),
    ("softprompt.prompt", "from softprompt import _io", "which stands above it"),
    ("softprompt.data.table", "from softprompt.artifact import Artifact", "above it"),
    ("softprompt.methods.base", "from softprompt.tasks.base import Task", "above it"),
    ("softprompt.recipe.schema", "from softprompt.inference import load_model", "above it"),
    ("softprompt.inference.model", "from softprompt.interop import convert", "above it"),
    ("softprompt.train.trainer", "from softprompt import compare", "above it"),
    ("softprompt.train.trainer", "from softprompt.serve import app", "above it"),
    ("softprompt.compare.runner", "import softprompt.cli.console", "above it"),
    ("softprompt.compare.runner", "def f():\n    import softprompt.cli.console", "above it"),
    ("softprompt.tasks.base", "from softprompt.methods import METHODS", "may not import methods"),
    ("softprompt.inference.model", "import softprompt.methods", "may not import methods"),
    ("softprompt.serve.app", "def f():\n    import softprompt.methods", "may not import methods"),
    ("softprompt.serve.app", "from softprompt.recipe import Recipe", "may not import recipe"),
    ("softprompt.serve.app", "from softprompt.train import fit", "may not import train"),
    ("softprompt.serve.app", "from softprompt import compare", "above it"),
    ("softprompt.data.table", "from softprompt import fit", "imports softprompt/__init__.py"),
    ("softprompt.data.table", "import softprompt", "imports softprompt/__init__.py"),
    ("softprompt.data.table", "from . import template", "relative import"),
    ("softprompt.data.table", "from ..errors import DataError", "relative import"),
    ("softprompt.data.table", "import_module('softprompt.cli')", "above it"),
    ("softprompt.data.table", "importlib.import_module('softprompt.cli')", "above it"),
    ("softprompt.utils", "from softprompt.errors import DataError", "has no place in the order"),
]


@pytest.mark.parametrize(("module", "source", "message"), PLANTED)
def test_the_guard_catches(module: str, source: str, message: str) -> None:
    faults = list(layer_faults(module, source))
    assert len(faults) == 1
    assert message in faults[0]
    assert faults[0].startswith(f"{module}:")


ALLOWED = [
    ("softprompt", "from softprompt.cli import main"),
    ("softprompt.prompt", "from softprompt.errors import PromptError"),
    ("softprompt.methods.base", "from softprompt.methods.initializers import Initializer"),
    ("softprompt.methods.initializers", "from softprompt.injection.capture import capture"),
    ("softprompt.train.api", "from softprompt.inference.model import PromptModel"),
    ("softprompt.compare.runner", "from softprompt.train.api import train"),
    ("softprompt.serve.app", "from softprompt.tasks import base\nfrom softprompt import errors"),
    ("softprompt.cli.commands.train", "from softprompt.train.api import train"),
]


@pytest.mark.parametrize(("module", "source"), ALLOWED)
def test_the_guard_lets_pass(module: str, source: str) -> None:
    assert list(layer_faults(module, source)) == []


def test_the_guard_catches_a_detour() -> None:
    planted = {
        "softprompt.serve": "from softprompt.artifact.store import load",
        "softprompt.artifact": "from softprompt.artifact import describe",
        "softprompt.artifact.describe": "from softprompt.methods.base import Method",
        "softprompt.artifact.store": "",
        "softprompt.methods": "",
        "softprompt.methods.base": "",
    }
    assert "softprompt.serve → softprompt.artifact → softprompt.artifact.describe → " in "\n".join(
        reach_faults(planted)
    )
    planted["softprompt.artifact"] = ""
    assert reach_faults(planted) == []


CIRCLES = [
    (
        {"a.x": "import softprompt.a.y", "a.y": "from softprompt.a import x"},
        "softprompt.a.x → softprompt.a.y → softprompt.a.x",
    ),
    (
        {
            "a.x": "from softprompt.a.y import f",
            "a.y": "def g():\n    from softprompt.a.z import f",
            "a.z": "from softprompt.a.x import f",
        },
        "softprompt.a.x → softprompt.a.y → softprompt.a.z → softprompt.a.x",
    ),
    (
        {"a": "from softprompt.a.x import f", "a.x": "from softprompt.a import f"},
        "softprompt.a → softprompt.a.x → softprompt.a",
    ),
]


@pytest.mark.parametrize(("modules", "circle"), CIRCLES)
def test_the_guard_catches_a_circle(modules: dict[str, str], circle: str) -> None:
    planted = {"softprompt.a": ""} | {f"softprompt.{name}": t for name, t in modules.items()}
    assert circle_faults(planted) == [circle]


def test_the_guard_lets_a_package_gather_its_modules() -> None:
    assert not circle_faults(
        {
            "softprompt": "from softprompt.a import f",
            "softprompt.a": "from softprompt.a.x import f\nfrom softprompt.a.y import g",
            "softprompt.a.x": "import softprompt.errors\nfrom softprompt.a.y import g",
            "softprompt.a.y": "",
            "softprompt.errors": "",
        }
    )


def test_the_command_line_starts_without_torch() -> None:
    program = (
        "import sys, softprompt.cli; print(sorted({'torch', 'transformers'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
