"""Streams that are closed or full, and text from files that a terminal must not obey."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from softprompt.artifact import load_artifact, save_artifact
from softprompt.cli.console import print_json, print_status, report_errors
from softprompt.errors import DataError, escape_control_characters
from softprompt.train.display import ProgressDisplay
from softprompt.train.events import PhaseStarted, TrainingWarning

# Colours, the title of the window, a cleared screen, a line that is overwritten, and C1 codes.
EVIL = "\x1b[31mred\x1b]0;title\x07 \x1b[2J over\rwritten \x9b1m \x7f\x00\b"
MAIN = "from softprompt.cli import main; main()"


def has_control(text: str) -> bool:
    return any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text.replace("\n", "").replace("\t", ""))


def test_escapes_are_those_of_json():
    assert has_control(EVIL)
    shown = escape_control_characters(EVIL)
    assert not has_control(shown)
    assert json.loads(f'"{shown}"') == EVIL
    kept = "tabs\tlines\nñ 日本 \u202eé"
    assert escape_control_characters(kept) == kept


def test_a_name_that_is_not_utf8_can_be_printed():
    """Python reads its bytes as halves of characters, which no stream can encode."""
    shown = escape_control_characters(b"caf\xe9.toml".decode("utf-8", "surrogateescape"))
    assert shown.encode("utf-8") == b"caf\\udce9.toml"


def test_nothing_that_a_command_prints_reaches_the_terminal_raw(capsys):
    def command() -> None:
        print(f"label: {EVIL}")  # noqa: T201  # as a command does
        print_json({"label": EVIL})
        print_status(f"path: {EVIL}")
        msg = f"a message with {EVIL}"
        raise DataError(msg)

    with pytest.raises(typer.Exit):
        report_errors(command)()
    out, err = capsys.readouterr()
    assert not has_control(out)
    assert not has_control(err)
    assert err.count("\\u001b[31mred") == out.count("\\u001b[31mred") == 2
    assert json.loads(out.partition("\n")[2])["label"] == EVIL


def test_progress_shows_no_control_characters(capsys):
    display = ProgressDisplay(quiet=False)
    with display:
        display.show(PhaseStarted("reading", EVIL))
        display.show(TrainingWarning(1, EVIL))
    assert not has_control(capsys.readouterr().err)


def test_an_artifact_from_a_stranger_cannot_write_to_the_terminal(trained, tmp_path, run):
    artifact = load_artifact(trained.folder)
    manifest = artifact.manifest
    verbalizer = dict(zip([EVIL, "b"], [" good", " bad"], strict=True))
    changed = replace(
        manifest,
        softprompt=EVIL,
        labels=[*verbalizer],
        task={**manifest.task, "verbalizer": verbalizer},
        backbone={**manifest.backbone, "name": EVIL, "revision": EVIL, "model_type": EVIL},
        recipe={"method": {"name": EVIL, EVIL: EVIL}},
    )
    folder = save_artifact(replace(artifact, manifest=changed), tmp_path / f"a{EVIL[:5]}")
    for arguments in (["--no-backbone"], ["--no-backbone", "--json"], []):
        result = run("show", folder, *arguments)
        assert result.status == 0
        assert "\\u001b[31mred" in result.out
        assert not has_control(result.out)
        assert not has_control(result.err)
    result = run("predict", folder, "a film")
    assert result.status == 2
    assert not has_control(result.err)


def run_shell(command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the program in a shell, which closes or redirects its streams."""
    return subprocess.run(
        ["/bin/bash", "-c", command, "bash", sys.executable, "-c", MAIN, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"NO_COLOR": "1"},
    )


@pytest.mark.parametrize("name", ["predict", "show", "train"])
def test_a_closed_stdout_is_reported_before_anything_is_done(trained, tmp_path, name):
    arguments = {
        "predict": ["predict", trained.folder, "good"],
        "show": ["show", trained.folder, "--no-backbone"],
        "train": ["train", trained.home.recipe, "--output", tmp_path / "out"],
    }
    done = run_shell('"$@" >&-', *arguments[name])
    assert done.returncode == 2
    assert done.stderr == (
        "standard output is closed, so no result can be printed. Redirect it instead, to a file "
        "or to /dev/null.\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_closed_stdin_is_reported(trained):
    done = run_shell('"$@" <&-', "predict", trained.folder, "--input", "-")
    assert done.returncode == 2
    assert "standard input is closed, so - has no lines. Give a file, or pipe" in done.stderr


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-"])
def test_a_run_does_not_depend_on_what_reads_its_messages(trained, tmp_path, stderr):
    """Where nothing can be written to stderr, a run trains to the same numbers."""
    done = run_shell(f'"$@" {stderr}', "train", trained.home.recipe, "--output", tmp_path / "out")
    assert done.returncode == 0
    names = ("metrics.json", "artifact/prompt.safetensors")
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (trained.folder / name).read_bytes()
    assert "artifact" in done.stdout


@pytest.mark.usefixtures("draws")
def test_a_picture_that_is_missing_is_drawn_again(trained, tmp_path: Path, run):
    folder = tmp_path / "run"
    assert run("train", trained.home.recipe, "--output", folder).status == 0
    before = (folder / "curve.png").read_bytes()
    (folder / "curve.png").unlink()
    result = run("resume", folder)
    assert result.status == 0
    assert "is finished already" in result.err
    assert (folder / "curve.png").read_bytes() == before
