"""The playground: one page from this host alone, and what it shows in a real browser."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import pytest

from softprompt.inference import PromptModel
from softprompt.serve.prompts import FolderSource
from softprompt.tasks import Classify, Extract, Regress
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


def read_answers(page: str) -> str:
    """The answers as HTML, whose text has no entities."""
    return html.unescape(page.partition('id="answers"')[2].partition("<script")[0])


@pytest.fixture
def parts(model, tmp_path: Path) -> tuple[dict[str, PromptModel], FolderSource]:
    """Models whose predictions are more than a class, and where they are."""
    sets = Classify("{soft:3}{text}", label_column="labels", multi_label=True, thresholds=0.5)
    numbers = Regress("{soft:3}{text}", mean=(3.0, 20.0), scale=(1.0, 5.0))
    find = Extract("{soft:3}{question} {context} is", null_threshold=0.0)
    made = {
        "names": model(("llama", "tag", "input"), seed=5),
        "sets": model(("llama", "sets", "input"), settings=sets),
        "numbers": model(("llama", "numbers", "input"), settings=numbers, choices=()),
        "always": model(
            ("llama", "extract", "input"),
            settings=replace(find, null_threshold="never"),
            choices=(),
        ),
        "never": model(
            ("llama", "extract", "input"),
            settings=replace(find, null_threshold=-1000.0),
            choices=(),
        ),
    }
    return made, FolderSource([one.save(tmp_path / name) for name, one in made.items()])


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_spans_are_marked_in_the_text(serve, parts, tmp_path: Path) -> None:
    """Offsets count characters of Unicode; the emoji has two of JavaScript's units."""
    made, source = parts
    texts = ["\U0001f389 a good film, <i>dull</i>  music!", '["a","good","film"]']
    address = f"{serve(source=source).url}/?prompts=names&run=1&rows={quote(chr(10).join(texts))}"
    answers = read_answers(read_page(address, tmp_path / "profile", width=1200))
    lines = re.findall(r'<p class="marked">(.*?)</p>', answers, re.DOTALL)
    for text, line, found in zip(
        [texts[0], "a good film"], lines, made["names"].predict(texts), strict=True
    ):
        marks = re.findall(
            r'<mark style="--hue: (\d+);">(.*?)<span class="type">(.*?)</span></mark>', line
        )
        wanted = [(span.text, f"{span.label} {span.score * 100:.1f} %") for span in found.spans]
        assert wanted
        assert [(part, said) for _, part, said in marks] == wanted
        hues = {said.split()[0]: hue for hue, _, said in marks}
        assert len({*hues.values()}) == len(hues)
        bare = re.sub(r'<span class="type">.*?</span>|</?mark[^>]*>', "", line)
        assert bare == text
    assert 'class="fault"' not in answers


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_answers_sets_and_numbers_are_shown(serve, parts, tmp_path: Path) -> None:
    made, source = parts
    row = {"text": "good film", "question": "who", "context": "\U0001f389 a dull story, a film"}
    rows = quote(json.dumps(row))
    url, shown = serve(source=source).url, {}
    for name in ("always", "never", "sets", "numbers"):
        page = read_page(
            f"{url}/?prompts={name}&run=1&rows={rows}", tmp_path / name / "profile", width=1200
        )
        shown[name] = read_answers(page)
        assert 'class="fault"' not in shown[name]
    [found] = made["always"].predict([row])
    context, answer = row["context"], found.text
    before, behind = context[: found.start], context[found.end :]
    mark = f'<mark style="--hue: 215;">{answer}</mark>'
    assert f'<p class="marked">{before}{mark}{behind}</p>' in shown["always"]
    assert f'<dt class="is-best">{answer}</dt>' in shown["always"]
    assert "question: who" in shown["always"]
    assert "context: " not in shown["always"]
    for one in found.candidates:
        assert f"{np.exp(one.score) * 100:.1f} %" in shown["always"]
    [none] = made["never"].predict([row])
    assert none.text == ""
    assert f'<p class="marked">{context}</p>' in shown["never"]
    assert "The text has no answer." in shown["never"]
    assert '<dt class="is-best">(no answer)</dt>' in shown["never"]
    assert f"{np.exp(none.null_score) * 100:.1f} %" in shown["never"]
    [labels] = made["sets"].predict([row])
    chips = re.findall(r'<span class="chip">(.*?)</span>', shown["sets"])
    assert chips == [*labels.labels]
    assert bool(chips) != ("No label is likely enough." in shown["sets"])
    for share in labels.probabilities.values():
        assert f"{share * 100:.1f} %" in shown["sets"]
    [numbers] = made["numbers"].predict([row])
    said = re.search(r'<p class="number">(.*?)</p>', shown["numbers"])
    assert said is not None
    values = [float(part) for part in said[1].split(", ")]
    assert values == pytest.approx([*numbers.values], rel=1e-4)
