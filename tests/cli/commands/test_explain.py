"""``explain``: the scores of the function as text, as JSON and as a page."""

import json
import os
import pty
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from softprompt.analysis import ExplainedWord, Explanation, explain_prediction
from softprompt.analysis.explanation import make_explanation_page
from softprompt.cli.commands.explain import _choose_style
from softprompt.inference import PromptModel
from support.models import make_model_factory

TEXT = "a good film, and <b>dull</b> & bad"


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)
        if tag == "mark":
            self.words.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if "mark" in self.open:
            self.words[-1] += data


@pytest.mark.parametrize("method", ["integrated-gradients", "leave-one-out"])
def test_json_is_the_function_s(trained, run, model, method: str) -> None:
    (said,) = run("explain", trained.folder, TEXT, "--format", "json", "--method", method).lines
    wanted = explain_prediction(model, TEXT, method=method)
    assert {**said, "words": 0} == {
        **wanted.to_dict(), "words": 0, "score": said["score"], "total": said["total"],
        "gap": said["gap"], "baseline_score": said["baseline_score"],
    }  # fmt: skip
    for word, own in zip(said["words"], wanted.words, strict=True):
        assert word["text"] == TEXT[word["start"] : word["end"]] == own.text
        assert word["score"] == pytest.approx(own.score, abs=1e-5)
    assert said["total"] == pytest.approx(wanted.total, abs=1e-5)
    assert said["label"] == model.predict(TEXT)[0].label


