"""How the time a row takes grows with rows, texts and prompts."""

from pathlib import Path
from typing import Any

from arms import CUDA, FRONT, batches_of, long_texts, measure, ours, recipe_of, timed, trainer_of
from picture import draw_growth

from softprompt.train import Trainer

HERE = Path(__file__).parent
STEPS = 8


def growth(*, quick: bool) -> dict[str, Any]:  # noqa: ARG001  # every part is called alike
    """Seconds a row as soft tokens, tokens of text and rows grow."""
    by: dict[str, dict[int, float]] = {"soft tokens": {}, "tokens of text": {}, "rows": {}}
    for tokens in (1, 5, 20, 50, 100, 200):
        trainer = trainer_of(recipe_of(FRONT.format(tokens), rows=64))
        by["soft tokens"][tokens] = _seconds(trainer, batch=16)
    tokenizer = trainer.task.backbone.tokenizer
    for tokens in (16, 32, 64, 128, 256, 512):
        texts = long_texts(32, tokens=tokens, tokenizer=tokenizer)
        trainer = trainer_of(recipe_of(FRONT.format(20), rows=32), texts=texts)
        by["tokens of text"][tokens] = _seconds(trainer, batch=8)
    rows = long_texts(1_000, tokens=1, tokenizer=tokenizer)
    for count in (1_000, 10_000, 100_000):
        by["rows"][count] = _with_all_before(rows * (count // len(rows)))
    draw_growth(by, HERE / "results" / f"growth-{'cuda' if CUDA else 'cpu'}.png")
    return {"seconds_per_row": by, "setting": {"steps": STEPS}}


def _seconds(trainer: Trainer, *, batch: int) -> float:
    batches = batches_of(trainer, size=batch, count=1)
    speeds = measure({"ours": ours(trainer)}, batches, rounds=3)
    return 1 / sorted(speeds["ours"])[1]


def _with_all_before(rows: list[dict[str, str]]) -> float:
    """A row's share of everything before the first step, and its part in a step."""
    data = recipe_of(FRONT.format(20), rows=len(rows)) | {"cache": {"disk_gb": 0.0}}
    with timed() as before:
        trainer = trainer_of(data, texts=rows)
    seen = 0
    with timed() as spent:
        for _ in range(STEPS):
            seen += trainer.train_step().rows
    return before[0] / len(rows) + spent[0] / seen
