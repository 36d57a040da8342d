"""Modules and functions are small, completely annotated, and documented.

A function's length is counted without its docstring, so that explanations cost nothing. A module's
length is all of its lines. Modules may not be too small either: see
``test_no_module_is_a_fragment``.
"""

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from statistics import median

import pytest

from support.source import (
    Documented,
    Function,
    decorator_names,
    import_graph,
    iterate_functions,
    iterate_public,
)

MODULE_LINES = 500
FUNCTION_LINES, FUNCTION_MEDIAN = 40, 8
PARAMETERS, POSITIONAL = 6, 2

# Public signatures that another library decides, as (module, function).
DICTATED: set[tuple[str, str]] = set()
# Functions whose keyword arguments are options of a user, with the reason.
OPTIONS = {
    ("softprompt.injection.verify", "load_backbone"): "as transformers' from_pretrained",
    ("softprompt.train.api", "fit"): "the settings of a recipe, each with a default",
    ("softprompt.train.automatic", "fit_data"): "the options of softprompt fit",
}

# A module with fewer lines that only one other module imports belongs in that module …
FRAGMENT_LINES = 60
# … unless it is a plug-in, which is a separate file so that adding one changes no other.
PLUG_INS = {
    "softprompt.__init__": "the public names",
    "softprompt.*.__init__": "a package's own names",
    "softprompt.__main__": "python -m softprompt",
    "softprompt.backbone.families.*": "a family of models that needs code of its own",
    "softprompt.methods.*": "a method",
    "softprompt.tasks.*": "a task",
    "softprompt.interop.arrays": "a format: vectors without a library of their own",
    "softprompt.interop.p_tuning_v2": "a format: P-tuning v2's checkpoints",
    "softprompt.interop.peft": "a format: PEFT's adapters",
    "softprompt.interop.vllm_*": "a format: files and requests for a vLLM server",
    "softprompt.compare.engines.*": "an engine that runs the runs of a comparison",
    "softprompt.cli.commands.*": "a command",
}


def docstring_lines(node: Documented) -> int:
    match node.body:
        case [ast.Expr(value=ast.Constant(value=str())) as first, *_]:
            return (first.end_lineno or first.lineno) - first.lineno + 1
    return 0


def length(function: Function) -> int:
    """Lines from ``def`` to the last one, without the docstring."""
    return (
        (function.end_lineno or function.lineno) - function.lineno + 1 - docstring_lines(function)
    )


def parameters(function: Function) -> tuple[list[ast.arg], list[ast.arg]]:
    """The parameters by position, and those by keyword only, without self and cls."""
    arguments = function.args
    by_position = [*arguments.posonlyargs, *arguments.args]
    bound = (
        by_position
        and by_position[0].arg in {"self", "cls"}
        and not decorator_names(function) & {"staticmethod"}
    )
    return by_position[1:] if bound else by_position, arguments.kwonlyargs


def is_dictated(module: str, function: Function) -> bool:
    """Whether its callers decide the order of its parameters.

    Python does for special methods, and other libraries for private functions that they call, such
    as hooks.
    """
    private = function.name.startswith("_") and function.name != "__init__"
    return private or (module, function.name) in DICTATED


def size_faults(module: str, source: str) -> Iterator[str]:
    lines = len(source.splitlines())
    if lines > MODULE_LINES:
        yield f"{module}: {lines} lines, at most {MODULE_LINES}; split it"
    for function in iterate_functions(ast.parse(source)):
        # A function of options has a line for each.
        options = sum(map(len, parameters(function))) if (module, function.name) in OPTIONS else 0
        limit = FUNCTION_LINES + options
        if length(function) > limit:
            where = f"{module}:{function.lineno}: {function.name}"
            yield f"{where} has {length(function)} lines, at most {FUNCTION_LINES}; split it"


def parameter_faults(module: str, source: str) -> Iterator[str]:
    if module.startswith("softprompt.cli"):
        return  # a command's options are its parameters
    for function in iterate_functions(ast.parse(source)):
        by_position, by_name = parameters(function)
        where = f"{module}:{function.lineno}: {function.name}"
        count = len(by_position) + len(by_name)
        if count > PARAMETERS and (module, function.name) not in OPTIONS:
            yield f"{where} takes {count} parameters, at most {PARAMETERS}; group them in a value"
        # A backbone, a task and rows, in this order.
        most = POSITIONAL + ((module, function.name) in OPTIONS)
        if len(by_position) > most and not is_dictated(module, function):
            yield f"{where} takes {len(by_position)} by position, at most {most}; use a *"


