"""How long `softprompt init` and `softprompt check` take for a file of many rows or labels.

The floor is the same texts through the bare tokenizer of the backbone, in one batch.
"""

import csv
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from arms import measure_time
from tokenizers import Tokenizer

from softprompt.backbone import load_unverified

COMMAND = str(Path(sys.executable).with_name("softprompt"))
# The rows and the labels of each file.
FILES = {"1,000,000 rows": (1_000_000, 2), "5,000 labels": (20_000, 5_000)}
WORDS = 8
VOCABULARY = 5_000


def measure_many_rows(*, quick: bool) -> dict[str, Any]:
    """The median seconds of each command and of the floor, by file.

    Args:
        quick: one round, and a tenth of the rows and labels.
    """
    rounds, share = (1, 10) if quick else (3, 1)
    seconds: dict[str, dict[str, float]] = {}
    tokenizer = Tokenizer.from_str(
        load_unverified("builtin:minilm").tokenizer.backend_tokenizer.to_str()
    )
    for name, (rows, labels) in FILES.items():
        with tempfile.TemporaryDirectory() as folder:
            texts = write_rows(
                Path(folder, "train.csv"), rows // share, labels=max(2, labels // share)
            )
            tries = [time_commands(Path(folder), texts, tokenizer) for _ in range(rounds)]
        seconds[name] = {
            part: round(statistics.median(of_try[part] for of_try in tries), 1) for part in tries[0]
        }
    return {"seconds": seconds, "setting": {"rounds": rounds, "words": WORDS, "share": 1 / share}}


def write_rows(path: Path, rows: int, *, labels: int) -> list[str]:
    """Write a csv file of short rows, and return its texts."""
    random_words = random.Random(0)  # noqa: S311  # not for secrets
    texts = [
        " ".join(f"word{random_words.randrange(VOCABULARY)}" for _ in range(WORDS))
        for _ in range(rows)
    ]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([text, f"label number {n % labels}"] for n, text in enumerate(texts))
    return texts


def time_commands(folder: Path, texts: list[str], tokenizer: Tokenizer) -> dict[str, float]:
    """The seconds of both commands, without cached rows, and of the bare tokenizer."""
    seconds = {}
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"SOFTPROMPT_CACHE": cache}
        for name, options in {
            "init": ["init", "train.csv", "--backbone", "builtin:minilm", "--force"],
            "check": ["check", "recipe.toml"],
        }.items():
            with measure_time() as elapsed:
                subprocess.run(
                    [COMMAND, *options],
                    cwd=folder,
                    env=environment,
                    check=True,
                    capture_output=True,
                )
            seconds[name] = elapsed[0]
    with measure_time() as elapsed:
        tokenizer.encode_batch_fast(texts)
    seconds["tokenizer alone"] = elapsed[0]
    return seconds
