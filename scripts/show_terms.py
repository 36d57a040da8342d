"""Print the terms of use inside a wheel as text: show_terms.py WHEEL.

They are a saved web page, of which the part from its date on is shown.
"""

import sys
import textwrap
import zipfile
from html.parser import HTMLParser

_BLOCKS = {"p", "li", "h1", "h2", "h3", "ol", "ul", "div"}
_HIDDEN = {"style", "script", "devsite-toc", "template"}


class ArticleReader(HTMLParser):
    """Collects the paragraphs of a page's article."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self._text = ""
        self._depth = self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a paragraph, or what is not shown."""
        del attrs
        self._end_paragraph(tag)
        self._depth += tag == "article"
        self._hidden += tag in _HIDDEN

    def handle_endtag(self, tag: str) -> None:
        """End a paragraph, or what is not shown."""
        self._end_paragraph(tag)
        self._depth -= tag == "article"
        self._hidden -= tag in _HIDDEN

    def handle_data(self, data: str) -> None:
        """Keep the text of the article."""
        if self._depth > 0 and not self._hidden:
            self._text += data

    def _end_paragraph(self, tag: str) -> None:
        if tag in _BLOCKS:
            if text := " ".join(self._text.split()):
                self.paragraphs.append(text)
            self._text = ""


def drop_menus(paragraphs: list[str]) -> list[str]:
    """The paragraphs from the one with the date on; all if there is none."""
    dated = [at for at, text in enumerate(paragraphs) if text.startswith("Last modified")]
    return paragraphs[dated[0] if dated else 0 :]


def main() -> None:
    """Print every page of terms in the wheel."""
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        pages = [name for name in wheel.namelist() if name.endswith("TERMS.html")]
        for page in pages:
            reader = ArticleReader()
            reader.feed(wheel.read(page).decode("utf-8"))
            print("\n\n".join(textwrap.fill(text, 96) for text in drop_menus(reader.paragraphs)))
    if not pages:
        sys.exit(f"{sys.argv[1]} holds no terms of use")


if __name__ == "__main__":
    main()
