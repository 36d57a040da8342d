"""What the documents name exists: links, names, paths, options, tests; and no machine's paths."""

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from support.reviews import make_reviews
from support.text import read_documents

FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
HEADING = re.compile(r"^#+\s+(.*?)\s*$", re.MULTILINE)
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
# Folders that exist on one machine only; written in pieces so that this file does not name them.
MACHINE_PATH = re.compile(r"(?<![\w.~}-])/(?:wo" + r"rk|tm" + r"p|ho" + r"me|ro" + r"ot)/\w")
BINARY = {".png", ".safetensors", ".parquet", ".gz", ".bz2", ".npz", ".ico"}

# A name of the package, a path of the checkout, and a test, perhaps with its file.
DOTTED_NAME = re.compile(r"(?<![\w./-])softprompt(?:\.[A-Za-z_]\w*)+")
OWN_PATH = re.compile(r"(?<![\w./-])(?:src|tests|docs|scripts|benchmarks|examples)/[\w./*-]*[\w/*]")
TEST_NAME = re.compile(r"`(test_\w+)`(?:\s+in\s+`(tests/[\w/]+\.py)`)?")
CODE_BLOCK = re.compile(r"^(`{3,})(\w+)\n(.*?)^\1", re.MULTILINE | re.DOTALL)
SHELLS = {"sh", "console"}
INLINE_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def documents(root: Path) -> list[Path]:
    return [root / name for name in read_documents(root)]


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


def has_name(dotted: str) -> bool:
    """Whether a dotted name is a module, something in one, or an attribute or field of that."""
    module, *names = dotted.split(".")
    found: Any = importlib.import_module(module)
    for name in names:
        fields = getattr(found, "__annotations__", {}) | getattr(found, "model_fields", {})
        if hasattr(found, name):
            found = getattr(found, name)
        elif inspect.ismodule(found) and importlib.util.find_spec(f"{found.__name__}.{name}"):
            found = importlib.import_module(f"{found.__name__}.{name}")
        else:
            return isinstance(found, type) and name in fields
    return True


def name_faults(page: str, text: str, *, root: Path) -> list[str]:
    """Names of the package, paths of the checkout and tests that do not exist."""
    names = [name for name in DOTTED_NAME.findall(text) if not has_name(name)]
    paths = [path for path in OWN_PATH.findall(text) if not list(root.glob(path))]
    tests = missing_tests(text, root=root)
    return [f"{page}: there is no {found}" for found in dict.fromkeys([*names, *paths, *tests])]


def missing_tests(text: str, *, root: Path) -> Iterator[str]:
    """Tests that a text names and that do not exist, or not in the file that it names."""
    for name, path in TEST_NAME.findall(text):
        files = [root / path] if path else (root / "tests").rglob("test_*.py")
        if not any(f"def {name}(" in file.read_text("utf-8") for file in files if file.exists()):
            yield f"{name} in {path}" if path else name


def python_faults(page: str, text: str) -> Iterator[str]:
    """Python that cannot be read, or that calls a public name with an argument that it lacks."""
    for _, language, code in CODE_BLOCK.findall(text):
        if language != "python":
            continue
        try:
            tree = ast.parse(textwrap.dedent(code))
        except SyntaxError as error:
            yield f"{page}: {error}"
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("softprompt."):
                yield from call_faults(page, node)


