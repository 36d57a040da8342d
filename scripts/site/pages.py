"""Lay out the pages of the documentation's site in build/pages.

The pages of docs/ link to other files of the repository (the changelog, recipes, results of
benchmarks), so that the links work in the repository. The site includes these files below
``repository/``: Markdown as a page, another text as a page that shows it, pictures and HTML
unchanged, a folder as a list of its files.
"""

import os
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = ROOT / "build" / "pages"
# Code is matched first, because it contains no links. A link has three parts: the text before the
# target, the target, and the rest.
PIECES = re.compile(
    r"^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)|(?P<ticks>`+).+?(?P=ticks)"
    r"|(?P<open>!?\[[^\]]*\]\(<?)(?P<target>[^)\s>]+)(?P<close>[^)]*\))",
    re.MULTILINE | re.DOTALL,
)
EXTERNAL = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
LANGUAGES = {".toml": "toml", ".py": "python", ".json": "json"}
COPIED = {".html", ".png", ".svg"}


def find_linked_files(page: Path) -> list[Path]:
    """The files and folders of the repository that a Markdown file links to."""
    links = [match["target"] for match in PIECES.finditer(page.read_text("utf-8"))]
    targets = [target for link in links if link and (target := _resolve(page, link))]
    return [target for target in targets if target.is_relative_to(ROOT)]


def collect_files() -> list[Path]:
    """All files of docs/, and those outside it that they link to, directly or through others."""
    files = dict.fromkeys(sorted(path for path in DOCS.rglob("*") if _is_page_or_asset(path)))
    queue = list(files)
    while queue:
        file = queue.pop(0)
        for target in find_linked_files(file) if file.suffix == ".md" else []:
            if target not in files:
                files[target] = None
                queue.append(target)
    return list(files)


def get_site_path(file: Path) -> Path:
    """The path of a repository's file among the pages of the site."""
    if file.is_relative_to(DOCS):
        return file.relative_to(DOCS)
    place = "repository" / file.relative_to(ROOT)
    if file.is_dir():
        return place / "index.md"
    return place if file.suffix in {".md", *COPIED} else place.with_name(f"{place.name}.md")


def render_page(file: Path) -> str:
    """The Markdown of a page, with links to pages of the site."""
    if file.is_dir():
        names = sorted(child.name for child in file.iterdir() if not child.name.startswith("__"))
        return _wrap(file, "".join(f"- `{name}`\n" for name in names))
    text = file.read_text("utf-8")
    if file.suffix != ".md":
        language = LANGUAGES.get(file.suffix, "text")
        return _wrap(file, f"````{language}\n{text}````\n")
    return PIECES.sub(lambda match: _rewrite_link(file, match), text)


def write_pages(folder: Path = PAGES) -> None:
    """Write all pages and pictures of the site into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for file in collect_files():
        place = folder / get_site_path(file)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.suffix == ".md":
            place.write_text(render_page(file), encoding="utf-8")
        else:
            shutil.copyfile(file, place)


def _is_page_or_asset(path: Path) -> bool:
    return path.is_file() and path.suffix in {".md", ".png", ".svg", ".css", ".js"}


def _resolve(page: Path, link: str) -> Path | None:
    """The file or folder that a relative link leads to; None for other links."""
    name = link.partition("#")[0]
    if not name or EXTERNAL.match(link):
        return None
    target = Path(os.path.normpath(page.parent / name))
    return target if target.exists() else None


def _rewrite_link(page: Path, match: re.Match[str]) -> str:
    target = _resolve(page, match["target"]) if match["target"] else None
    if target is None:
        return match[0]
    anchor = match["target"].partition("#")[1:]
    link = os.path.relpath(get_site_path(target), get_site_path(page).parent)
    return "".join([match["open"], Path(link).as_posix(), *anchor, match["close"]])


def _wrap(file: Path, body: str) -> str:
    """A page that shows a file or a folder; the search excludes it."""
    name = file.relative_to(ROOT).as_posix()
    return f"---\nsearch:\n  exclude: true\n---\n\n# `{name}`\n\n{body}"


if __name__ == "__main__":
    write_pages(*map(Path, sys.argv[1:]))
