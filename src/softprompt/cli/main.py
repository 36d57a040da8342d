"""The application: its commands and its entry point. torch is imported by the commands alone."""

import io
import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import version as version_of
from typing import Annotated

import typer

from softprompt.cli.commands.check import check
from softprompt.cli.commands.compare import compare, find_lr
from softprompt.cli.commands.evaluate import evaluate
from softprompt.cli.commands.explain import explain
from softprompt.cli.commands.fit import fit
from softprompt.cli.commands.hub import pull, push
from softprompt.cli.commands.init import init
from softprompt.cli.commands.interop import export, import_
from softprompt.cli.commands.predict import predict
from softprompt.cli.commands.prune import prune
from softprompt.cli.commands.recipe_schema import print_recipe_schema
from softprompt.cli.commands.registry import list_prompts, pin, publish, unpublish
from softprompt.cli.commands.serve import serve
from softprompt.cli.commands.show import show
from softprompt.cli.commands.train import resume, train
from softprompt.cli.console import DEBUG, check_streams, report_errors
from softprompt.cli.options import Command

_EXAMPLES: dict[Callable[..., None], str] = {
    fit: "softprompt fit reviews.csv",
    init: "softprompt init train.jsonl",
    check: "softprompt check recipe.toml --set train.epochs=3",
    print_recipe_schema: "softprompt recipe-schema > recipe.schema.json",
    train: "softprompt train recipe.toml --set train.learning_rate=0.003 --output runs/slow",
    resume: "softprompt resume runs/recipe",
    find_lr: "softprompt find-lr recipe.toml --search-fraction 0.05",
    compare: "softprompt compare recipe.toml --methods prompt-tuning,p-tuning-v2 --seeds 3",
    evaluate: "softprompt evaluate runs/recipe reviews.csv --json",
    predict: 'softprompt predict runs/recipe "Moving and funny." "Dull."',
    explain: 'softprompt explain runs/recipe "Moving and funny." --output why.html',
    prune: "softprompt prune runs/recipe --output short",
    show: "softprompt show runs/recipe --attention",
    import_: "softprompt import peft adapters/mood --output mood "
    """--set 'task.labels=["no", "yes"]'""",
    export: "softprompt export peft runs/recipe --output adapters/mood",
    push: "softprompt push runs/recipe ada/sentiment --private",
    pull: "softprompt pull ada/sentiment --output sentiment",
    serve: "softprompt serve runs/reviews runs/topics",
    publish: "softprompt publish runs/reviews reviews",
    unpublish: "softprompt unpublish reviews@2",
}
_REGISTRY_EXAMPLES: dict[str, tuple[Callable[..., None], str]] = {
    "list": (list_prompts, "softprompt registry list --registry prompts"),
    "pin": (pin, "softprompt registry pin reviews 2"),
}

# Plain text: messages are read by people and by programs, in terminals and in logs.
app = typer.Typer(
    name="softprompt",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command, _example in _EXAMPLES.items():
    # `import` is a keyword of Python, and a function begins with a verb.
    _name = _command.__name__.strip("_").removeprefix("print_").replace("_", "-")
    app.command(_name, cls=Command, epilog=f"Example: {_example}")(report_errors(_command))

registry = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="List the published prompts, or choose what a name means.",
)
app.add_typer(registry, name="registry", epilog="Example: softprompt registry list")
for _name, (_command, _example) in _REGISTRY_EXAMPLES.items():
    registry.command(_name, cls=Command, epilog=f"Example: {_example}")(report_errors(_command))


def _show_version(requested: bool) -> None:
    if requested:
        print(f"softprompt {version_of('softprompt')}")
        raise typer.Exit


@app.callback(epilog="Start with: softprompt fit DATA, or softprompt init DATA")
def configure(
    _version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version."),
    ] = False,
) -> None:
    """Train, store and apply soft prompts for a frozen language model."""


def main() -> None:
    """Run the command line, and exit with its status."""
    check_streams()
    for stream in (sys.stdout, sys.stderr):
        # JSON is UTF-8 whatever the locale; a lone surrogate in a message must not raise an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    if not os.environ.get(DEBUG):
        _silence_libraries()
    app()


def _silence_libraries() -> None:
    """Hide what other libraries log and draw, before they are imported; errors are still shown.

    A download from the Hub keeps its bar: the Hub's client decides about it at each call.
    """
    # Notices that a family runs without a fast kernel, or that its configuration is old.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Bars, such as those of converting a GGUF file or of making a data set.
    os.environ.setdefault("TQDM_DISABLE", "1")
    # bitsandbytes warns at every matrix product that bf16 is cast to fp16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
