"""The documentation's site builds strictly, is complete, and loads no external resources."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urldefrag

import pytest

import softprompt

ROOT = Path(__file__).resolve().parents[2]
# Attributes with which a browser loads a resource at once; links in the text are not among them.
LOADING = {
    "script": {"src"},
    "img": {"src", "srcset"},
    "iframe": {"src"},
    "source": {"src", "srcset"},
    "video": {"src"},
    "audio": {"src"},
    "object": {"data"},
    "embed": {"src"},
    "use": {"href", "xlink:href"},
}
LOADING_RELATIONS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "modulepreload"}
CSS_RESOURCE = re.compile(r"@import\s+[\"']?([^\"';]+)|url\(\s*[\"']?([^\"')]+)")
EXTERNAL = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)


class PageReader(HTMLParser):
    """Collects what a page loads, what it links to, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.resources: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.navigation: list[str] = []
        self._in_navigation = 0
        self._in_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.resources += [values[name] for name in LOADING.get(tag, set()) & values.keys()]
        self.resources += css_resources(values.get("style", ""))
        if tag == "link" and LOADING_RELATIONS & set(values.get("rel", "").split()):
            self.resources.append(values["href"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
            if self._in_navigation:
                self.navigation.append(values["href"])
        if tag == "nav":
            self._in_navigation += 1
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_navigation -= tag == "nav"
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.resources += css_resources(data)


def css_resources(text: str) -> list[str]:
    return [first or second for first, second in CSS_RESOURCE.findall(text)]


def external_resources(folder: Path) -> list[str]:
    """External resources that the pages and style sheets of a site load."""
    loaded = {
        page: PageReader(page.read_text("utf-8")).resources for page in folder.rglob("*.html")
    }
    loaded |= {
        sheet: css_resources(sheet.read_text("utf-8", "replace"))
        for sheet in [*folder.rglob("*.css"), *folder.rglob("*.svg")]
    }
    return [
        f"{file.relative_to(folder)}: {resource}"
        for file, resources in loaded.items()
        for resource in resources
        if EXTERNAL.match(resource)
    ]


def dead_links(folder: Path) -> list[str]:
    """Links and resources of a site's pages that lead to no file or to no heading."""
    pages = {page: PageReader(page.read_text("utf-8")) for page in folder.rglob("*.html")}
    dead = []
    for page, reader in pages.items():
        if page.name == "404.html":
            continue  # its links begin at the server's root
        for link in [*reader.links, *reader.resources]:
            if re.match(r"[a-z]+:|//", link):
                continue
            name, anchor = urldefrag(unquote(link))
            goal = (page.parent / name.partition("?")[0]).resolve() if name else page
            anchors = pages[goal].anchors if goal in pages else set()
            if not goal.is_file() or (anchor and goal.suffix == ".html" and anchor not in anchors):
                dead.append(f"{page.relative_to(folder)}: {link}")
    return dead


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_site(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Build a site as `scripts/docs` does, without access to the network."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    closed = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    environment = {**os.environ, **closed, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        command, cwd=source, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("docs")
    (source / "src").symlink_to(ROOT / "src")
    (source / "mkdocs.yml").write_text((ROOT / "mkdocs.yml").read_text("utf-8"), "utf-8")
    load_script(ROOT / "scripts/site/pages.py").write_pages(source / "build" / "pages")
    done = build_site(source, source / "site")
    assert done.returncode == 0, done.stdout + done.stderr
    return source / "site"


def test_every_page_is_in_the_navigation(site: Path) -> None:
    start = PageReader((site / "index.html").read_text("utf-8"))
    listed = {urldefrag(link).url for link in start.navigation}
    pages = {page.relative_to(ROOT / "docs").with_suffix(".html") for page in markdown_pages()}
    assert {page.as_posix() for page in pages} - listed == set()


def markdown_pages() -> list[Path]:
    return sorted((ROOT / "docs").rglob("*.md"))


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    assert dead_links(site) == []


def test_no_external_resources_are_loaded(site: Path) -> None:
    assert external_resources(site) == []


def public_names() -> set[str]:
    """The names that the page of the API must show, each once, as users import it."""
    names = {f"softprompt.{name}" for name in softprompt.__all__}
    for package in ("analysis", "interop", "serve", "sklearn"):
        module = importlib.import_module(f"softprompt.{package}")
        others = set(module.__all__) - set(softprompt.__all__)
        names |= {f"{module.__name__}.{name}" for name in others}
    return names


def test_the_page_of_the_api_shows_the_public_names_and_no_others() -> None:
    page = (ROOT / "docs/reference/python.md").read_text("utf-8")
    shown = re.findall(r"^::: (\S+)$", page, re.MULTILINE)
    assert len(shown) == len(set(shown)), "a name is there twice"
    assert sorted(set(shown) - public_names()) == [], "these are not public"
    missing = sorted(public_names() - set(shown))
    assert missing == [], "add '::: NAME' to docs/reference/python.md"


def test_every_public_name_has_an_anchor(site: Path) -> None:
    page = PageReader((site / "reference/python.html").read_text("utf-8"))
    assert sorted(public_names() - page.anchors) == []


def test_the_search_index_has_every_page(site: Path) -> None:
    index = (site / "search/search_index.json").read_text("utf-8")
    pages = [page.relative_to(ROOT / "docs").with_suffix(".html") for page in markdown_pages()]
    assert [page.as_posix() for page in pages if f'"{page.as_posix()}"' not in index] == []


def test_every_method_has_a_picture_with_a_text_alternative() -> None:
    methods = importlib.import_module("softprompt.methods")
    for name in methods.METHODS:
        page = (ROOT / "docs/methods" / f"{name}.md").read_text("utf-8")
        pictures = re.findall(r"!\[([^\]]+)\]\(\.\./pictures/([\w-]+\.svg)\)", page)
        assert [picture for _, picture in pictures] == [f"{name}.svg"]
        assert len(pictures[0][0]) > 80
        assert (ROOT / "docs/pictures" / pictures[0][1]).is_file()


def test_the_pictures_are_what_their_script_draws(tmp_path: Path) -> None:
    load_script(ROOT / "scripts/site/pictures.py").write_pictures(tmp_path)
    drawn = {file.name: file.read_text("utf-8") for file in tmp_path.iterdir()}
    folder = ROOT / "docs/pictures"
    assert drawn == {file.name: file.read_text("utf-8") for file in folder.glob("*.svg")}


def test_links_out_of_the_documentation_become_pages(tmp_path: Path) -> None:
    pages = load_script(ROOT / "scripts/site/pages.py")
    pages.write_pages(tmp_path)
    text = (tmp_path / "systems/cloze-roberta.md").read_text("utf-8")
    assert "](../repository/examples/cloze-roberta/recipe.toml.md)" in text
    recipe = (ROOT / "examples/cloze-roberta/recipe.toml").read_text("utf-8")
    shown = tmp_path / "repository/examples/cloze-roberta/recipe.toml.md"
    assert recipe in shown.read_text("utf-8")


PLANTED_RESOURCES = [
    '<script src="https://x.y/z.js"></script>',
    '<link rel="stylesheet" href="//x.y/z.css">',
    '<img src="https://x.y/z.png" alt="">',
    "<style>@import 'https://x.y/z.css';</style>",
    '<p style="background: url(https://x.y/z.png)">a</p>',
]


@pytest.mark.parametrize("text", PLANTED_RESOURCES)
def test_the_guard_catches_an_external_resource(text: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(text)
    assert len(external_resources(tmp_path)) == 1


@pytest.mark.parametrize(
    "text", ['<a href="https://x.y">a</a>', '<img src="z.png" alt="">', "<style>a{}</style>"]
)
def test_the_guard_lets_links_and_own_files_pass(text: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(text)
    assert external_resources(tmp_path) == []


@pytest.mark.parametrize("text", ['<a href="absent.html">a</a>', '<a href="#absent">a</a>'])
def test_the_guard_catches_a_dead_link_of_the_site(text: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(text)
    assert len(dead_links(tmp_path)) == 1


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("[a](absent.md) [b](#absent)", ["not found among documentation files", "no such anchor"]),
        ("::: softprompt.absent", ["could not be found"]),
    ],
)
def test_the_build_stops_at_a_fault(text: str, messages: list[str], tmp_path: Path) -> None:
    configuration = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[0]
    (tmp_path / "mkdocs.yml").write_text(configuration, "utf-8")
    (tmp_path / "src").symlink_to(ROOT / "src")
    pages = tmp_path / "build/pages/assets"
    pages.mkdir(parents=True)
    (pages.parent / "index.md").write_text(f"# Page\n\n{text}\n", "utf-8")
    done = build_site(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert [part for part in messages if part not in done.stdout + done.stderr] == []
