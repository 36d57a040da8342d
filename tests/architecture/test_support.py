"""Helpers of tests are in ``tests/support``, once; a conftest holds fixtures and nothing else."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.source import Function, decorator_names


def conftest_faults(name: str, source: str) -> Iterator[str]:
    """Classes and functions of a conftest that are not fixtures."""
    for node in ast.parse(source).body:
        helper = isinstance(node, ast.ClassDef) or (
            isinstance(node, Function)
            and not node.name.startswith("pytest_")
            and "fixture" not in decorator_names(node)
        )
        if helper:
            yield f"{name}:{node.lineno}: {node.name} is not a fixture; move it to tests/support"


def twin_faults(sources: dict[str, str]) -> list[str]:
    """Functions and classes whose bodies are repeated."""
    homes: dict[str, str] = {}
    faults = []
    for name, source in sources.items():
        for node in ast.parse(source).body:
            if not isinstance(node, Function | ast.ClassDef) or len(node.body) < 2:
                continue
            text = ast.dump(ast.Module(node.body, []))
            where = f"{name}: {node.name}"
            if text in homes:
                faults.append(f"{homes[text]} is repeated in {where}; move it to tests/support")
            homes.setdefault(text, where)
    return faults


def read_tests(root: Path) -> dict[str, str]:
    files = sorted((root / "tests").rglob("*.py"))
    return {str(file.relative_to(root / "tests")): file.read_text("utf-8") for file in files}


def test_a_conftest_holds_fixtures(root: Path) -> None:
    tests = read_tests(root).items()
    faults = [
        f
        for name, text in tests
        if name.endswith("conftest.py")
        for f in conftest_faults(name, text)
    ]
    assert not faults, "\n".join(faults)


def test_no_helper_is_repeated(root: Path) -> None:
    faults = twin_faults(read_tests(root))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("helper", ["def make(): ...", "class Maker: ...", "@cache\ndef f(): ..."])
def test_the_guard_catches_a_helper(helper: str) -> None:
    assert len(list(conftest_faults("conftest.py", helper))) == 1
    assert "tests/support" in next(conftest_faults("conftest.py", helper))


@pytest.mark.parametrize(
    "fixture",
    [
        "@pytest.fixture\ndef x(): ...",
        "@pytest.fixture(scope='session')\ndef x():\n  def make(): ...\n  return make",
        "def pytest_configure(config): ...",
        "KINDS = ('llama',)",
    ],
)
def test_the_guard_lets_fixtures_pass(fixture: str) -> None:
    assert list(conftest_faults("conftest.py", fixture)) == []


def test_the_guard_catches_twins() -> None:
    body = "(a):\n  b = a + 1\n  return b"
    assert twin_faults({"a.py": f"def f{body}", "b.py": f"def g{body}"}) == [
        "a.py: f is repeated in b.py: g; move it to tests/support"
    ]
    assert twin_faults({"a.py": f"def f{body}", "b.py": f"def g{body}\n".replace("1", "2")}) == []