def annotation_faults(module: str, source: str) -> Iterator[str]:
    for function in iterate_functions(ast.parse(source)):
        by_position, by_name = parameters(function)
        rest = [arg for arg in (function.args.vararg, function.args.kwarg) if arg]
        bare = [arg.arg for arg in (*by_position, *by_name, *rest) if arg.annotation is None]
        bare += ["the result"] if function.returns is None else []
        if bare:
            where = f"{module}:{function.lineno}: {function.name}"
            yield f"{where} lacks types: {', '.join(bare)}"


def docstring_faults(module: str, source: str) -> Iterator[str]:
    tree = ast.parse(source)
    for name, node in [("the module itself", tree), *iterate_public(tree)]:
        if not ast.get_docstring(node):
            yield f"{module}: {name} has no docstring"


GUARDS = (size_faults, parameter_faults, annotation_faults, docstring_faults)


@pytest.mark.parametrize("guard", GUARDS)
def test_every_module_is_within_the_limits(guard, sources: dict[str, str]) -> None:
    faults = [fault for module, source in sources.items() for fault in guard(module, source)]
    assert not faults, "\n".join(faults)


def is_plug_in(module: str, *, packages: set[str]) -> bool:
    name = f"{module}.__init__" if module in packages else module
    return any(fnmatchcase(name, pattern) for pattern in PLUG_INS)


def fragment_faults(sources: dict[str, str]) -> list[str]:
    """Small modules that only one other module imports, or none."""
    packages = {name.rpartition(".")[0] for name in sources}
    graph = import_graph(sources)
    faults = []
    for module, source in sources.items():
        lines = len(source.splitlines())
        importers = sorted(other for other, targets in graph.items() if module in targets)
        if lines >= FRAGMENT_LINES or is_plug_in(module, packages=packages):
            continue
        if len(importers) == 1:
            faults.append(
                f"{module} has {lines} lines and only {importers[0]} imports it; merge them"
            )
        elif not importers:
            faults.append(f"{module} is not imported; remove it")
    return faults


def test_no_module_is_a_fragment(sources: dict[str, str]) -> None:
    faults = fragment_faults(sources)
    assert not faults, "\n".join(faults)


def test_every_plug_in_exists(sources: dict[str, str]) -> None:
    """Remove a pattern that matches nothing."""
    packages = {name.rpartition(".")[0] for name in sources}
    names = {f"{name}.__init__" if name in packages else name for name in sources}
    unused = [p for p in PLUG_INS if not any(fnmatchcase(name, p) for name in names)]
    assert unused == []


def test_every_wide_signature_exists(sources: dict[str, str]) -> None:
    """Remove an entry that is not needed."""
    for module, name in OPTIONS:
        assert module in sources
        assert name in {f.name for f in iterate_functions(ast.parse(sources[module]))}, module


def test_most_functions_are_short(sources: dict[str, str]) -> None:
    trees = [ast.parse(source) for source in sources.values()]
    assert median(length(f) for tree in trees for f in iterate_functions(tree)) <= FUNCTION_MEDIAN


DOC = '"""What it is."""\n'
LONG = "".join(f"    x{i} = {i}\n" for i in range(FUNCTION_LINES))
PLANTED = [
    (size_faults, "\n" * 501, "501 lines"),
    (size_faults, f"def f() -> None:\n{LONG}", "f has 41 lines"),
    (size_faults, f"class A:\n  async def f() -> None:\n{LONG}", "f has 41 lines"),
    (parameter_faults, "def f(a, b, *, c, d, e, g, h): ...", "f takes 7 parameters"),
    (parameter_faults, "class A:\n  def f(self, a, b, *, c, d, e, g, h): ...", "f takes 7"),
    (parameter_faults, "def f(a, b, c): ...", "f takes 3 by position"),
    (parameter_faults, "class A:\n  def __init__(self, a, b, c): ...", "__init__ takes 3 by pos"),
    (annotation_faults, "def f(a) -> None: ...", "f lacks types: a"),
    (annotation_faults, "def f(*a, **k) -> None: ...", "f lacks types: a, k"),
    (annotation_faults, "def f(a: int): ...", "f lacks types: the result"),
    (docstring_faults, "x = 1", "the module itself has no docstring"),
    (docstring_faults, f"{DOC}def f(): ...", "f has no docstring"),
    (docstring_faults, f"{DOC}class A: ...", "A has no docstring"),
    (docstring_faults, f"{DOC}class A:\n  {DOC}  def f(self): ...", "A.f has no docstring"),
]


