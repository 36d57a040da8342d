"""Modules and functions stay small, are annotated whole and say what they are.

A function's length is counted without its docstring: explaining costs nothing. A module's is all
of its lines.
"""

import ast
from collections.abc import Iterator
from statistics import median

import pytest

MODULE_LINES, MODULE_MEDIAN = 250, 100
FUNCTION_LINES, FUNCTION_MEDIAN = 40, 8
PARAMETERS, POSITIONAL = 6, 2

# Public signatures that another library decides, as (module, function).
DICTATED: set[tuple[str, str]] = set()

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef | ast.Module


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


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


def decorators(function: Function) -> set[str]:
    return {ast.unparse(item).split("(")[0].split(".")[-1] for item in function.decorator_list}


def parameters(function: Function) -> tuple[list[ast.arg], list[ast.arg]]:
    """What a caller gives by position and by name only; self and cls are not given."""
    given = function.args
    by_position = [*given.posonlyargs, *given.args]
    bound = (
        by_position
        and by_position[0].arg in {"self", "cls"}
        and not decorators(function) & {"staticmethod"}
    )
    return by_position[1:] if bound else by_position, given.kwonlyargs


def dictated(module: str, function: Function) -> bool:
    """Whether somebody else may decide the order that it is called with.

    Python does for its own methods; for the rest, another library calls our private functions
    (hooks, attention), and no reader outside the file calls those by position.
    """
    private = function.name.startswith("_") and function.name != "__init__"
    return private or (module, function.name) in DICTATED


def size_faults(module: str, source: str) -> Iterator[str]:
    lines = len(source.splitlines())
    if lines > MODULE_LINES:
        yield f"{module}: {lines} lines, at most {MODULE_LINES}; split it"
    for function in functions(ast.parse(source)):
        if length(function) > FUNCTION_LINES:
            where = f"{module}:{function.lineno}: {function.name}"
            yield f"{where} has {length(function)} lines, at most {FUNCTION_LINES}; split it"


def parameter_faults(module: str, source: str) -> Iterator[str]:
    if module.startswith("softprompt.cli"):
        return  # a command's options are its parameters
    for function in functions(ast.parse(source)):
        by_position, by_name = parameters(function)
        where = f"{module}:{function.lineno}: {function.name}"
        count = len(by_position) + len(by_name)
        if count > PARAMETERS:
            yield f"{where} takes {count} parameters, at most {PARAMETERS}; group them in a value"
        if len(by_position) > POSITIONAL and not dictated(module, function):
            yield f"{where} takes {len(by_position)} by position, at most {POSITIONAL}; use a *"


def annotation_faults(module: str, source: str) -> Iterator[str]:
    for function in functions(ast.parse(source)):
        by_position, by_name = parameters(function)
        rest = [arg for arg in (function.args.vararg, function.args.kwarg) if arg]
        bare = [arg.arg for arg in (*by_position, *by_name, *rest) if arg.annotation is None]
        bare += ["the result"] if function.returns is None else []
        if bare:
            where = f"{module}:{function.lineno}: {function.name}"
            yield f"{where} lacks types: {', '.join(bare)}"


def public(node: Documented, prefix: str) -> Iterator[tuple[str, Documented]]:
    """The public functions and classes in a body, and those in the classes."""
    for child in node.body:
        if not isinstance(child, Function | ast.ClassDef) or child.name.startswith("_"):
            continue
        if isinstance(child, Function) and decorators(child) & {"override", "overload", "setter"}:
            continue  # documented where it is first said
        yield f"{prefix}{child.name}", child
        if isinstance(child, ast.ClassDef):
            yield from public(child, f"{prefix}{child.name}.")


def docstring_faults(module: str, source: str) -> Iterator[str]:
    tree = ast.parse(source)
    for name, node in [("the module itself", tree), *public(tree, "")]:
        if not ast.get_docstring(node):
            yield f"{module}: {name} has no docstring"


GUARDS = (size_faults, parameter_faults, annotation_faults, docstring_faults)


@pytest.mark.parametrize("guard", GUARDS)
def test_every_module_keeps_to_the_budget(guard, sources: dict[str, str]) -> None:
    found = [fault for module, source in sources.items() for fault in guard(module, source)]
    assert not found, "\n".join(found)


def test_most_modules_are_short(sources: dict[str, str]) -> None:
    assert median(len(source.splitlines()) for source in sources.values()) <= MODULE_MEDIAN


def test_most_functions_are_short(sources: dict[str, str]) -> None:
    trees = [ast.parse(source) for source in sources.values()]
    assert median(length(f) for tree in trees for f in functions(tree)) <= FUNCTION_MEDIAN


DOC = '"""What it is."""\n'
LONG = "".join(f"    x{i} = {i}\n" for i in range(FUNCTION_LINES))
PLANTED = [
    (size_faults, "\n" * 251, "251 lines"),
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
    found = list(guard("softprompt.planted", source))
    assert len(found) == 1
    assert message in found[0]


ALLOWED = [
    (size_faults, "\n" * 250),
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


def test_options_of_a_command_are_no_parameters() -> None:
    source = "def f(a, b, c, d, e, g, h): ..."
    assert list(parameter_faults("softprompt.cli.train", source)) == []
