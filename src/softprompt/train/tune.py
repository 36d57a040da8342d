"""Train a backbone to the end and keep the numbers, not the weights: they are for comparison."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from softprompt.evaluate import bare_answers
from softprompt.recipe import Recipe
from softprompt.train.events import Event
from softprompt.train.folder import RunFolder
from softprompt.train.launch import checkpointing, make_accelerator
from softprompt.train.picture import draw
from softprompt.train.prepare import device_of
from softprompt.train.tuner import Tuner
from softprompt.train.tuning import Tuned

Answering = Callable[[Sequence[Mapping[str, Any]]], list[str]]


def tune(
    recipe: Recipe, folder: Path, *, parts: Tuned, watch: Callable[[Event], None]
) -> Answering:
    """Run a recipe on the backbone itself, and write its folder but for an artifact.

    Args:
        folder: of the run; a new one.
        parts: of the recipe. They are used up: their backbone is trained.
        watch: told every event. A KeyboardInterrupt that it raises ends the run.

    Returns:
        What answers rows with the best weights by validation.

    Raises:
        SoftpromptError: something does not fit; the message says what to do.
    """
    run, began = RunFolder(folder), perf_counter()
    run.begin(recipe)
    cpu = device_of(recipe.backbone).startswith("cpu")
    accelerator = make_accelerator(recipe.train, cpu=cpu, folder=None)
    with checkpointing(parts.task.backbone, wanted=recipe.train.gradient_checkpointing):
        tuner = Tuner(parts, accelerator)
        for event in tuner.run():
            run.note(event, seconds=round(perf_counter() - began, 3))
            watch(event)
        best = tuner.take_best()
        sampled = parts.held is not parts.validation
        metrics = tuner.judge(parts.held).metrics if sampled else best.metrics
    added = parts.trained if parts.kind == "lora" else parts.trained[len(parts.weights) :]
    run.write_metrics(
        {
            "tuning": parts.kind,
            "validation": dict(metrics),
            "best_step": best.step,
            "steps": tuner.step,
            "trainable_parameters": sum(p.numel() for p in parts.trained),
            "backbone_parameters": parts.parameters,
            "added_parameters": sum(p.numel() for p in added),
        }
    )
    draw(run.events(), run.picture, title=run.path.name)

    def answer(rows: Sequence[Mapping[str, Any]]) -> list[str]:
        with accelerator.autocast():
            return bare_answers(parts.task, rows)

    return answer