def test_the_table_has_the_largest_first(trained, run, model) -> None:
    result = run("explain", trained.folder, TEXT, "--method", "leave-one-out")
    wanted = explain_prediction(model, TEXT, method="leave-one-out")
    head, names, *rows, said = result.out.splitlines()
    assert head == f"{wanted.label}  (leave one out)"
    assert names.split() == ["word", "score"]
    scores = [abs(float(row.split()[1])) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert sorted(row.split()[0] for row in rows) == sorted(word.text for word in wanted.words)
    assert f"The words sum to {wanted.total:+.3f}" in said
    assert "\x1b" not in result.out


def test_a_label_of_one_s_own(trained, run, model) -> None:
    for label in model.labels:
        (said,) = run("explain", trained.folder, TEXT, "--format", "json", "--label", label).lines
        assert said["label"] == label


@pytest.mark.parametrize("way", ["--row", "lines", "table", "stdin"])
def test_rows_from_everywhere(trained, run, model, tmp_path, way: str) -> None:
    texts = ["good film", "a bad movie"]
    given, more = None, ()
    match way:
        case "--row":
            texts, more = texts[:1], ("--row", json.dumps({"text": texts[0], "id": 7}))
        case "lines":
            (tmp_path / "in.txt").write_text("\n".join(texts), "utf-8")
            more = ("--input", tmp_path / "in.txt")
        case "table":
            (tmp_path / "in.csv").write_text(
                "text,id\n" + "\n".join(f"{t},1" for t in texts), "utf-8"
            )
            more = ("--input", tmp_path / "in.csv")
        case _:
            given, more = "\n".join(texts), ("--input", "-")
    result = run("explain", trained.folder, *more, "--format", "json", given=given)
    assert result.status == 0, result.err
    assert [line["fields"]["text"] for line in result.lines] == texts
    wanted = [explain_prediction(model, text) for text in texts]
    for line, own in zip(result.lines, wanted, strict=True):
        assert line["score"] == pytest.approx(own.score, abs=1e-5)


@pytest.mark.parametrize("suffix", [".html", ".json", ".txt"])
def test_files_are_what_is_printed(trained, run, tmp_path, suffix: str) -> None:
    path = tmp_path / f"why{suffix}"
    form = {".html": "html", ".json": "json", ".txt": "text"}[suffix]
    printed = run("explain", trained.folder, TEXT, "--format", form)
    result = run("explain", trained.folder, TEXT, "--output", path)
    assert result.out == ""
    assert path.read_text("utf-8") == printed.out
    assert run("explain", trained.folder, TEXT, "--output", path, "--format", "json").status == 0
    assert json.loads(path.read_text("utf-8"))["fields"] == {"text": TEXT}


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(trained, run, model) -> None:
    page = run("explain", trained.folder, TEXT, "--format", "html").out
    parsed = Page(page)
    assert parsed.open == []
    assert {"script", "link", "img", "iframe"}.isdisjoint({tag for tag, _ in parsed.tags})
    assert not any(name in attrs for _, attrs in parsed.tags for name in ("src", "href"))
    assert "url(" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert TEXT in parsed.text
    wanted = explain_prediction(model, TEXT)
    assert parsed.words[: len(wanted.words)] == [word.text for word in wanted.words]
    assert "prefers-color-scheme: dark" in page


def test_what_a_page_says() -> None:
    """Signs, strengths, fields, cut text, and a gap."""
    words = (
        ExplainedWord("one", 0, end=4, text="good", score=2.0),
        ExplainedWord("two", 3, end=6, text="bad", score=-1.0),
    )
    found = Explanation(
        "integrated-gradients",
        label="<yes>",
        fields={"one": "good day", "two": "so bad"},
        words=words,
        score=-0.5,
        baseline="[MASK] for every word",
        baseline_score=-2.0,
        steps=256,
        truncated=True,
    )
    page = make_explanation_page([found, found])
    parsed = Page(page)
    marks = [attrs for tag, attrs in parsed.tags if tag == "mark" and "style" in attrs]
    assert [mark["class"] for mark in marks] == ["for", "against"] * 2
    assert [mark["style"] for mark in marks[:2]] == ["--share: 1.000", "--share: 0.500"]
    unread = [attrs for tag, attrs in parsed.tags if attrs.get("class") == "unread"]
    assert len(unread) == 4  # " day" and the legend, twice
    assert "The words sum to +1.000 of +1.500; +0.500 are missing." in parsed.text
    assert "Raise the steps, now 256." in parsed.text
    assert parsed.text.count("<yes>") == 2
    assert "<yes>" not in page


def test_colours_in_a_terminal(trained, monkeypatch) -> None:
    """Of the words alone; not where NO_COLOR is set, and never those of the text itself."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    shown = _run_in_terminal("explain", trained.folder, "good \x1b[31m bad", no_color=("", "1"))
    for part, colours in zip(shown, (True, False), strict=True):
        assert "good" in part
        assert ("\x1b[" in part) == colours
        assert ("\\u001b" in part) == colours  # the table has the words alone
        assert "\x1b[31m bad" not in part


# A command several times in one process, which takes seconds to start.
SCRIPT = """
import os, sys
from softprompt.cli import main
for value in sys.argv.pop(1).split(","):
    os.environ["NO_COLOR"] = value
    try:
        main()
    except SystemExit as ended:
        assert not ended.code
    print("<end>", flush=True)
"""


def _run_in_terminal(*arguments: object, no_color: tuple[str, ...]) -> list[str]:
    """Run a command in a process whose output is a terminal, with these values of NO_COLOR."""
    near, far = pty.openpty()
    command = [sys.executable, "-c", SCRIPT, ",".join(no_color), *map(str, arguments)]
    with subprocess.Popen(command, stdout=far, stderr=subprocess.DEVNULL) as process:
        os.close(far)
        shown = b"".join(iter(lambda: _read_terminal(near), b""))
    os.close(near)
    assert process.returncode == 0
    *parts, rest = shown.decode().split("<end>")
    assert not rest.strip()
    return parts


def _read_terminal(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux: the process has ended
        return b""


def measure_light(colour: str | tuple[float, ...]) -> float:
    """The relative luminance of a colour, by WCAG 2.1."""
    if isinstance(colour, str):
        colour = tuple(int(colour.lstrip("#")[at : at + 2], 16) for at in (0, 2, 4))
    parts = [part / 255 for part in colour]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def have_contrast(one: float, other: float) -> bool:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05) >= 4.5


@pytest.mark.parametrize("share", [-1.0, -0.5, -0.1, 0.0, 0.05, 0.3, 0.7, 1.0])
def test_coloured_words_can_be_read_in_a_terminal(share: float) -> None:
    style = _choose_style(share)
    if abs(share) < 0.08:
        assert style == ""
        return
    letters, _, background = style.partition(" on ")
    assert have_contrast(measure_light(background), 0.0 if letters == "black" else 1.0)


def test_coloured_words_can_be_read_on_a_page() -> None:
    """On light and dark pages, with every strength of both colours."""
    themes = re.findall(r":root \{(.*?)\}", make_explanation_page([]))
    assert len(themes) == 3
    for theme in themes:
        names = dict(re.findall(r"--([\w-]+): ([^;]+);", theme))
        ink, page = measure_light(names["ink"]), names["page"].lstrip("#")
        paper = [int(page[at : at + 2], 16) for at in (0, 2, 4)]
        for side in ("for", "against"):
            colour = [int(part) for part in names[side].split(",")]
            for share in (0.0, 0.25, 0.5, 0.75, 1.0):
                alpha = float(names["most"]) * share
                mixed = [c * alpha + p * (1 - alpha) for c, p in zip(colour, paper, strict=True)]
                assert have_contrast(measure_light(tuple(mixed)), ink), (theme, side, share)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ((), "give a text, --row JSON or --input FILE"),
        ((TEXT, "--input", "-"), "give a text, --row JSON or --input FILE"),
        (("--row", "{"), "--row is not valid JSON"),
        (("--row", '"text"'), '--row is not an object. Write one such as {"text": "text"}.'),
        (("--row", '{"txt": "good"}'), "the row: the row has no field 'text'"),
        ((TEXT, "--format", "pdf"), "--format 'pdf' is not a format. Choose text, json or html."),
        ((TEXT, "--output", "why.pdf"), "unknown file format '.pdf'"),
        ((TEXT, "--output", "nowhere/why.html"), "there is no folder nowhere"),
        ((TEXT, "--method", "leave-two-out"), "Did you mean 'leave-one-out'?"),
        ((TEXT, "--label", "postive"), "Did you mean 'positive'?"),
        ((" ",), "the text: the row has no words"),
        (("--input", "-"), "stdin has no lines"),
    ],
)
def test_mistakes(trained, run, arguments, fragment: str) -> None:
    result = run("explain", trained.folder, *arguments, given="")
    assert result.is_mistake(fragment)


@pytest.fixture
def tagger(backbones, backbone, maker, tmp_path: Path) -> tuple[Path, PromptModel]:
    """A saved model of tags, and the model."""
    model = make_model_factory(backbone, maker)(("llama", "tag", "input"))
    return model.save(tmp_path / "tagger"), model


def test_every_span_of_tags_is_explained(tagger, backbones, run, tmp_path) -> None:
    folder, model = tagger
    given = ("explain", folder, TEXT, "--method", "leave-one-out", "--backbone", backbones["llama"])
    [predicted] = model.predict([TEXT])
    lines = run(*given, "--format", "json").lines
    spans = [(one["label"], one["subject"]["text"], one["kind"]) for one in lines]
    assert spans == [(span.label, span.text, "span") for span in predicted.spans]
    assert len(spans) > 1
    text = run(*given).out
    for label, part, _ in spans:
        assert f"{label} of \u201c{part}\u201d  (leave one out)" in text
    page = Page(run(*given, "--format", "html").out)
    assert page.open == []
    marked = [attrs for tag, attrs in page.tags if attrs.get("class") == "subject"]
    assert len(marked) >= 2 * len(spans)  # in the text and in the legend
    (line,) = run(*given, "--format", "json", "--word", "2", "--label", "O").lines
    assert (line["kind"], line["label"], line["subject"]["text"]) == ("tag", "O", "film")
    assert run(*given, "--word", "99").is_mistake("Give a number from 0 to")
    file = tmp_path / "rows.jsonl"
    row = {"text": TEXT.split()}
    file.write_text(json.dumps(row) + "\n", "utf-8")
    listed = run("explain", folder, "--input", file, *given[3:], "--format", "json").lines
    [predicted] = model.predict([row])
    assert [one["subject"]["text"] for one in listed] == [span.text for span in predicted.spans]


def test_a_number_is_raised_and_lowered() -> None:
    words = (ExplainedWord("text", 0, end=4, text="good", score=2.0),)
    facts = {"label": "4.5", "fields": {"text": "good"}, "words": words, "kind": "number"}
    scores = {"score": 4.5, "baseline": "[MASK]", "baseline_score": 2.5, "steps": 16}
    page = make_explanation_page([
        Explanation("integrated-gradients", truncated=False, **facts, **scores)
    ])  # fmt: skip
    said = Page(page).text
    assert "the number is 4.500; with [MASK] 2.500. The words sum to +2.000 of +2.000." in said
    assert "raised it" in said
    assert "Scores are changes of the number." in said
    assert "likel" not in said


def test_the_input_is_not_overwritten(trained, run, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "good"}\n', "utf-8")
    result = run("explain", trained.folder, "--input", path, "--output", path)
    assert result.is_mistake("holds the rows that are read")
    assert path.read_text("utf-8") == '{"text": "good"}\n'
