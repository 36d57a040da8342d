"""The source text of the package, for the architecture tests."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "softprompt"

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef | ast.Module


def read_sources() -> dict[str, str]:
    """The text of every module by its name; a package goes by the name of its folder."""

    def module_name(path: Path) -> str:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    return {module_name(path): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def iterate_imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported; ``from a import b`` gives ``a.b``.

    Imports inside functions and under TYPE_CHECKING count too. A relative import gives ``.``.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module), level=0, names=names):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.ImportFrom():
                yield node.lineno, "."
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


@cache
def list_imports(source: str) -> tuple[tuple[int, str], ...]:
    """As `iterate_imports` of a module's text, which is parsed once."""
    return (*iterate_imports(ast.parse(source)),)


def is_own(name: str) -> bool:
    """Whether a dotted name belongs to softprompt."""
    return name == "softprompt" or name.startswith("softprompt.")


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """For every module, the modules of softprompt that its text imports by name.

    ``from softprompt.data import table`` imports the module ``softprompt.data.table`` if there is
    one, and the package ``softprompt.data`` otherwise.
    """

    def module_of(name: str) -> str:
        return name if name in sources else name.rpartition(".")[0]

    return {
        module: {
            module_of(name)
            for _, name in list_imports(source)
            if is_own(name) and module_of(name) in sources and module_of(name) != module
        }
        for module, source in sources.items()
    }


def iterate_functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def decorator_names(function: Function) -> set[str]:
    return {ast.unparse(item).split("(")[0].split(".")[-1] for item in function.decorator_list}


def iterate_public(node: Documented, prefix: str = "") -> Iterator[tuple[str, Documented]]:
    """The public functions and classes in a body, and those in the classes."""
    for child in node.body:
        if not isinstance(child, Function | ast.ClassDef) or child.name.startswith("_"):
            continue
        if isinstance(child, Function) and decorator_names(child) & {
            "override",
            "overload",
            "setter",
        }:
            continue  # documented where it is first defined
        yield f"{prefix}{child.name}", child
        if isinstance(child, ast.ClassDef):
            yield from iterate_public(child, f"{prefix}{child.name}.")