def call_faults(page: str, call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    found: Any = importlib.import_module("softprompt")
    if not has_name(name):
        return  # `name_faults` reports it
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    try:
        inspect.signature(found).bind(*call.args, **{k.arg: k for k in call.keywords if k.arg})
    except TypeError as error:
        yield f"{page}: {name}: {error}"


def iterate_commands(text: str) -> Iterator[list[str]]:
    """The words of each command of ours in blocks of shell code and in inline code."""
    blocks = [code for _, language, code in CODE_BLOCK.findall(text) if language in SHELLS]
    lines = [line for code in blocks for line in code.replace("\\\n", " ").splitlines()]
    for line in [*lines, *INLINE_CODE.findall(FENCE.sub("", text))]:
        name, _, rest = re.sub(r"\s#\s.*|^\$ ", "", line).strip().partition(" ")
        if name == "softprompt" and rest:
            yield rest.replace("[", " ").split()


def option_faults(page: str, text: str) -> Iterator[str]:
    """Commands that do not exist, and options that their commands do not have."""
    for name, *words in iterate_commands(text):
        is_option = name.startswith("-")
        command = read_cli() if is_option else read_cli().commands.get(name)
        if command is None:
            yield f"{page}: there is no command {name!r}"
            continue
        group = read_cli().commands.get(name)
        if words and isinstance(group, typer.core.TyperGroup):
            command = group.commands.get(words[0])
        if command is None:
            yield f"{page}: there is no command '{name} {words[0]}'"
            continue
        known = {"--help"} | {option for part in command.params for option in part.opts}
        matches = [re.match(r"--[a-z][a-z-]*", word) for word in [name, *words]]
        given = [match[0] for match in matches if match]
        yield from (f"{page}: {name} has no {option}" for option in given if option not in known)


def read_cli() -> Any:
    """The command line: its commands by name, each with its parameters."""
    return typer.main.get_command(importlib.import_module("softprompt.cli").app)


def test_every_name_and_path_exists(root: Path) -> None:
    pages = read_documents(root).items()
    faults = [fault for page, text in pages for fault in name_faults(page, text, root=root)]
    assert not faults, "\n".join(faults)


def test_python_in_documents_can_be_called(root: Path) -> None:
    pages = read_documents(root).items()
    faults = [fault for page, text in pages for fault in python_faults(page, text)]
    assert not faults, "\n".join(faults)


def test_every_command_and_option_exists(root: Path) -> None:
    pages = read_documents(root).items()
    assert sum(len(list(iterate_commands(text))) for _, text in pages) > 40  # some are found
    faults = [fault for page, text in pages for fault in option_faults(page, text)]
    assert not faults, "\n".join(faults)


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
    commands = read_cli().commands
    page = (root / "docs/reference/cli.md").read_text("utf-8")
    assert commands
    assert [name for name in commands if not re.search(rf"softprompt {name}\b", page)] == []


def test_every_method_has_a_page(root: Path) -> None:
    methods = importlib.import_module("softprompt.methods")
    pages = {page.stem for page in (root / "docs/methods").glob("*.md")}
    assert {*methods.METHODS} == pages - {"index"}


def guarantee_faults(name: str, source: str, *, last: int) -> list[str]:
    """Guarantees that a test refers to and that are not in the list of the documentation."""
    groups = re.findall(r"\b(?:Guarantee|Proof)s? ([\d, and]*\d)", source)
    numbers = [int(number) for group in groups for number in re.findall(r"\d+", group)]
    faults = [f"{name}: guarantee {n} is not in the list" for n in numbers if not 0 < n <= last]
    proofs = re.findall(r"\bProofs? \d+", source)
    return faults + [f"{name}: {proof}; the documentation calls it a guarantee" for proof in proofs]


def test_every_guarantee_of_a_test_is_in_the_list(root: Path) -> None:
    page = (root / "docs/explanation/how-it-works.md").read_text("utf-8")
    listed = re.findall(r"^(\d+)\. ", page.partition("## Guarantees")[2], re.MULTILINE)
    assert listed == [str(number + 1) for number in range(len(listed))]
    assert listed
    tests = {file.name: file.read_text("utf-8") for file in (root / "tests").rglob("test_*.py")}
    del tests[Path(__file__).name]
    faults = [f for n, text in tests.items() for f in guarantee_faults(n, text, last=len(listed))]
    assert not faults, "\n".join(faults)


def test_the_guard_catches_a_guarantee_without_a_text() -> None:
    assert guarantee_faults("a", "Guarantees 2 and 13: x", last=12) == [
        "a: guarantee 13 is not in the list"
    ]
    assert guarantee_faults("a", "Proof 4: x", last=12) == [
        "a: Proof 4; the documentation calls it a guarantee"
    ]
    assert guarantee_faults("a", "Guarantee 12, from files alone.", last=12) == []


def test_every_example_in_a_docstring_is_true(
    sources: dict[str, str], backbone, tmp_path: Path, monkeypatch
) -> None:
    """In a folder of their own, with ``backbone``, ``encoder`` and ``rows`` to work with."""
    monkeypatch.chdir(tmp_path)
    given = {"backbone": backbone("llama"), "encoder": backbone("bert")}
    for name in (name for name, source in sources.items() if ">>> " in source):
        names = given | {"rows": make_reviews(8, seed=0)}
        result = doctest.testmod(importlib.import_module(name), extraglobs=names)
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


@pytest.mark.parametrize(
    "absent",
    [
        "softprompt.train.tune",
        "softprompt.PromptModel.open",
        "softprompt.no_such_name",
        "tests/evaluate/test_model.py",
        "src/softprompt/initialise.py",
        "docs/reference/absent.md",
        "test_absent_as_it_is",
    ],
)
def test_the_guard_catches_an_absent_name(absent: str, root: Path) -> None:
    assert name_faults("a.md", f"see `{absent}`.", root=root) == [f"a.md: there is no {absent}"]


def test_the_guard_catches_a_test_in_another_file(root: Path) -> None:
    name, here, other = "test_the_guard_lets_names_pass", "test_docs.py", "test_english.py"
    text = f"`{name}` in\n`tests/architecture/{{}}`"
    assert name_faults("a.md", text.format(here), root=root) == []
    assert name_faults("a.md", text.format(other), root=root) == [
        f"a.md: there is no {name} in tests/architecture/{other}"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "`softprompt.PromptModel.predict`, `softprompt.inference.model`, softprompt.Step.loss.",
        "`tests/architecture`, `tests/support/*.py` and src/softprompt/py.typed.",
        "`test_the_guard_lets_names_pass` and `test_every_name_and_path_exists`.",
        "https://x.y/docs/absent.md, runs/docs/absent, softprompt.",
    ],
)
def test_the_guard_lets_names_pass(text: str, root: Path) -> None:
    assert name_faults("a.md", text, root=root) == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("softprompt.fit(a, b, c, validate=0)", "unexpected keyword argument 'validate'"),
        ("softprompt.PromptModel.from_pretrained()", "missing a required argument"),
        ("for x in y", "expected ':'"),
    ],
)
def test_the_guard_catches_a_wrong_call(code: str, message: str) -> None:
    found = list(python_faults("a.md", f"```python\n{code}\n```\n"))
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("softprompt teach a.toml", "no command 'teach'"),
        ("$ softprompt train a.toml --speed 3", "train has no --speed"),
        ("softprompt train a.toml \\\n  --epochs 3", "train has no --epochs"),
    ],
)
def test_the_guard_catches_a_wrong_command(line: str, message: str) -> None:
    found = [*option_faults("a", f"```sh\n{line}\n```\n")]
    assert [message in fault for fault in found] == [True]


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
