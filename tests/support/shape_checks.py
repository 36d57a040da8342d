"""Types and shapes in signatures are checked at every call, as jaxtyping's import hook checks them.

That hook checks all parameters twice, before and after the call, and compiles every library that a
checked module imports: a quarter of the tests' time. Here the checks are the same, once each.
"""

import ast
import dataclasses
import inspect
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any, get_args

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError, jaxtyped

_MARK = "__check_shapes__"
_check_types = beartype(conf=BeartypeConf(violation_type=TypeCheckError))


def install_shape_checks(modules: Sequence[str]) -> None:
    """Check the functions and dataclasses of modules that are imported from now on."""
    sys.meta_path.insert(0, _Finder(modules))


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose axes have one length each in all parameters and the result of a call."""
    if inspect.isgeneratorfunction(function):
        checked: Callable[..., Any] = jaxtyped(function, typechecker=_check_types)
        return checked  # but not what it yields, one by one
    checked = _check_types(function)
    if not any(map(_has_shape, inspect.get_annotations(function).values())):
        return checked

    @wraps(checked)
    def run(*args: object, **kwargs: object) -> object:
        with jaxtyped("context"):  # an axis has its length in this call alone
            return checked(*args, **kwargs)

    return run


def _check(value: Any) -> Any:
    if not inspect.isclass(value):
        return check_shapes(value)
    if dataclasses.is_dataclass(value) and "__init__" in vars(value):
        value.__init__ = check_shapes(value.__init__)
    return value


def _has_shape(hint: object) -> bool:
    """Whether an annotation has the shape of an array in it, or may have."""
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    parts = hint if isinstance(hint, list) else get_args(hint)
    return isinstance(hint, str) or any(map(_has_shape, parts))


class _Marker(ast.NodeTransformer):
    """Decorates functions before, and classes after, all other decorators."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.decorator_list.append(ast.Name(_MARK, ast.Load()))
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.decorator_list.insert(0, ast.Name(_MARK, ast.Load()))
        return self.generic_visit(node)


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002  # there is one path
        """The code with checks, which is not kept in a file."""
        tree = _Marker().visit(ast.parse(self.get_data(self.path), self.path))
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[_MARK] = _check
        super().exec_module(module)


class _Finder(MetaPathFinder):
    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = (*modules,)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not any(fullname == name or fullname.startswith(f"{name}.") for name in self._modules):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec
