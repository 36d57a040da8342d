"""Commands with odd arguments and odd input: never a traceback, never "failed" for a mistake."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Literal

import click
from judge import require
from recipes import ODD_SETTINGS
from tiny import make_rows, train, write_csv
from trials import Given, Kind, Trial
from typer.testing import CliRunner

from softprompt.cli import app, console
from softprompt.cli.console import FAILED, MISTAKE

ODD_PATHS = (
    *(
        "",
        " ",
        ".",
        "..",
        "/",
        "~",
        "~nosuch",
        "~nosuch/x.csv",
        "nowhere",
        "nowhere/at/all",
        "/dev/zero",
    ),
    *(
        "/dev/null",
        "/proc/self/environ",
        "caf\udce9.csv",
        "a\nb",
        "\x1b[31mred",
        "x" * 5000,
        "a:b[c]",
    ),
    *(
        "http://x/y.csv",
        "builtin:x",
        "builtin:",
        "owner/name",
        "owner/name@x",
        "-x",
        "--",
        "rows.csv[x]",
    ),
    *(_OWN := ("run", "run/artifact", "run/recipe.toml", "rows.csv", "llama", "run/metrics.json")),
)
ODD_LINES = (
    *(
        b"",
        b"\n",
        b"\xff\xfe",
        b"\x00",
        b"{",
        b"[" * 5000,
        b'{"text": "x"}',
        b'{"text": 1}',
        b"null",
    ),
    *(
        b'{"text": ' + b"9" * 5000 + b"}",
        b'{"text": "\\ud800"}',
        b'{"text": {}}',
        b"good\xe9",
        b"x" * 200_000,
    ),
    *(
        b'{"text": "a", "text": "b"}',
        b'{"x": "a"}',
        b"\xef\xbb\xbfgood",
        b"a\r\nb",
        b'"text"',
        b"NaN",
    ),
)


Outcome = Literal["refused", "answered"]


def list_kinds() -> list[Kind]:
    """All commands that neither train for long nor need a network."""
    return [Kind("command", 600, _prepare)]


def run_command(arguments: Sequence[str], lines: bytes | None = None) -> Outcome:
    """Run a command in this process: answered, or refused as a mistake in words."""
    console._describe_bug = _raise  # noqa: SLF001  # what the last resort of a command catches
    result = CliRunner().invoke(app, list(arguments), input=lines)
    error = result.exception
    if error is not None and not isinstance(error, SystemExit):
        raise error
    if result.exit_code == FAILED:
        raise click.ClickException(result.stderr[-300:])
    require("Traceback" not in result.stderr, result.stderr[-300:])
    require("\x1b" not in result.stderr + result.stdout, "an escape sequence on the terminal")
    if result.exit_code == MISTAKE:
        require(bool(result.stderr.strip()), "a mistake without words")
        return "refused"
    return "answered"


def _raise(error: Exception) -> str:
    raise error


def _prepare(place: Path) -> Trial:
    train(place, "vectors")
    (place / "run-vectors").rename(place / "run")
    write_csv(place / "other.csv", make_rows(4))

    def trial(given: Given) -> Outcome:
        chance, here = given.random, given.folder / "here"
        shutil.copytree(place, here, ignore=shutil.ignore_patterns("input"))
        arguments, lines = _choose(chance, here)
        given.damage = f"{arguments} {lines[:60] if lines else ''!r}".replace(str(here), "HERE")
        return run_command(arguments, lines)

    return trial


def _choose(chance: Random, here: Path) -> tuple[list[str], bytes | None]:
    """A command with its arguments, and what it reads from stdin."""

    def path() -> str:
        name = chance.choice(ODD_PATHS)
        return str(here / name) if name in _OWN else name

    def change() -> str:
        section = chance.choice(("train", "backbone", "data", "task", "method", "cache"))
        keys = (
            "device",
            "name",
            "epochs",
            "train",
            "template",
            "learning_rate",
            "disk_gb",
            "dtype",
        )
        value = chance.choice((*map(str, filter(_is_short, ODD_SETTINGS)), *ODD_PATHS))
        return f"{section}.{chance.choice(keys)}={value}"

    run, rows, recipe = (str(here / name) for name in ("run", "rows.csv", "run/recipe.toml"))
    output = str(here / chance.choice(("out", "rows.csv/out", "caf\udce9")))
    odd = path()
    commands: list[tuple[list[str], bytes | None]] = [
        (["init", odd, "--backbone", str(here / "llama"), "--output", f"{output}.toml"], None),
        (["init", rows, "--backbone", odd, "--output", f"{output}.toml"], None),
        (["check", odd], None),
        (["check", recipe, "--set", change()], None),
        (
            ["train", recipe, "--set", change(), "--set", "train.max_steps=2", "--output", output],
            None,
        ),
        (["train", odd, "--output", output], None),
        (["resume", odd], None),
        (["predict", odd, "good"], None),
        (["predict", run, chance.choice(("\udce9", "\x00", "", "{text}", "x" * 50_000))], None),
        (["predict", run, "--input", odd], None),
        (["predict", run, "--input", "-"], chance.choice(ODD_LINES)),
        (["predict", run, "good", "--backbone", odd], None),
        (["evaluate", run, odd], None),
        (["evaluate", run, str(here / "other.csv"), "--predictions", f"{output}.csv"], None),
        (["show", odd], None),
        (["show", odd, "--no-backbone"], None),
        (["import", chance.choice(("peft", "npy", "x")), odd, "--output", output], None),
        (["export", chance.choice(("npy", "safetensors", "x")), odd, "--output", output], None),
    ]
    return chance.choice(commands)


def _is_short(value: object) -> bool:
    return not isinstance(value, int) or abs(value) < 10**30