@pytest.mark.parametrize(("guard", "source", "message"), PLANTED)
def test_the_guard_catches(guard, source: str, message: str) -> None:
    faults = list(guard("softprompt.planted", source))
    assert len(faults) == 1
    assert message in faults[0]


ALLOWED = [
    (size_faults, "\n" * 500),
    (size_faults, f"def f() -> None:\n    '''{LONG}'''\n    return\n"),
    (parameter_faults, "class A:\n  def f(self, a, b, *, c, d, e, g): ..."),
    (parameter_faults, "class A:\n  def __exit__(self, kind, fault, trace): ..."),
    (annotation_faults, "class A:\n  @classmethod\n  def f(cls, a: int) -> None: ..."),
    (docstring_faults, f"{DOC}def _f(): ...\nclass _A:\n  def f(self): ..."),
    (docstring_faults, f"{DOC}class A:\n  {DOC}  @override\n  def f(self): ..."),
]


@pytest.mark.parametrize(("guard", "source"), ALLOWED)
def test_the_guard_lets_pass(guard, source: str) -> None:
    assert list(guard("softprompt.planted", source)) == []


def test_options_of_a_command_are_not_counted() -> None:
    source = "def f(a, b, c, d, e, g, h): ..."
    assert list(parameter_faults("softprompt.cli.commands.train", source)) == []


SMALL, LARGE = "\n" * 59, "\n" * 60
FRAGMENTS = [
    ({"train.a": "", "train.b": "import softprompt.train.a" + LARGE}, "train.a has 0 lines and"),
    (
        {"train.a": SMALL, "train": "from softprompt.train.a import x"},
        "only softprompt.train imports",
    ),
    ({"train.a": SMALL, "train": ""}, "train.a is not imported"),
]


@pytest.mark.parametrize(("modules", "message"), FRAGMENTS)
def test_the_guard_catches_a_fragment(modules: dict[str, str], message: str) -> None:
    planted = {
        "softprompt": "from softprompt import train",
        "softprompt.train": "",
        "softprompt.train.b": LARGE,
        "softprompt.cli.main": "import softprompt.train.b" + LARGE,
    }
    planted |= {f"softprompt.{name}": source for name, source in modules.items()}
    faults = fragment_faults(planted)
    assert len(faults) == 1
    assert message in faults[0]


def test_the_guard_lets_whole_modules_and_plug_ins_pass() -> None:
    modules = {
        "train": "from softprompt.train.a import x\nfrom softprompt.train import c",
        "train.a": LARGE,  # large enough for one importer
        "train.c": SMALL,  # two importers
        "train.d": "from softprompt.train import c" + LARGE,
        "methods": "from softprompt.methods.p import P",
        "methods.p": SMALL,
        "cli.commands": "import softprompt.cli.commands.train",
        "cli.commands.train": "from softprompt.train import a, d",
        "__main__": "import softprompt.cli.commands",
    }
    planted = {f"softprompt.{name}": source for name, source in modules.items()}
    assert fragment_faults({"softprompt": ""} | planted) == []


@pytest.mark.parametrize("entry", OPTIONS)
def test_options_of_a_user_are_not_counted(entry: tuple[str, str]) -> None:
    module, name = entry
    source = f"def {name}(a, b, c, *, d, e, g, h): ..."
    assert list(parameter_faults(module, source)) == []
    assert len(list(parameter_faults("softprompt.train.trainer", source))) == 2
    assert len(list(parameter_faults(module, source.replace(name, "other")))) == 2
    assert len(list(parameter_faults(module, source.replace("*, ", "")))) == 1
