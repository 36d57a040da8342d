"""What the documents say is there: links, commands, methods, examples; and no machine's paths."""

import doctest
import importlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
HEADING = re.compile(r"^#+\s+(.*?)\s*$", re.MULTILINE)
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
# Folders that exist on one machine only; written in pieces so that this file does not name them.
MACHINE_PATH = re.compile(r"(?<![\w.~}-])/(?:wo" + r"rk|tm" + r"p|ho" + r"me|ro" + r"ot)/\w")
BINARY = {".png", ".safetensors", ".parquet", ".gz", ".bz2", ".npz", ".ico"}


def documents(root: Path) -> list[Path]:
    return [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))]


def anchors(text: str) -> set[str]:
    """The names that a page's headings can be linked by."""
    titles = HEADING.findall(FENCE.sub("", text))
    plain = (re.sub(r"[^\w\s-]", "", title).lower() for title in titles)
    return {re.sub(r"\s", "-", title) for title in plain}


def link_faults(page: Path) -> Iterator[str]:
    """Relative links of a page that lead nowhere."""
    for link in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        if ELSEWHERE.match(link):
            continue
        name, _, anchor = link.partition("#")
        goal = page.parent / name if name else page
        if not goal.exists():
            yield f"{page.name}: {link} leads to no file"
        elif anchor and goal.suffix == ".md" and anchor not in anchors(goal.read_text("utf-8")):
            yield f"{page.name}: {link} leads to no heading"


def tracked(root: Path) -> list[Path]:
    """The text files of the checkout that are, or are about to be, in version control."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    files = [root / name for name in done.stdout.splitlines()]
    return [file for file in files if file.is_file() and file.suffix not in BINARY]


def path_faults(name: str, text: str) -> list[str]:
    """Lines that name a folder of somebody's machine."""
    lines = enumerate(text.splitlines(), 1)
    return [f"{name}:{number}: {line}" for number, line in lines if MACHINE_PATH.search(line)]


def test_every_link_leads_somewhere(root: Path) -> None:
    found = [fault for page in documents(root) for fault in link_faults(page)]
    assert not found, "\n".join(found)


def test_every_page_is_linked_from_another(root: Path) -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in documents(root)
        for link in LINK.findall(FENCE.sub("", page.read_text("utf-8")))
        if not ELSEWHERE.match(link)
    }
    assert {page.resolve() for page in (root / "docs").rglob("*.md")} <= linked


def test_every_command_is_in_the_reference(root: Path) -> None:
    cli = importlib.import_module("softprompt.cli")
    commands = typer.main.get_command(cli.app).commands
    page = (root / "docs/reference/cli.md").read_text("utf-8")
    assert commands
    assert [name for name in commands if not re.search(rf"softprompt {name}\b", page)] == []


def test_every_method_has_a_page(root: Path) -> None:
    methods = importlib.import_module("softprompt.methods")
    pages = {page.stem for page in (root / "docs/methods").glob("*.md")}
    assert {*methods.METHODS} == pages - {"index"}


def test_every_example_in_a_docstring_is_true(sources: dict[str, str]) -> None:
    for name in (name for name, source in sources.items() if ">>> " in source):
        result = doctest.testmod(importlib.import_module(name))
        assert result.attempted > 0, name
        assert result.failed == 0, name


def test_no_file_names_a_folder_of_a_machine(root: Path) -> None:
    names = [(file, str(file.relative_to(root))) for file in tracked(root)]
    found = [
        f for file, name in names for f in path_faults(name, file.read_text("utf-8", "replace"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a](absent.md)", "leads to no file"),
        ("![a](absent.png 'title')", "leads to no file"),
        ("[a](page.md#nowhere)", "leads to no heading"),
        ("# Here\n[a](#there)", "leads to no heading"),
    ],
)
def test_the_guard_catches_a_dead_link(text: str, message: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    found = list(link_faults(page))
    assert len(found) == 1
    assert message in found[0]


def test_the_guard_lets_good_links_pass(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Good defaults, and why\n[a](page.md) [b](#good-defaults-and-why) [c](https://x.y/z.md)\n"
        "```\n[d](in-code.md)\n```\n"
    )
    assert list(link_faults(page)) == []


@pytest.mark.parametrize("folder", ["wo" + "rk", "tm" + "p", "ho" + "me", "ro" + "ot"])
def test_the_guard_catches_a_machine_path(folder: str) -> None:
    assert path_faults("a.md", f"see\ncd /{folder}/main") == [f"a.md:2: cd /{folder}/main"]


@pytest.mark.parametrize("text", ["data/work/x", "https://x.y/home/a", "$HOME/tmp/x", "~/work/x"])
def test_the_guard_lets_other_paths_pass(text: str) -> None:
    assert path_faults("a.md", text) == []
