"""Functions are named by verbs, predicates begin with ``is_`` or the like, names are defined once.

The verbs that names may begin with are in ``verbs.txt``, one per line, sorted. Add a verb that is
missing; change a name that is a noun or a participle (``told``, ``picked``, ``laid_out``).
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from support.source import Function, decorator_names, iterate_public

VERBS_FILE = Path(__file__).with_name("verbs.txt")
VERBS = frozenset(VERBS_FILE.read_text("utf-8").split())
PREDICATE = re.compile(r"(is|has|can|are)_\w+")
# Conversions (`to_dict`, `from_file`, `with_prompt`: a changed copy), and handlers of an event.
CONVERSION = re.compile(r"(to|from|as|with)(_\w+)?|on_\w+")
# Names that another library or its users expect, with the reason.
EXPECTED = {
    "lazy_initialization": "transformers' layers of a cache",
    "main": "the entry point of a command line",
    "parameters": "torch.nn.Module",
    "startup": "uvicorn's server",
    "state_dict": "torch.nn.Module",
}
# Modules, by pattern, whose names other modules may define too, with the reason.
PROTOCOLS = {
    "softprompt.cli.commands.*": "a command bears the name of the function that it calls",
}
# Names that several modules may define, with the reason.
SHARED = {
    "app": "the command line of a module of commands, as typer calls it",
    "logger": "the logger of a module",
}


def is_attribute(function: Function) -> bool:
    """Whether a method is used as a value is."""
    return bool(decorator_names(function) & {"property", "cached_property", "computed_field"})


def is_verb(name: str) -> bool:
    """Whether a name of a function says what the function does."""
    if name in EXPECTED or PREDICATE.fullmatch(name) or CONVERSION.fullmatch(name):
        return True
    return name.rstrip("_").split("_")[0] in VERBS


def verb_faults(module: str, source: str) -> Iterator[str]:
    """Public functions and methods whose names do not begin with a verb."""
    for qualified, node in iterate_public(ast.parse(source)):
        if isinstance(node, Function) and not is_attribute(node) and not is_verb(node.name):
            first = node.name.split("_")[0]
            yield (
                f"{module}:{node.lineno}: {qualified} begins with {first!r}, which is not a verb in"
                f" {VERBS_FILE.name}"
            )


def defined_names(source: str) -> set[str]:
    """The public names that a module defines itself: functions, classes and values."""
    names: set[str] = set()
    for node in ast.parse(source).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.ClassDef(name=name):
                names.add(name)
            case ast.Assign(targets=targets):
                names |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return {name for name in names if not name.startswith("_")}


def duplicate_faults(sources: dict[str, str]) -> list[str]:
    """Public names that two modules define."""
    homes = defaultdict(list)
    for module, source in sources.items():
        if not any(fnmatchcase(module, pattern) for pattern in PROTOCOLS):
            for name in defined_names(source):
                homes[name].append(module)
    return [
        f"{name} is defined in {' and in '.join(sorted(modules))}; one word a thing"
        for name, modules in sorted(homes.items())
        if len(modules) > 1 and name not in SHARED
    ]


def test_public_functions_are_verbs(sources: dict[str, str]) -> None:
    faults = [fault for module, source in sources.items() for fault in verb_faults(module, source)]
    assert not faults, "\n".join(faults)


def test_no_public_name_is_defined_twice(sources: dict[str, str]) -> None:
    faults = duplicate_faults(sources)
    assert not faults, "\n".join(faults)


def test_the_verbs_are_sorted() -> None:
    words = VERBS_FILE.read_text("utf-8").splitlines()
    assert words == sorted({*words})
    assert all(re.fullmatch("[a-z]+", word) for word in words)


@pytest.mark.parametrize(
    "name",
    [
        *["told", "named", "picked", "found", "laid_out", "wired", "voted", "reached"],
        *["labels_of", "metrics", "majority", "best_device", "supports_shift", "into_rows"],
        *["isolated", "toggled", "hash_", "island", "row_key", "without_bars", "judged_rows"],
    ],
)
def test_the_guard_catches_what_is_not_a_verb(name: str) -> None:
    expected = name == "hash_"  # a trailing underscore keeps a name apart from Python's own
    for source in (f"def {name}(): ...", f"class A:\n  async def {name}(self): ..."):
        assert (not list(verb_faults("softprompt.planted", source))) == expected


@pytest.mark.parametrize(
    "source",
    [
        "def load_backbone(): ...",
        "def predict(): ...",
        "def import_(): ...",
        "def is_local(): ...\ndef has_pickle_suffix(): ...\ndef can_split(): ...",
        "def are_equal(): ...",
        "def to_dict(): ...\ndef to(): ...\ndef from_file(): ...\ndef as_rows(): ...",
        "def on_layer(): ...",
        "def _told(): ...",
        "class _Told:\n  def told(self): ...",
        "class A:\n  @property\n  def labels(self): ...",
        "class A:\n  @cached_property\n  def labels(self): ...",
        "class A:\n  @override\n  def state(self): ...",
        "class A:\n  def state_dict(self): ...",
        "def load():\n  def told(): ...",
    ],
)
def test_the_guard_lets_verbs_pass(source: str) -> None:
    assert list(verb_faults("softprompt.planted", source)) == []


@pytest.mark.parametrize(
    "definition",
    [
        "def Same(): ...",
        "async def Same(): ...",
        "class Same: ...",
        "Same = 1",
        "Same: int = 1",
        "Other, Same = 1, 2",
        "if 1: ...\nSame = int",
    ],
)
def test_the_guard_catches_a_name_with_two_homes(definition: str) -> None:
    planted = {"softprompt.a": "class Same: ...", "softprompt.b": definition}
    assert duplicate_faults(planted) == [
        "Same is defined in softprompt.a and in softprompt.b; one word a thing"
    ]


@pytest.mark.parametrize(
    "definition",
    [
        "from softprompt.a import Same",
        "_Same = 1",
        "def f():\n  Same = 1",
        "class A:\n  Same = 1",
        "logger = 1",
    ],
)
def test_the_guard_lets_other_names_pass(definition: str) -> None:
    planted = {"softprompt.a": "Same = 1\n_Same = 1\nlogger = 1", "softprompt.b": definition}
    assert duplicate_faults(planted) == []


def test_a_command_may_bear_the_name_of_what_it_calls() -> None:
    planted = {
        "softprompt.train.api": "def train(): ...",
        "softprompt.cli.commands.train": "def train(): ...",
    }
    assert duplicate_faults(planted) == []
