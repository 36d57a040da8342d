"""The playground: one page from this host alone, and what it shows in a real browser."""

import html
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from support.models import ROWS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
TEXTS = [row["text"] for row in ROWS][:2]


def test_the_page_loads_nothing_from_elsewhere(serve) -> None:
    answer = httpx.get(f"{serve().url}/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert re.findall(r"""(?:src|href|url|action)\s*[=(]\s*["']?(?!id=)""", answer.text) == []
    assert "http" not in answer.text
    assert "innerHTML" not in answer.text
    assert httpx.get(f"{serve(has_playground=False).url}/").status_code == 404


def read_page(url: str, profile: Path, *, width: int) -> str:
    """The page as the browser has it after its requests are answered."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
        f"--user-data-dir={profile}", f"--window-size={width},900", "--virtual-time-budget=8000",
        url,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
@pytest.mark.parametrize("width", [1200, 390])
def test_it_shows_answers_side_by_side(serve, models, tmp_path: Path, width: int) -> None:
    rows = quote("\n".join([*TEXTS, "<b>bold</b>"]))
    address = f"{serve().url}/?prompts=mood,tone,nobody&run=1&rows={rows}"
    page = read_page(address, tmp_path, width=width)
    answers = page.partition('id="answers"')[2].partition("<script")[0]
    for name in ("mood", "tone"):
        assert f'aria-label="{name}"' in answers
    for prediction in models["mood"].predict(TEXTS):
        assert f"{prediction.probabilities[prediction.label] * 100:.1f} %" in answers
    assert "3 soft tokens" in answers
    assert "&lt;b&gt;bold&lt;/b&gt;" in answers
    assert "<b>" not in answers
    assert "Answers of 2 prompts." in page
    assert 'class="fault"' not in answers


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_it_shows_text_as_it_streams(serve, models, tmp_path: Path) -> None:
    """The browser's clock may stop before the stream has ended, so its beginning is compared."""
    address = f"{serve().url}/?prompts=reply&run=1&rows={quote(TEXTS[0])}"
    page = read_page(address, tmp_path, width=1200)
    written = re.search(r'class="written">([^<]*)', page)
    assert written is not None
    [expected] = models["reply"].predict(TEXTS[:1])
    assert expected.label.startswith(html.unescape(written[1]).strip())
    assert 'class="fault"' not in page.partition('id="answers"')[2].partition("<script")[0]
