"""How the time per row grows with soft tokens, text length and the number of rows."""

from pathlib import Path
from typing import Any

from arms import (
    CUDA,
    FRONT,
    make_batches,
    make_long_texts,
    make_our_step,
    make_recipe_data,
    measure_speeds,
    measure_time,
    prepare_trainer,
)
from picture import draw_growth

# An inner module: single steps are timed.
from softprompt.train import Trainer

HERE = Path(__file__).parent
STEPS = 8


def measure_growth(*, quick: bool) -> dict[str, Any]:  # noqa: ARG001  # as for every part
    """Seconds per row for more soft tokens, longer texts and more rows."""
    seconds: dict[str, dict[int, float]] = {"soft tokens": {}, "tokens of text": {}, "rows": {}}
    for tokens in (1, 5, 20, 50, 100, 200):
        trainer = prepare_trainer(make_recipe_data(FRONT.format(tokens), rows=64))
        seconds["soft tokens"][tokens] = _measure_row(trainer, batch=16)
    tokenizer = trainer.task.backbone.tokenizer
    for tokens in (16, 32, 64, 128, 256, 512):
        texts = make_long_texts(32, tokens=tokens, tokenizer=tokenizer)
        trainer = prepare_trainer(make_recipe_data(FRONT.format(20), rows=32), texts=texts)
        seconds["tokens of text"][tokens] = _measure_row(trainer, batch=8)
    rows = make_long_texts(1_000, tokens=1, tokenizer=tokenizer)
    for count in (1_000, 10_000, 100_000):
        seconds["rows"][count] = _measure_row_with_setup(rows * (count // len(rows)))
    draw_growth(seconds, HERE / "results" / f"growth-{'cuda' if CUDA else 'cpu'}.png")
    return {"seconds_per_row": seconds, "setting": {"steps": STEPS}}


def _measure_row(trainer: Trainer, *, batch: int) -> float:
    batches = make_batches(trainer, size=batch, count=1)
    speeds = measure_speeds({"ours": make_our_step(trainer)}, batches, rounds=3)
    return 1 / sorted(speeds["ours"])[1]


def _measure_row_with_setup(rows: list[dict[str, str]]) -> float:
    """The time of a row in a step, and its share of all work before the first step."""
    data = make_recipe_data(FRONT.format(20), rows=len(rows)) | {"cache": {"disk_gb": 0.0}}
    with measure_time() as setup:
        trainer = prepare_trainer(data, texts=rows)
    trained_rows = 0
    with measure_time() as training:
        for _ in range(STEPS):
            trained_rows += trainer.train_step().rows
    return setup[0] / len(rows) + training[0] / trained_rows
