"""The application: its commands and its entry point. torch is imported by the commands alone."""

import io
import logging
import sys
from collections.abc import Callable
from importlib.metadata import version as version_of
from typing import Annotated

import typer

from softprompt.cli.check import check
from softprompt.cli.compare import compare
from softprompt.cli.evaluate import evaluate
from softprompt.cli.exporting import export
from softprompt.cli.find_lr import find_lr
from softprompt.cli.importing import import_
from softprompt.cli.init import init
from softprompt.cli.predict import predict
from softprompt.cli.pull import pull
from softprompt.cli.push import push
from softprompt.cli.resume import resume
from softprompt.cli.say import told
from softprompt.cli.show import show
from softprompt.cli.train import train

_EXAMPLES: dict[Callable[..., None], str] = {
    init: "softprompt init train.jsonl",
    check: "softprompt check recipe.toml --set train.epochs=3",
    train: "softprompt train recipe.toml --set train.learning_rate=0.003 --output runs/slow",
    resume: "softprompt resume runs/recipe",
    find_lr: "softprompt find-lr recipe.toml --share 0.05",
    compare: "softprompt compare recipe.toml --methods prompt-tuning,p-tuning-v2 --seeds 3",
    evaluate: "softprompt evaluate runs/recipe reviews.csv --json",
    predict: 'softprompt predict runs/recipe "Moving and funny." "Dull."',
    show: "softprompt show runs/recipe --attention",
    import_: "softprompt import peft adapters/mood --output mood --set task.labels=[no,yes]",
    export: "softprompt export peft runs/recipe --output adapters/mood",
    push: "softprompt push runs/recipe ada/sentiment --private",
    pull: "softprompt pull ada/sentiment --output sentiment",
}

# Plain text throughout: messages are read by people and by programs, in terminals and in logs.
app = typer.Typer(
    name="softprompt",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command, _example in _EXAMPLES.items():
    # `import` is a word of Python's own, so its function has another name.
    _name = _command.__name__.strip("_").replace("_", "-")
    app.command(_name, epilog=f"Example: {_example}")(told(_command))


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"softprompt {version_of('softprompt')}")
        raise typer.Exit


@app.callback(epilog="Begin with: softprompt init DATA")
def root(
    _version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_say_version, help="Say which it is."),
    ] = False,
) -> None:
    """Train, keep and use soft prompts for a frozen language model."""


def main() -> None:
    """Run the command line, and exit with its status."""
    for stream in (sys.stdout, sys.stderr):
        # JSON is UTF-8 whatever the locale; a half character in a message must not stop it.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    # It warns at every product that bf16 is cast to fp16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    app()
