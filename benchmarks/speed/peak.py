"""The peak memory of a few training steps, in its own process: peak.py ours|peft|floor."""

import gc
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from arms import (
    CUDA,
    FRONT,
    make_bare_step,
    make_batches,
    make_our_step,
    make_peft_model,
    make_peft_step,
    make_recipe_data,
    prepare_trainer,
)

PROCESS = Path("/proc/self")
STEPS = {
    "ours": make_our_step,
    "peft": lambda trainer: make_peft_step(trainer, make_peft_model(20)),
    "floor": make_bare_step,
}


def main() -> None:
    """Run steps of a variant; print the memory in use before them, and the peak during them."""
    variant = sys.argv[1]
    trainer = prepare_trainer(make_recipe_data(FRONT.format(20), rows=256, batch=32))
    step = STEPS[variant](trainer)
    if variant != "ours":
        trainer.task.backbone.model.to("meta")  # only the variant's own weights are counted
    batches = make_batches(trainer, size=32, count=4)
    print(json.dumps(measure_peak([partial(step, batch) for batch in batches])))


def measure_peak(steps: Sequence[Callable[[], object]]) -> dict[str, int]:
    """The bytes in use before some steps, and the peak during them."""
    gc.collect()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        (PROCESS / "clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM, the peak
        before = _read_memory("VmRSS")
    for step in steps:
        step()
    return {
        "before": before,
        "peak": torch.cuda.max_memory_allocated() if CUDA else _read_memory("VmHWM"),
    }


def _read_memory(field: str) -> int:
    """A field of Linux's status of this process, in bytes."""
    lines = (PROCESS / "status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
