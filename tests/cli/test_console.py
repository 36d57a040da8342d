"""The output of commands: exit status, streams, tables; help pages and misspelt words."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version

import pytest
import typer
import typer.main
from rich.cells import cell_len

from softprompt.cli import app
from softprompt.cli.console import (
    format_columns,
    format_confusion,
    format_fields,
    format_scores,
    print_status_now,
    report_errors,
)
from softprompt.errors import DataError, RecipeError
from softprompt.tasks.metrics import compute_classification_metrics, compute_confusion_matrix

COMMANDS = [
    "fit", "init", "check", "recipe-schema", "train", "resume", "find-lr", "compare", "evaluate",
    "predict", "explain", "prune", "show",
    "import", "export",
    "push", "pull",
    "serve", "publish", "unpublish", "registry",
]  # fmt: skip


def make_failing(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return report_errors(command)


STATUS = [
    (DataError("the fact"), 2, "the fact\n"),
    (RecipeError(["a", "b"]), 2, "2 faults in the recipe:\n  - a\n  - b\n"),
    (KeyboardInterrupt(), 1, "interrupted\n"),
    (FileNotFoundError(2, "No such file", "x/y"), 2, "x/y: No such file. Check that the path"),
    (OSError(28, "No space left on device"), 1, "No space left on device. Check that"),
    (KeyError("x"), 1, "internal error (a bug in softprompt): KeyError: 'x'\nPlease report"),
]


@pytest.mark.parametrize(("error", "status", "message"), STATUS)
def test_every_error_has_its_status_and_no_traceback(
    error: BaseException, status: int, message: str, capsys, monkeypatch
) -> None:
    with pytest.raises(typer.Exit) as exit_info:
        make_failing(error)()
    out, err = capsys.readouterr()
    assert (exit_info.value.exit_code, out) == (status, "")
    assert err.startswith(message)
    monkeypatch.setenv("SOFTPROMPT_DEBUG", "1")
    with pytest.raises(typer.Exit):
        make_failing(error)()
    assert "Traceback" in capsys.readouterr().err


def test_a_signal_handler_prints_although_the_stream_is_being_written(
    tmp_path, monkeypatch
) -> None:
    """Python refuses to write to a stream from within a write to it."""

    class Busy:
        def __init__(self, descriptor: int) -> None:
            self.fileno = lambda: descriptor

        def write(self, _text: str) -> None:
            raise RuntimeError

    with (tmp_path / "stderr").open("wb") as file:
        monkeypatch.setattr(sys, "stderr", Busy(file.fileno()))
        print_status_now("stopping")
    assert (tmp_path / "stderr").read_text("utf-8") == "stopping\n"


def test_errors_of_typer_are_raised_again() -> None:
    for error in (typer.Exit(5), typer.BadParameter("no")):
        with pytest.raises(type(error)):
            make_failing(error)()


def test_columns_line_up() -> None:
    text = format_columns([["a", "1", "22"], ["日本", "333", "4"]])
    assert text.splitlines() == ["a       1  22", "日本  333   4"]
    assert len({cell_len(line) for line in text.splitlines()}) == 1
    assert format_fields({"a": "1\n2", "long": "3"}) == "a     1\n      2\nlong  3"


@pytest.mark.parametrize("labels", [["ham", "spam"], ["spam", "ham"]])
def test_f1_is_named_by_its_label(labels: list[str]) -> None:
    """That of the second one, as it is computed: F1 of one label says nothing without its name."""
    truth, predicted = ["spam", "spam", "ham", "ham"], ["spam", "ham", "ham", "ham"]
    scores = compute_classification_metrics(truth, predicted, labels=labels)
    confusion = asdict(compute_confusion_matrix(truth, predicted, labels=labels))
    expected = {"ham": "0.8000", "spam": "0.6667"}[labels[1]]
    lines = [
        line.split() for line in format_scores({**scores, "confusion": confusion}).splitlines()
    ]
    assert ["f1", expected, "of", f"'{labels[1]}',", "the", "second", "label"] in lines


def test_scores_are_rounded_and_large_matrices_left_out() -> None:
    text = format_scores({"loss": 0.12346, "bleu": 12.346, "rows": 1234})
    assert text.splitlines() == ["loss  0.1235", "bleu   12.35", "rows   1,234"]
    labels = [f"l{i}" for i in range(21)]
    table = {"labels": labels, "predicted_labels": labels, "counts": [[0] * 21] * 21}
    assert format_confusion(table) == "confusion of 21 labels: see --json"


def test_the_commands() -> None:
    assert list(typer.main.get_command(app).commands) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_summary_and_an_example(command: str, run) -> None:
    page = run(command, "--help").out
    lines = [line.strip() for line in page.splitlines()]
    assert lines[0].startswith(f"Usage: softprompt {command}") or f" {command} " in lines[0]
    assert lines[2].endswith(".")
    assert lines[3] == ""
    assert any(line.startswith(f"Example: softprompt {command} ") for line in lines)
    assert not {*page} & set("╭│╰─")
    assert "\x1b[" not in page


def test_the_list_of_commands_is_not_cut_off(run) -> None:
    page = run("--help").out
    assert "..." not in page.split("Commands:")[1]


def test_misspelt_words_get_a_suggestion(run) -> None:
    assert run("trian", "recipe.toml").is_mistake("No such command 'trian'", "'train'")
    assert run("train", "recipe.toml", "--ouput", "x").is_mistake("--ouput", "--output")
    assert run("train").is_mistake("Missing argument", "RECIPE")
    assert run("predict", "x", "a", "--batch-size", "0").is_mistake(
        "--batch-size", "greater than or equal to 1"
    )


def test_the_version_is_printed(run) -> None:
    assert run("--version").out == f"softprompt {version('softprompt')}\n"


def test_help_imports_no_heavy_package() -> None:
    program = (
        "import sys\nfrom softprompt.cli import main\n"
        "sys.argv = ['softprompt', 'train', '--help']\n"
        "try:\n    main()\nexcept SystemExit as exit_info:\n    assert exit_info.code == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'accelerate', 'sklearn', 'numpy'}\n"
        "heavy |= {'huggingface_hub'}\n"
        "print(sorted(heavy & {*sys.modules}), file=sys.stderr)"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


OTHER_LIBRARIES = """
import sys
from softprompt.cli import main
sys.argv = ["softprompt", "--version"]
try:
    main()
