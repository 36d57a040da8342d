"""``import softprompt``: the public names, when they are asked for; and the page's own example."""

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


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_importing_it_costs_nothing() -> None:
    heavy = {"torch", "pydantic", "numpy", "huggingface_hub"}
    program = f"import sys, softprompt; print(sorted({heavy} & {{*sys.modules}}))"
    assert run(program) == "[]"


def test_names_are_what_they_say_in_their_homes() -> None:
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


def test_no_name_hides_a_folder() -> None:
    for name in softprompt.__all__:
        getattr(softprompt, name)
    parts = [part.name for part in pkgutil.iter_modules(softprompt.__path__)]
    assert {"train", "recipe", "prompt", "artifact"} <= {*parts}
    for name in parts:
        found = importlib.import_module(f"softprompt.{name}")
        assert getattr(softprompt, name) is found


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'softprompt' has no attribute 'trian'"):
        _ = softprompt.trian
    assert dir(softprompt) == sorted(softprompt.__all__)


@pytest.mark.filterwarnings("ignore::softprompt.errors.SoftpromptWarning")
def test_the_example_of_the_page_is_true(saved, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", softprompt.__doc__, re.DOTALL)[1]
    # A tiny backbone and two dozen rows stand in for the real ones.
    folder = saved("llama").as_posix()
    code = code.replace("builtin:smollm2-135m-instruct", folder)
    code = code.replace("...]", '{"text": "A bore.", "label": "negative"}] * 12')
    space: dict[str, object] = {}
    exec(compile(code, "the page", "exec"), space)  # noqa: S102  # our own docstring
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(
        re.match(r"(negative|positive) \{'negative': 0\.\d+, 'positive': ", li) for li in lines
    )
    assert (tmp_path / "sentiment" / "manifest.json").exists()
    assert space["model"].labels == ("negative", "positive")


def test_the_version_is_the_one_that_is_installed() -> None:
    from importlib.metadata import version

    from typer.testing import CliRunner

    from softprompt.cli import app

    assert softprompt.__version__ == version("softprompt")
    said = CliRunner().invoke(app, ["--version"]).output
    assert said == f"softprompt {softprompt.__version__}\n"


def test_it_says_that_it_is_typed() -> None:
    """PEP 561: type checkers read the annotations of a package that has this file."""
    assert (importlib.resources.files("softprompt") / "py.typed").read_text("utf-8") == ""


def test_the_log_is_silent_unless_somebody_listens() -> None:
    program = (
        "import logging, softprompt; logging.getLogger('softprompt.train').warning('unheard'); "
        "print(logging.getLogger('softprompt').handlers)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert (done.stdout.strip(), done.stderr) == ("[<NullHandler (NOTSET)>]", "")
