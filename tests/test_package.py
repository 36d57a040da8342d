"""``import softprompt``: the public names, imported on first use, and the docstring's example."""

import importlib
import importlib.resources
import pkgutil
import re
import subprocess
import sys
from types import ModuleType

import pytest

import softprompt
from softprompt import errors


def run_python(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_import_is_light() -> None:
    heavy = {"torch", "pydantic", "numpy", "huggingface_hub"}
    program = f"import sys, softprompt; print(sorted({heavy} & {{*sys.modules}}))"
    assert run_python(program) == "[]"


def test_public_names_are_those_of_their_modules() -> None:
    from softprompt.train.api import fit, train_recipe

    assert softprompt.fit is fit
    assert softprompt.train_recipe is train_recipe
    for name in softprompt.__all__:
        value = vars(softprompt).get(name) or getattr(softprompt, name)
        assert not isinstance(value, ModuleType)
        assert getattr(value, "__name__", name) in {name, "Union", "UnionType", "Callable"}


def test_every_error_is_public() -> None:
    kinds = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.SoftpromptError)
    }
    assert kinds <= {*softprompt.__all__}


def test_no_public_name_hides_a_module() -> None:
    for name in softprompt.__all__:
        getattr(softprompt, name)
    modules = [module.name for module in pkgutil.iter_modules(softprompt.__path__)]
    assert {"train", "recipe", "prompt", "artifact"} <= {*modules}
    for name in modules:
        module = importlib.import_module(f"softprompt.{name}")
        assert getattr(softprompt, name) is module


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'softprompt' has no attribute 'trian'"):
        _ = softprompt.trian
    assert dir(softprompt) == sorted(softprompt.__all__)


@pytest.mark.filterwarnings("ignore::softprompt.errors.SoftpromptWarning")
def test_the_example_of_the_docstring_runs(saved, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", softprompt.__doc__, re.DOTALL)[1]
    # A tiny backbone and two dozen rows stand in for the real ones.
    folder = saved("llama").as_posix()
    code = code.replace("builtin:smollm2-135m-instruct", folder)
    code = code.replace("...]", '{"text": "A bore.", "label": "negative"}] * 12')
    names: dict[str, object] = {}
    exec(compile(code, "the docstring", "exec"), names)  # noqa: S102  # our own docstring
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(
        re.match(r"(negative|positive) \{'negative': 0\.\d+, 'positive': ", li) for li in lines
    )
    assert (tmp_path / "sentiment" / "manifest.json").exists()
    assert names["model"].labels == ("negative", "positive")


def test_the_version_is_the_installed_one() -> None:
    from importlib.metadata import version

    from typer.testing import CliRunner

    from softprompt.cli import app

    assert softprompt.__version__ == version("softprompt")
    output = CliRunner().invoke(app, ["--version"]).output
    assert output == f"softprompt {softprompt.__version__}\n"


def test_the_package_is_marked_as_typed() -> None:
    """PEP 561: type checkers read the annotations of a package that has this file."""
    assert (importlib.resources.files("softprompt") / "py.typed").read_text("utf-8") == ""


def test_the_log_is_silent_without_a_handler() -> None:
    program = (
        "import logging, softprompt; logging.getLogger('softprompt.train').warning('unheard'); "
        "print(logging.getLogger('softprompt').handlers)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert (done.stdout.strip(), done.stderr) == ("[<NullHandler (NOTSET)>]", "")


@pytest.mark.parametrize(("setup", "expected"), [("", ""), ("logging.basicConfig(); ", "heard")])
def test_the_log_of_bitsandbytes_needs_a_handler_too(setup, expected) -> None:
    """It warns when it is imported, which PEFT does in every training process."""
    warn = "logging.getLogger('bitsandbytes.backends.cpu.ops').warning('heard')"
    done = subprocess.run(
        [sys.executable, "-c", f"import logging, softprompt; {setup}{warn}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.strip().rpartition(":")[2] == expected
