"""The peak memory of a few training steps, in a process of its own: peak.py ours|peft|floor."""

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
    batches_of,
    floor_arm,
    ours,
    peft_arm,
    peft_model,
    recipe_of,
    trainer_of,
)

PROCESS = Path("/proc/self")


def _now(field: str) -> int:
    """What Linux says of this process's memory, in bytes."""
    lines = (PROCESS / "status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    """Run the arm; print what was in use before its steps, and the most during them."""
    trainer = trainer_of(recipe_of(FRONT.format(20), rows=256, batch=32))
    arms = {"ours": ours, "peft": lambda t: peft_arm(t, peft_model(20)), "floor": floor_arm}
    arm = arms[sys.argv[1]](trainer)
    if sys.argv[1] != "ours":
        trainer.task.backbone.model.to("meta")
    batches = batches_of(trainer, size=32, count=4)
    print(json.dumps(peak_of([partial(arm, batch) for batch in batches])))


def peak_of(steps: Sequence[Callable[[], object]]) -> dict[str, int]:
    """Bytes in use before these steps, and the most during them."""
    gc.collect()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        (PROCESS / "clear_refs").write_text("5", encoding="utf-8")  # the peak counts from here
        before = _now("VmRSS")
    for step in steps:
        step()
    return {
        "before": before,
        "peak": torch.cuda.max_memory_allocated() if CUDA else _now("VmHWM"),
    }


if __name__ == "__main__":
    main()