except SystemExit:
    pass
from huggingface_hub.utils import tqdm as download
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging
logger = transformers_logging.get_logger("transformers.models.mamba.modeling_mamba")
logger.warning_once("The fast path is not available")
list(tqdm([1], desc="Converting and de-quantizing GGUF tensors"))
logger.error("a fault")
download(desc="model.safetensors", disable=False).close()
"""


def run_other_libraries(**environment: str) -> str:
    command = [sys.executable, "-c", OTHER_LIBRARIES]
    ours = {"TRANSFORMERS_VERBOSITY", "TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"}
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    environment = {**inherited, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stderr


def test_other_libraries_do_not_talk_on_the_terminal() -> None:
    quiet = run_other_libraries()
    assert "fast path" not in quiet
    assert "GGUF" not in quiet
    assert "a fault" in quiet
    assert "model.safetensors" in quiet  # a download from the Hub is long, and keeps its bar
    everything = run_other_libraries(SOFTPROMPT_DEBUG="1")
    assert all(word in everything for word in ("fast path", "GGUF", "a fault"))
    assert "fast path" in run_other_libraries(TRANSFORMERS_VERBOSITY="warning")


def test_python_can_run_it_as_a_module() -> None:
    command = [sys.executable, "-m", "softprompt", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"softprompt {version('softprompt')}\n"
