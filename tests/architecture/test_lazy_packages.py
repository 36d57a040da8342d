"""Packages whose names are imported on first use say the same thing to people and to Python."""

import ast
import importlib
import pkgutil
import subprocess
import sys

import pytest

from softprompt._lazy import gather_lazily

LAZY = ("", "analysis", "backbone", "inference", "tasks")
# Modules that need no more than torch, or nothing of it.
LIGHT = (
    "softprompt.analysis.inspection",
    "softprompt.analysis.similarity",
    "softprompt.artifact",
    "softprompt.backbone.references",
    "softprompt.data",
    "softprompt.decoding",
    "softprompt.tasks.classifier_head",
    "softprompt.tasks.config",
    "softprompt.tasks.pooling",
)


def name_package(part: str) -> str:
    return f"softprompt.{part}".rstrip(".")


def list_typed_names(source: str) -> dict[str, str]:
    """The names that a type checker sees, each with the module that it is imported from."""
    (block,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    return {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


@pytest.mark.parametrize("part", LAZY)
def test_each_name_is_that_of_its_module(part: str, sources: dict[str, str]) -> None:
    package = importlib.import_module(name_package(part))
    homes = list_typed_names(sources[name_package(part)])
    assert {*package.__all__} == {*homes}
    assert dir(package) == sorted(homes)
    for name, home in homes.items():
        assert getattr(package, name) is getattr(importlib.import_module(home), name)


@pytest.mark.parametrize("part", LAZY)
def test_no_name_is_that_of_a_module(part: str) -> None:
    """Importing ``package.part`` makes it an attribute of the package, in place of a name."""
    package = importlib.import_module(name_package(part))
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert modules
    assert not modules & {*package.__all__}


@pytest.mark.parametrize("part", LAZY)
def test_an_unknown_name_is_refused(part: str) -> None:
    package = importlib.import_module(name_package(part))
    message = f"module '{name_package(part)}' has no attribute 'trian'"
    with pytest.raises(AttributeError, match=message):
        _ = package.trian


def test_a_name_is_looked_up_once() -> None:
    """In a subpackage and at the top alike."""
    for part, name in (("tasks", "Classify"), ("backbone", "is_same_model"), ("", "Classify")):
        package = importlib.import_module(name_package(part))
        value = getattr(package, name)
        assert vars(package)[name] is value


def test_nothing_is_imported_before_its_use() -> None:
    get_name, list_names = gather_lazily("softprompt", {"softprompt.no_such_module": ["lost"]})
    assert list_names() == ["lost"]
    with pytest.raises(ModuleNotFoundError):
        get_name("lost")


def test_the_light_modules_do_not_import_transformers_models() -> None:
    program = (
        "import importlib, json, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    print(name, 'transformers.modeling_utils' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *LIGHT, "softprompt.backbone.model"],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [f"{name} False" for name in LIGHT]
    assert done.stdout.splitlines() == [*expected, "softprompt.backbone.model True"]
