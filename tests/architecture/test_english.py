"""Texts are in plain standard English: a list finds phrases that readers do not understand.

The list is ``phrases.toml``; each entry has its plain wording, which a failing test prints.
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import typer.main

from support.text import flatten, iterate_prose, read_documents, read_scripts


@dataclass(frozen=True)
class Phrase:
    """A phrase to be replaced."""

    find: re.Pattern[str]
    write: str
    example: str
    fine: tuple[str, ...] = ()


LIST = tomllib.loads(Path(__file__).with_name("phrases.toml").read_text("utf-8"))
PHRASES = [
    Phrase(
        re.compile(entry["find"], re.IGNORECASE),
        entry["write"],
        entry["example"],
        tuple(entry.get("fine", ())),
    )
    for entry in LIST["phrase"]
]


def phrase_faults(name: str, text: str, *, first_line: int = 1) -> Iterator[str]:
    """The phrases of the list that occur in a text."""
    flat, lines = flatten(text, first_line=first_line)
    for phrase in PHRASES:
        for match in phrase.find.finditer(flat):
            yield f"{name}:{lines[match.start()]}: {match.group()!r}; write: {phrase.write}"


def prose_faults(name: str, source: str) -> Iterator[str]:
    """The phrases in the comments and strings of a module."""
    for line, text in iterate_prose(source):
        yield from phrase_faults(name, text, first_line=line)


def iterate_help(command: click.Command, name: str) -> Iterator[tuple[str, str]]:
    """The help texts of a command, of its options and of the commands under it."""
    yield name, command.help or ""
    for parameter in command.params:
        yield f"{name} {parameter.name}", str(vars(parameter).get("help") or "")
    for sub, other in getattr(command, "commands", {}).items():
        yield from iterate_help(other, f"{name} {sub}")


def test_documents_are_in_plain_english(root: Path) -> None:
    pages = read_documents(root)
    faults = [fault for name, text in pages.items() for fault in phrase_faults(name, text)]
    assert not faults, "\n".join(faults)


def test_code_is_in_plain_english(sources: dict[str, str]) -> None:
    faults = [fault for name, source in sources.items() for fault in prose_faults(name, source)]
    assert not faults, "\n".join(faults)


def test_scripts_and_examples_are_in_plain_english(root: Path) -> None:
    scripts = read_scripts(root)
    assert {"benchmarks/tables.py", "examples/demo.toml", "scripts/test"} <= {*scripts}
    faults = [
        fault
        for name, text in scripts.items()
        for fault in (prose_faults if name.endswith(".py") else phrase_faults)(name, text)
    ]
    assert not faults, "\n".join(faults)


def test_help_is_in_plain_english() -> None:
    from softprompt.cli import app

    texts = list(iterate_help(typer.main.get_command(app), "softprompt"))
    assert len([text for _, text in texts if text]) > 50  # that they are read at all
    faults = [fault for name, text in texts for fault in phrase_faults(name, text)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("phrase", PHRASES, ids=lambda phrase: phrase.example)
def test_the_guard_catches(phrase: Phrase) -> None:
    wrapped = phrase.example.replace(" ", "\n    ", 1)
    for text in (phrase.example, phrase.example.capitalize(), wrapped):
        assert any(phrase.write in fault for fault in phrase_faults("page.md", text)), text
    assert phrase.find.search(phrase.example)
    for fine in phrase.fine:
        assert not phrase.find.search(fine)


@pytest.mark.parametrize("text", LIST["fine"])
def test_the_guard_lets_good_english_pass(text: str) -> None:
    assert list(phrase_faults("page.md", text)) == []


def test_no_phrase_is_replaced_by_another_of_the_list() -> None:
    faults = [fault for phrase in PHRASES for fault in phrase_faults("phrases.toml", phrase.write)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("# a full disk is\n# told", 1),
        ("x = 1\n\n# first\n# a full disk is told", 4),
        ("def f():\n    '''A full disk.\n\n    It is told.\n    '''", 4),
        ("msg = (\n    'a full disk is '\n    f'told{x}'\n)", 2),
        ("msg = f'a full disk is told {x}'", 1),
    ],
)
def test_the_guard_reads_comments_and_strings(source: str, line: int) -> None:
    faults = list(prose_faults("a", source))
    assert faults
    assert all(fault.startswith(f"a:{line}: ") for fault in faults)


@pytest.mark.parametrize(
    "source",
    [
        "is_told = alike(likewise)",
        "x = 'it is'\ny = 'told'",
        "x = ('it is', 'told')",
        "# is\n\n# told",
    ],
)
def test_the_guard_reads_no_code(source: str) -> None:
    assert list(prose_faults("a", source)) == []
